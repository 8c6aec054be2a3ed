"""Train the tiny model from scratch: `python tiny/train.py`, then measure_answers.py.

There are three stages, each with a fixed number of steps and a cosine schedule with warm-up. `encoder` trains the
vision tower to describe a scene. `reader` trains the language model to answer, with the tower frozen. `joint` trains
both, with visual tokens dropped in some of the batches. A finished stage is saved in the output folder and not
repeated.

Token dropping is independent of content: the kept tokens are drawn uniformly, or are those nearest to a uniformly drawn
point, at original or compact positions. Only projector and language model learn from these batches, to answer and to
stop with missing tokens. A tower that also learned from them spread its information over all patches, and then random
tokens performed as well as any others.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import PAD, PATCH, SIDE, START, STOP, WIDTH, make_model, make_tokenizer, save, vocabulary
from scenes import FORMS, LETTERS, NAMES, SHAPES, TRAINING_SEEDS, Scene, ask, draw
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

SEED = 20  # seed of the initial weights
TOKENS = SIDE**2
KINDS = [*SHAPES, *LETTERS]  # classes of a patch, besides background
QUESTION_TYPES = list(FORMS)
NO_LOSS = -100


@dataclass(frozen=True)
class Stage:
    """One stage of the training."""

    name: str
    steps: int
    batch: int
    rate: float
    answers: bool  # train projector and language model on questions
    tower: bool  # train the vision tower to describe the scene, from its class token and patches
    drop_share: float = 0.0  # share of batches with dropped tokens


STAGES = (
    Stage("encoder", 1850, 32, 1e-3, answers=False, tower=True),
    Stage("reader", 800, 24, 1.5e-3, answers=True, tower=False),
    Stage("joint", 1250, 24, 8e-4, answers=True, tower=True, drop_share=0.4),
)


class Heads(nn.Module):
    """Heads for training the tower: labels and count from [CLS], kind and colour of each patch."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = nn.Linear(WIDTH, len(NAMES) * len(SHAPES) + len(LETTERS) + len(NAMES) + len(SHAPES))
        self.count = nn.Linear(WIDTH, 5)
        self.norm = nn.LayerNorm(WIDTH)
        self.kind = nn.Linear(WIDTH, len(KINDS) + 1)
        self.colour = nn.Linear(WIDTH, len(NAMES) + 1)

    def loss(self, summary: Tensor, patches: Tensor, labels: Tensor, count: Tensor, kind: Tensor, colour: Tensor):
        """Return the scalar loss of [CLS] features [B, D] and patch features [B, N, D].

        The targets are those of `describe_scene`. Background patches are frequent and have a small weight.
        """
        patches = self.norm(patches)
        label_loss = (
            F.binary_cross_entropy_with_logits(self.labels(summary).float(), labels, reduction="none").sum(1).mean()
        )
        loss = 0.25 * label_loss + 0.5 * F.cross_entropy(self.count(summary).float(), count)
        for head, target in ((self.kind, kind), (self.colour, colour)):
            logits = head(patches).float().flatten(0, 1)
            weight = torch.ones(logits.shape[1], device=logits.device)
            weight[-1] = 0.15
            loss = loss + F.cross_entropy(logits, target.flatten(), weight, ignore_index=NO_LOSS)
        return loss


def describe_scene(scene: Scene) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
    """Return labels [56] (pairs, letters, colours, shapes), number of shapes, kind [N] and colour [N] of patches."""
    pairs = np.zeros((len(NAMES), len(SHAPES)), np.float32)
    letters = np.zeros(len(LETTERS), np.float32)
    kind = np.full(TOKENS, len(KINDS))
    colour = np.full(TOKENS, len(NAMES))
    row, column = np.divmod(np.arange(TOKENS), SIDE)
    for thing in scene.things:
        distance = np.hypot((column + 0.5) * PATCH - thing.x, (row + 0.5) * PATCH - thing.y)
        inside = distance < max(thing.radius, 0.71 * PATCH)
        rim = ~inside & (distance < 1.3 * thing.radius)
        kind[rim] = colour[rim] = NO_LOSS
        kind[inside] = KINDS.index(thing.name)
        if thing.color is None:
            letters[LETTERS.index(thing.name)] = 1
        else:
            pairs[NAMES.index(thing.color), SHAPES.index(thing.name)] = 1
            colour[inside] = NAMES.index(thing.color)
    labels = np.concatenate([pairs.ravel(), letters, pairs.max(1), pairs.max(0)])
    return labels, int(pairs.sum()), kind, colour


class Steps(Dataset):
    """The batches of a stage: pixels, targets of `describe_scene`, and all questions of a scene in sequence."""

    def __init__(self, stage: Stage, steps: int) -> None:
        self.stage = stage
        self.steps = steps
        self.tokenizer = make_tokenizer()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((TRAINING_SEEDS[self.stage.name], step))
        scenes = [draw(rng) for _ in range(self.stage.batch)]
        questions = [
            [(q.kind, self._ids(q.text + " assistant :"), self._ids(q.answer)) for q in ask(rng, scene)]
            for scene in scenes
        ]
        targets = [describe_scene(scene) for scene in scenes]
        labels, count, kind, colour = (torch.from_numpy(np.stack(part)) for part in zip(*targets, strict=True))
        batch = {"labels": labels, "count": count, "kind": kind, "colour": colour}
        batch["pixels"] = (
            torch.from_numpy(np.stack([scene.pixels for scene in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1
        )
        return batch | (self._rows(questions) if self.stage.answers else {})

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _rows(self, questions: list) -> dict[str, Tensor]:
        """Return tensors [B, L]: ids, next-token targets, question number, position in it, type at the answer."""
        rows = []
        for row in questions:
            ids, target, question, place, kind = [], [], [], [], []
            for number, (name, prompt, answer) in enumerate(row):
                turn = [*prompt, *answer, STOP]
                ids += turn
                target += [NO_LOSS] * (len(prompt) - 1) + [*answer, STOP, NO_LOSS]
                question += [number] * len(turn)
                place += range(len(turn))
                kind += [-1] * (len(prompt) - 1) + [QUESTION_TYPES.index(name)] + [-1] * (len(answer) + 1)
            rows.append((ids, target, question, place, kind))
        names = ("ids", "target", "question", "place", "type")
        padding = (PAD, NO_LOSS, -1, 0, -1)
        length = max(len(row[0]) for row in rows)
        padded = [[part + [e] * (length - len(part)) for part, e in zip(row, padding, strict=True)] for row in rows]
        return {name: torch.tensor([row[i] for row in padded]) for i, name in enumerate(names)}


def drop_tokens(features: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Drop tokens of features [B, N, D]; return [B, k, D] and the kept indices [B, k], with the same k for all."""
    count = max(6, int(TOKENS * (0.05 + 0.95 * torch.rand((), generator=generator).item())))
    if torch.rand((), generator=generator) < 0.5:
        order = torch.rand(len(features), TOKENS, generator=generator)
    else:  # a region of the picture: the tokens nearest to a point
        place = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"), -1).view(1, -1, 2)
        point = torch.rand(len(features), 1, 2, generator=generator) * SIDE
        order = -(place - point).abs().amax(-1)
    kept = order.topk(count, 1).indices.sort(1).values.to(features.device)
    return features.gather(1, kept[..., None].expand(-1, -1, features.shape[-1])), kept


def answer_logits(model, features: Tensor, kept: Tensor, compact: bool, batch: dict[str, Tensor]) -> Tensor:
    """Return logits [B, L, words] of rows in which each question attends to the picture and itself only."""
    words = vocabulary()
    device = features.device
    begin = torch.tensor([START, words.index("user"), words.index(":")])
    embed = model.get_input_embeddings()
    count = features.shape[1]
    ids = batch["ids"]
    rows = len(features)
    front = embed(begin.to(device))[None].expand(rows, -1, -1)
    tokens = torch.cat([front, model.model.multi_modal_projector(features).to(front.dtype), embed(ids)], 1)
    shared = len(begin) + count
    length = tokens.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril().repeat(rows, 1, 1)
    same = batch["question"][:, :, None] == batch["question"][:, None]
    mask[:, shared:, shared:] &= same
    picture = torch.arange(count, device=device).expand(rows, -1) if compact else kept
    picture_length = count if compact else TOKENS
    positions = [torch.arange(len(begin), device=device).expand(rows, -1), len(begin) + picture]
    positions.append(len(begin) + picture_length + batch["place"])
    states = model.model.language_model(
        inputs_embeds=tokens, attention_mask=mask[:, None], position_ids=torch.cat(positions, 1), use_cache=False
    ).last_hidden_state[:, shared:]
    return model.lm_head(states)


def step_losses(model, heads: Heads, stage: Stage, batch: dict[str, Tensor], generator: torch.Generator):
    """Yield (name, loss, number of right words, number of words) for the losses of one batch."""
    with torch.set_grad_enabled(stage.tower):
        output = model.model.vision_tower(batch["pixels"], output_hidden_states=True)
        features = output.hidden_states[-2][:, 1:]
    if stage.tower:
        targets = (batch[name] for name in ("labels", "count", "kind", "colour"))
        yield "scene", heads.loss(output.pooler_output, features, *targets) * (0.5 if stage.answers else 1.0), 0, 0
    if stage.answers:
        kept = torch.arange(TOKENS, device=features.device).expand(len(features), -1)
        compact = bool(torch.rand((), generator=generator) < 0.5)
        if torch.rand((), generator=generator) < stage.drop_share:
            # detached: a tower that learns from dropped tokens spreads its information over all patches
            features, kept = drop_tokens(features.detach(), generator)
        logits = answer_logits(model, features, kept, compact, batch).float()
        target = batch["target"]
        ends = target == STOP
        words = (target != STOP) & (target != NO_LOSS)
        right = (logits.argmax(-1) == target)[words].sum().item()
        yield "answer", F.cross_entropy(logits[words], target[words]), right, int(words.sum())
        yield "stop", F.cross_entropy(logits[ends], target[ends]), 0, 0


def make_optimizer(model, heads: Heads, stage: Stage) -> torch.optim.Optimizer:
    """Return AdamW for the parameters of a stage; positions, biases and norms have no weight decay."""
    parts = [heads, model.model.vision_tower] if stage.tower else []
    parts += [model.model.multi_modal_projector, model.model.language_model, model.lm_head] if stage.answers else []
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    named = [pair for part in parts for pair in part.named_parameters()]
    decays = [w for name, w in named if w.ndim > 1 and "position" not in name]
    others = [w for name, w in named if w.ndim < 2 or "position" in name]
    groups = [{"params": decays, "weight_decay": 0.03}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98))


def train_stage(model, heads: Heads, stage: Stage, steps: int, device: str) -> Iterator[str]:
    """Train one stage; yield a progress line every 50 steps."""
    optimizer = make_optimizer(model, heads, stage)
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / 100) * (0.01 + 0.5 * (1 + math.cos(math.pi * s / steps)))
    )
    generator = torch.Generator().manual_seed(TRAINING_SEEDS[stage.name])
    start = time.time()
    sums = {}
    right = total_words = 0
    for step, batch in enumerate(DataLoader(Steps(stage, steps), batch_size=None, num_workers=1), start=1):
        batch = {name: part.to(device) for name, part in batch.items()}
        with torch.autocast(device, torch.bfloat16):
            losses = list(step_losses(model, heads, stage, batch, generator))
        optimizer.zero_grad()
        torch.stack([loss for _, loss, _, _ in losses]).sum().backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        for name, loss, right_words, words in losses:
            sums[name] = sums.get(name, 0.0) + loss.item()
            right += right_words
            total_words += words
        if step % 50 == 0 or step == steps:
            steps_since = (step - 1) % 50 + 1
            means = "  ".join(f"{name} {total / steps_since:.3f}" for name, total in sums.items())
            part = f"right {right / max(total_words, 1):.3f}" if stage.answers else ""
            yield f"{stage.name} {step}/{steps}  {time.time() - start:.0f} s  {means}  {part}"
            sums = {}
            right = total_words = 0


def main() -> None:
    """Run the unfinished stages and save the model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--share", type=float, default=1.0, help="share of the steps to run, for a quick trial")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    model = make_model().to(options.device).train()
    heads = Heads().to(options.device)
    report = {}
    for stage in STAGES:
        checkpoint = options.out / f"{stage.name}.pt"
        if not checkpoint.exists():
            steps = max(1, int(stage.steps * options.share))
            start = time.monotonic()
            for line in train_stage(model, heads, stage, steps, options.device):
                print(line, flush=True)
            spent = {"wall_minutes": (time.monotonic() - start) / 60, "steps": steps}
            spent |= {"batch": stage.batch, "seed": TRAINING_SEEDS[stage.name]}
            torch.save({"model": model.state_dict(), "heads": heads.state_dict(), "spent": spent}, checkpoint)
        state = torch.load(checkpoint, map_location=options.device)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        report[stage.name] = state["spent"]
    save(model.eval(), options.out / "model")
    (options.out / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"saved to {options.out / 'model'}")


if __name__ == "__main__":
    main()
