"""Train the tiny model from nothing, in four stages of a fixed number of steps.

encoder: the vision tower learns what is in a scene, from [CLS] and from its patches.
reader: with the tower frozen, projector and language model learn to answer.
joint: everything learns, and in half of the batches visual tokens are thinned without looking at them: drawn at
    random, or a random rectangle of the grid is kept; positions are numbered anew or keep their gaps.
polish: the same once more, warmed up again.

A stage that is finished lies in OUT/stage-NAME.pt; a run that was killed goes on after the last of them.
"""

import argparse
import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import PATCH, SIDE, START, STOP, WIDTH, save, tokenizer, untrained
from scenes import FORMS, LETTERS, NAMES, NUMBERS, SHAPES, TRAINING_SEEDS, Scene, ask, draw
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

PATCHES = SIDE**2
KINDS = [*FORMS, "stop"]  # what a predicted token is
NOTHING, IGNORED = -1, -100
PREFIX, PADDING = -2, -1  # owners of tokens that belong to no question
BACKGROUND_WEIGHT = 0.15  # most patches show nothing
PAIRS = [f"{color} {shape}" for color in NAMES for shape in SHAPES]
LABELS = {label: i for i, label in enumerate([*PAIRS, *(f"letter {x}" for x in LETTERS), *NAMES, *SHAPES])}
CENTRES = (np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).reshape(-1, 2) + 0.5) * PATCH  # x, y


@dataclass(frozen=True)
class Stage:
    """One schedule: linear warm-up over 100 steps, then a cosine."""

    name: str
    steps: int
    batch: int
    rate: float
    scene: float = 0.0  # weight of the loss on what is in the scene; 0 freezes the tower
    answers: bool = True
    thinned: float = 0.0  # fraction of batches

    @property
    def seed(self) -> int:
        """Seed of its scenes and of its own draws."""
        return TRAINING_SEEDS[self.name]


STAGES = (
    Stage("encoder", steps=1600, batch=32, rate=1e-3, scene=1.0, answers=False),
    Stage("reader", steps=500, batch=24, rate=1.5e-3),
    Stage("joint", steps=1650, batch=24, rate=8e-4, scene=0.5, thinned=0.5),
    Stage("polish", steps=800, batch=24, rate=8e-4, scene=0.5, thinned=0.5),
)


class Heads(nn.Module):
    """What the tower is supervised by; thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = nn.Linear(WIDTH, len(LABELS))
        self.count = nn.Linear(WIDTH, len(NUMBERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.kind = nn.Linear(WIDTH, len(SHAPES) + len(LETTERS) + 1)
        self.color = nn.Linear(WIDTH, len(NAMES) + 1)


@dataclass(frozen=True)
class Batch:
    """Scenes, what the heads should say of them, and all their questions in one row each."""

    pixels: Tensor  # [B, 3, 96, 96]
    labels: Tensor  # [B, 56] 0 or 1
    count: Tensor  # [B]
    kind: Tensor  # [B, patches]; IGNORED at the rim of a thing
    color: Tensor  # [B, patches]
    ids: Tensor  # [B, T] questions and answers
    owner: Tensor  # [B, T] which question a token belongs to
    offset: Tensor  # [B, T] place in its question
    target: Tensor  # [B, T] the next token where it is answer or </s>, else IGNORED
    asked: Tensor  # [B, T] index into KINDS, else NOTHING


class Scenes:
    """Batches drawn on the fly."""

    def __init__(self, rng: np.random.Generator, device: str) -> None:
        self.rng, self.device, self.tokenizer = rng, device, tokenizer()

    def batch(self, size: int) -> Batch:
        """Draw `size` scenes and every question that they allow."""
        scenes = [draw(self.rng) for _ in range(size)]
        pixels = torch.from_numpy(np.stack([scene.pixels for scene in scenes])).permute(0, 3, 1, 2)
        seen = [torch.from_numpy(np.stack(part)) for part in zip(*map(_seen, scenes), strict=True)]
        rows = [torch.tensor(self._row(scene)) for scene in scenes]  # each [T, 5]
        width = max(map(len, rows))
        empty = torch.tensor([0, PADDING, 0, IGNORED, NOTHING])
        text = torch.stack([torch.cat([row, empty.expand(width - len(row), 5)]) for row in rows])
        parts = [pixels.float() / 127.5 - 1, *seen, *text.unbind(-1)]
        return Batch(*(part.to(self.device) for part in parts))

    def _row(self, scene: Scene) -> list[tuple[int, int, int, int, int]]:
        row = []
        for owner, question in enumerate(ask(self.rng, scene)):
            prompt = self.tokenizer.encode(f"{question.text} assistant :", add_special_tokens=False)
            answer = self.tokenizer.convert_tokens_to_ids(question.answer)
            targets = [IGNORED] * (len(prompt) - 1) + [answer, STOP, IGNORED]
            kinds = [NOTHING] * (len(prompt) - 1) + [KINDS.index(question.kind), KINDS.index("stop"), NOTHING]
            ids = [*prompt, answer, STOP]
            row += zip(ids, [owner] * len(ids), range(len(ids)), targets, kinds, strict=True)
        return row


def _seen(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, count, and for each patch kind and colour of what its centre lies on."""
    labels = np.zeros(len(LABELS), np.float32)
    kind = np.full(PATCHES, len(SHAPES) + len(LETTERS))
    color = np.full(PATCHES, len(NAMES))
    for thing in scene.things:
        distance = np.hypot(*(CENTRES - (thing.x, thing.y)).T)
        inside = distance < max(thing.radius, PATCH * 0.71)
        rim = ~inside & (distance < thing.radius * 1.3)
        if thing.color is None:
            labels[LABELS[f"letter {thing.name}"]] = 1
            kind[inside] = len(SHAPES) + LETTERS.index(thing.name)
        else:
            labels[[LABELS[f"{thing.color} {thing.name}"], LABELS[thing.color], LABELS[thing.name]]] = 1
            kind[inside], color[inside] = SHAPES.index(thing.name), NAMES.index(thing.color)
        kind[rim] = color[rim] = IGNORED
    return labels, np.asarray(len(scene.shapes) - 1), kind, color


def kept_tokens(rng: np.random.Generator, size: int) -> np.ndarray:
    """[size, k] sorted indices of patches, k >= 4: two times in three drawn at random, else a rectangle."""
    if rng.random() < 2 / 3:
        k = max(4, round(PATCHES * rng.uniform(0.03, 1)))
        return np.sort(rng.random((size, PATCHES)).argsort(1)[:, :k])
    high, wide = rng.integers(2, SIDE + 1, 2)
    corner = rng.integers(0, SIDE - high + 1, size) * SIDE + rng.integers(0, SIDE - wide + 1, size)
    return corner[:, None] + (np.arange(high)[:, None] * SIDE + np.arange(wide)).flatten()


class Trainer:
    """The model, its supervising heads, and the losses."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.model: LlavaForConditionalGeneration = untrained().to(device)  # pyright: ignore[reportArgumentType]
        self.heads = Heads().to(device)
        self.tower = self.model.get_submodule("model.vision_tower")
        self.projector = self.model.get_submodule("model.multi_modal_projector")
        self.reader = self.model.get_submodule("model.language_model")
        self.head = self.model.get_submodule("lm_head")
        self.start = torch.tensor([START, *tokenizer().encode("user :", add_special_tokens=False)], device=device)

    def loss(self, stage: Stage, batch: Batch, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and, by name, hits or losses whose means are worth a look."""
        with torch.autocast(self.device, torch.bfloat16), torch.set_grad_enabled(stage.scene > 0):
            seen = self.tower(batch.pixels, output_hidden_states=True)
        features = seen.hidden_states[-2][:, 1:]
        total, shown = torch.zeros((), device=self.device), {}
        if stage.scene:
            scene, shown = self._scene_loss(seen.pooler_output, features, batch)
            total = total + stage.scene * scene
        if stage.answers:
            thin = rng.random() < stage.thinned
            kept = kept_tokens(rng, len(features)) if thin else np.tile(np.arange(PATCHES), (len(features), 1))
            index = torch.from_numpy(kept).to(self.device)
            answers, more = self._answer_loss(features, index, bool(rng.random() < 0.5), batch)
            total, shown = total + answers, shown | more
        return total, shown

    def _scene_loss(self, pooled: Tensor, features: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        heads = self.heads
        with torch.autocast(self.device, torch.bfloat16):
            normed = heads.norm(features)
            labels, count, kind, color = (
                x.float() for x in (heads.labels(pooled), heads.count(pooled), heads.kind(normed), heads.color(normed))
            )
        whole = F.binary_cross_entropy_with_logits(labels, batch.labels, reduction="none").sum(1).mean() * 0.25
        whole = whole + 0.5 * F.cross_entropy(count, batch.count)
        local = torch.zeros((), device=self.device)
        for logits, target in ((kind, batch.kind), (color, batch.color)):
            weight = torch.ones(logits.shape[-1], device=self.device)
            weight[-1] = BACKGROUND_WEIGHT
            local = local + F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight, ignore_index=IGNORED)
        thing = (batch.kind >= 0) & (batch.kind < kind.shape[-1] - 1)
        present = batch.labels[:, : len(PAIRS)] > 0
        shown = {"cls": whole[None], "local": local[None], "patch": kind.argmax(-1)[thing] == batch.kind[thing]}
        return whole + local, shown | {"pairs": (labels[:, : len(PAIRS)] > 0)[present]}

    def _answer_loss(
        self, features: Tensor, kept: Tensor, compact: bool, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Questions of a scene share one image: each sees the prefix and itself. `kept` [B, k] indexes patches."""
        size, k, first = len(features), kept.shape[1], len(self.start)
        prefix = first + k
        with torch.autocast(self.device, torch.bfloat16):
            embed = self.reader.get_submodule("embed_tokens")
            visual = self.projector(features.gather(1, kept[..., None].expand(-1, -1, WIDTH))).float()
            start = embed(self.start).expand(size, -1, -1)
            places = torch.arange(k, device=self.device).expand(size, -1) if compact else kept
            after = prefix if compact else first + PATCHES
            position = [torch.arange(first, device=self.device).expand(size, -1), first + places, after + batch.offset]
            owner = F.pad(batch.owner, (prefix, 0), value=PREFIX)
            width = owner.shape[1]
            causal = torch.ones(width, width, dtype=torch.bool, device=self.device).tril()
            own = (owner[:, :, None] == owner[:, None]) | (owner[:, None] == PREFIX)
            out = self.reader(
                inputs_embeds=torch.cat([start, visual, embed(batch.ids)], 1),
                attention_mask=(own & causal)[:, None],  # explicit: with gaps and none, positions would imply another
                position_ids=torch.cat(position, 1),
                use_cache=False,
            ).last_hidden_state[:, prefix:]
            told = batch.target != IGNORED
            logits = self.head(out[told]).float()
        target, asked = batch.target[told], batch.asked[told]
        hit = logits.argmax(-1) == target
        loss = F.cross_entropy(logits, target)
        return loss, {"answers": loss[None]} | {kind: hit[asked == i] for i, kind in enumerate(KINDS)}

    def run(self, stage: Stage, steps: int) -> None:
        """Train one stage; a line every 50 steps."""
        torch.manual_seed(stage.seed)
        rng = np.random.default_rng(stage.seed)
        scenes = Scenes(rng, self.device)
        trained = [] if not stage.answers else [self.projector, self.reader, self.head]
        trained += [self.tower, self.heads] if stage.scene else []
        named = [pair for part in trained for pair in part.named_parameters()]
        decayed = [p for name, p in named if p.ndim > 1 and "position" not in name]
        others = [p for name, p in named if p.ndim < 2 or "position" in name]
        groups = [{"params": decayed, "weight_decay": 0.03}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98))
        shown, began = defaultdict(list), time.monotonic()
        for step in range(steps):
            rate = stage.rate * min(1, (step + 1) / 100) * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, more = self.loss(stage, scenes.batch(stage.batch), rng)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
            optimizer.step()
            for name, values in more.items():
                shown[name].append(values.detach().float())
            if (step + 1) % 50 == 0 or step + 1 == steps:
                means = " ".join(f"{name} {torch.cat(values).mean():.3f}" for name, values in shown.items())
                print(f"{stage.name} {step + 1}/{steps} {time.monotonic() - began:.0f} s {means}", flush=True)
                shown.clear()


def main() -> None:
    """Train, or go on training, and write the model."""
    parser = argparse.ArgumentParser(description="Train the tiny model from nothing.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="0.01 tries everything in a minute")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    trainer = Trainer(given.device)
    report: dict[str, dict[str, float]] = {}
    for stage in STAGES:
        saved = given.out / f"stage-{stage.name}.pt"
        if saved.exists():
            state = torch.load(saved, map_location=given.device)
            trainer.model.load_state_dict(state["model"])
            trainer.heads.load_state_dict(state["heads"])
            report = state["report"]
            continue
        steps, wall, cpu = max(2, round(stage.steps * given.steps_scale)), time.monotonic(), time.process_time()
        trainer.run(stage, steps)
        spent = {"wall_minutes": (time.monotonic() - wall) / 60, "cpu_minutes": (time.process_time() - cpu) / 60}
        report = report | {stage.name: {"steps": steps, "batch": stage.batch, "seed": stage.seed} | spent}
        state = {"model": trainer.model.state_dict(), "heads": trainer.heads.state_dict(), "report": report}
        torch.save(state, saved)
    save(trainer.model, given.out / "model")
    (given.out / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
