"""Make the tiny model from nothing: `python tiny/train.py`, then measure_answers.py and freeze.py.

Three stages, each a fixed number of steps with a warmed-up cosine schedule: `encoder` teaches the vision tower what is
in a scene, `reader` teaches the language model to answer with the tower frozen, `joint` trains both while visual tokens
are thinned in some of the batches. A finished stage is kept in the output folder and not run again.

Thinning is neutral to what a token shows: tokens drawn uniformly, or those nearest to a point drawn uniformly, at
original or at compact positions. Only projector and language model learn from it: to answer, and to stop, with gaps in
the view. A tower that learned from it too spread what it sees over all patches, and random tokens did as well as any.
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
from model import PAD, PATCH, SIDE, START, STOP, WIDTH, save, tokenizer, untrained, vocabulary
from scenes import FORMS, LETTERS, NAMES, SHAPES, TRAINING_SEEDS, Scene, ask, draw
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

SEED = 20  # of the initial weights
TOKENS = SIDE**2
KINDS = [*SHAPES, *LETTERS]  # of a patch
ASKED = list(FORMS)
NO_LOSS = -100


@dataclass(frozen=True)
class Stage:
    """One part of the training."""

    name: str
    steps: int
    batch: int
    rate: float
    answers: bool  # train projector and language model on questions
    tower: bool  # train the vision tower, on what its class token and patches say of the scene
    thinned: float = 0.0  # share of batches


STAGES = (
    Stage("encoder", 1850, 32, 1e-3, answers=False, tower=True),
    Stage("reader", 800, 24, 1.5e-3, answers=True, tower=False),
    Stage("joint", 1250, 24, 8e-4, answers=True, tower=True, thinned=0.4),
)


class Heads(nn.Module):
    """What is read off the tower in training only: labels and count from [CLS], kind and colour of each patch."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = nn.Linear(WIDTH, len(NAMES) * len(SHAPES) + len(LETTERS) + len(NAMES) + len(SHAPES))
        self.count = nn.Linear(WIDTH, 5)
        self.norm = nn.LayerNorm(WIDTH)
        self.kind = nn.Linear(WIDTH, len(KINDS) + 1)
        self.colour = nn.Linear(WIDTH, len(NAMES) + 1)

    def loss(self, summary: Tensor, patches: Tensor, labels: Tensor, count: Tensor, kind: Tensor, colour: Tensor):
        """[B, D], [B, N, D] and the truths of `described` -> scalar. Background weighs little, there is much of it."""
        patches = self.norm(patches)
        found = F.binary_cross_entropy_with_logits(self.labels(summary).float(), labels, reduction="none").sum(1).mean()
        loss = 0.25 * found + 0.5 * F.cross_entropy(self.count(summary).float(), count)
        for head, truth in ((self.kind, kind), (self.colour, colour)):
            logits = head(patches).float().flatten(0, 1)
            weight = torch.ones(logits.shape[1], device=logits.device)
            weight[-1] = 0.15
            loss = loss + F.cross_entropy(logits, truth.flatten(), weight, ignore_index=NO_LOSS)
        return loss


def described(scene: Scene) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
    """Labels [56] (pairs, letters, colours, shapes), number of shapes, kind [N] and colour [N] of each patch."""
    pairs, letters = np.zeros((len(NAMES), len(SHAPES)), np.float32), np.zeros(len(LETTERS), np.float32)
    kind, colour = np.full(TOKENS, len(KINDS)), np.full(TOKENS, len(NAMES))
    row, column = np.divmod(np.arange(TOKENS), SIDE)
    for thing in scene.things:
        away = np.hypot((column + 0.5) * PATCH - thing.x, (row + 0.5) * PATCH - thing.y)
        inside = away < max(thing.radius, 0.71 * PATCH)
        rim = ~inside & (away < 1.3 * thing.radius)
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
    """Batch n of a stage: pixels, what `described` says, and all questions of a scene behind one another."""

    def __init__(self, stage: Stage, steps: int) -> None:
        self.stage, self.steps, self.words = stage, steps, tokenizer()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((TRAINING_SEEDS[self.stage.name], step))
        scenes = [draw(rng) for _ in range(self.stage.batch)]
        asked = [
            [(q.kind, self._ids(q.text + " assistant :"), self._ids(q.answer)) for q in ask(rng, scene)]
            for scene in scenes
        ]
        truths = [described(scene) for scene in scenes]
        labels, count, kind, colour = (torch.from_numpy(np.stack(part)) for part in zip(*truths, strict=True))
        batch = {"labels": labels, "count": count, "kind": kind, "colour": colour}
        batch["pixels"] = (
            torch.from_numpy(np.stack([scene.pixels for scene in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1
        )
        return batch | (self._rows(asked) if self.stage.answers else {})

    def _ids(self, text: str) -> list[int]:
        return self.words(text, add_special_tokens=False)["input_ids"]

    def _rows(self, asked: list) -> dict[str, Tensor]:
        """[B, L] each: ids, target behind each id, number of its question, place in it, type where it is answered."""
        rows = []
        for row in asked:
            ids, target, question, place, kind = [], [], [], [], []
            for number, (name, prompt, answer) in enumerate(row):
                turn = [*prompt, *answer, STOP]
                ids += turn
                target += [NO_LOSS] * (len(prompt) - 1) + [*answer, STOP, NO_LOSS]
                question += [number] * len(turn)
                place += range(len(turn))
                kind += [-1] * (len(prompt) - 1) + [ASKED.index(name)] + [-1] * (len(answer) + 1)
            rows.append((ids, target, question, place, kind))
        names, empty = ("ids", "target", "question", "place", "type"), (PAD, NO_LOSS, -1, 0, -1)
        length = max(len(row[0]) for row in rows)
        padded = [[part + [e] * (length - len(part)) for part, e in zip(row, empty, strict=True)] for row in rows]
        return {name: torch.tensor([row[i] for row in padded]) for i, name in enumerate(names)}


def thinned(features: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """[B, N, D] -> [B, k, D] and the places [B, k] that are left, k the same for all."""
    count = max(6, int(TOKENS * (0.05 + 0.95 * torch.rand((), generator=generator).item())))
    if torch.rand((), generator=generator) < 0.5:
        order = torch.rand(len(features), TOKENS, generator=generator)
    else:  # a patch of the picture: the places nearest to a point
        place = torch.stack(torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"), -1).view(1, -1, 2)
        point = torch.rand(len(features), 1, 2, generator=generator) * SIDE
        order = -(place - point).abs().amax(-1)
    kept = order.topk(count, 1).indices.sort(1).values.to(features.device)
    return features.gather(1, kept[..., None].expand(-1, -1, features.shape[-1])), kept


def answered(model, features: Tensor, kept: Tensor, compact: bool, batch: dict[str, Tensor]) -> Tensor:
    """Logits [B, L, words] of rows in which every question sees the picture and itself, not the other questions."""
    words = vocabulary()
    device, begin = features.device, torch.tensor([START, words.index("user"), words.index(":")])
    embed, count = model.get_input_embeddings(), features.shape[1]
    ids, rows = batch["ids"], len(features)
    front = embed(begin.to(device))[None].expand(rows, -1, -1)
    tokens = torch.cat([front, model.model.multi_modal_projector(features).to(front.dtype), embed(ids)], 1)
    shared, length = len(begin) + count, tokens.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril().repeat(rows, 1, 1)
    same = batch["question"][:, :, None] == batch["question"][:, None]
    seen[:, shared:, shared:] &= same
    picture = torch.arange(count, device=device).expand(rows, -1) if compact else kept
    behind = count if compact else TOKENS
    where = [torch.arange(len(begin), device=device).expand(rows, -1), len(begin) + picture]
    where.append(len(begin) + behind + batch["place"])
    states = model.model.language_model(
        inputs_embeds=tokens, attention_mask=seen[:, None], position_ids=torch.cat(where, 1), use_cache=False
    ).last_hidden_state[:, shared:]
    return model.lm_head(states)


def step_losses(model, heads: Heads, stage: Stage, batch: dict[str, Tensor], generator: torch.Generator):
    """Yield (name, loss, number right, number of questions) of one batch."""
    with torch.set_grad_enabled(stage.tower):
        seen = model.model.vision_tower(batch["pixels"], output_hidden_states=True)
        features = seen.hidden_states[-2][:, 1:]
    if stage.tower:
        truth = (batch[name] for name in ("labels", "count", "kind", "colour"))
        yield "scene", heads.loss(seen.pooler_output, features, *truth) * (0.5 if stage.answers else 1.0), 0, 0
    if stage.answers:
        kept = torch.arange(TOKENS, device=features.device).expand(len(features), -1)
        compact = bool(torch.rand((), generator=generator) < 0.5)
        if torch.rand((), generator=generator) < stage.thinned:
            # The tower must not learn from it: it would tell every patch about every other, and no token would matter.
            features, kept = thinned(features.detach(), generator)
        logits = answered(model, features, kept, compact, batch).float()
        target = batch["target"]
        ends, words = target == STOP, (target != STOP) & (target != NO_LOSS)
        right = (logits.argmax(-1) == target)[words].sum().item()
        yield "answer", F.cross_entropy(logits[words], target[words]), right, int(words.sum())
        yield "stop", F.cross_entropy(logits[ends], target[ends]), 0, 0


def optimiser(model, heads: Heads, stage: Stage) -> torch.optim.Optimizer:
    """AdamW over what the stage trains; positions, biases and norms do not decay."""
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


def run(model, heads: Heads, stage: Stage, steps: int, device: str) -> Iterator[str]:
    """Train one stage; yield a line of progress every 50 steps."""
    optimizer = optimiser(model, heads, stage)
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / 100) * (0.01 + 0.5 * (1 + math.cos(math.pi * s / steps)))
    )
    generator, begun, sums = torch.Generator().manual_seed(TRAINING_SEEDS[stage.name]), time.time(), {}
    right = asked = 0
    for step, batch in enumerate(DataLoader(Steps(stage, steps), batch_size=None, num_workers=1), start=1):
        batch = {name: part.to(device) for name, part in batch.items()}
        with torch.autocast(device, torch.bfloat16):
            losses = list(step_losses(model, heads, stage, batch, generator))
        optimizer.zero_grad()
        torch.stack([loss for _, loss, _, _ in losses]).sum().backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        for name, loss, good, all_ in losses:
            sums[name] = sums.get(name, 0.0) + loss.item()
            right, asked = right + good, asked + all_
        if step % 50 == 0 or step == steps:
            since = (step - 1) % 50 + 1
            means = "  ".join(f"{name} {total / since:.3f}" for name, total in sums.items())
            part = f"right {right / max(asked, 1):.3f}" if stage.answers else ""
            yield f"{stage.name} {step}/{steps}  {time.time() - begun:.0f} s  {means}  {part}"
            sums, right, asked = {}, 0, 0


def main() -> None:
    """Run the stages that are not done yet and save the model."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--share", type=float, default=1.0, help="of the steps, for a quick try")
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    model, heads = untrained().to(given.device).train(), Heads().to(given.device)
    report = {}
    for stage in STAGES:
        done = given.out / f"{stage.name}.pt"
        if not done.exists():
            steps, wall = max(1, int(stage.steps * given.share)), time.monotonic()
            for line in run(model, heads, stage, steps, given.device):
                print(line, flush=True)
            spent = {"wall_minutes": (time.monotonic() - wall) / 60, "steps": steps}
            spent |= {"batch": stage.batch, "seed": TRAINING_SEEDS[stage.name]}
            torch.save({"model": model.state_dict(), "heads": heads.state_dict(), "spent": spent}, done)
        state = torch.load(done, map_location=given.device)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        report[stage.name] = state["spent"]
    save(model.eval(), given.out / "model")
    (given.out / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"saved to {given.out / 'model'}")


if __name__ == "__main__":
    main()
