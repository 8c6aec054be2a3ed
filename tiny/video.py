"""A demonstration: four pictures as the frames of a video, of which one shows the objects that are asked about.

Nothing is trained: the bundled model has read single pictures only, 144 tokens, and four are more than the positions
(512) that it is made for. Whole answers of `generate` through `compress`, in float32; positions are numbered anew
unless asked otherwise. Prints a Markdown table. Intervals are those of a paired bootstrap over scenes, whose questions
go together.

python video.py --scenes 150
"""

import argparse
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image
from scenes import COUNT, SIZE, ask, background, draw
from transformers.utils.logging import disable_progress_bar

from vtcframe import Budget, ClsAttention, Even, Mean, Pipeline, Pruner, RandomPruner, Stage, TopK, VtcCls, compress
from vtcframe.data.processor import processor_inputs
from vtcframe.data.results import normalise
from vtcframe.data.sample import Sample
from vtcframe.inference.checkpoint import Backbone

SEED, FRAMES, BATCH = 20270822, 4, 32
TOKENS = 144, 72, 36  # of 4 x 144
MOST_TOKENS = 4  # of an answer; one that does not stop is wrong
SEEDS = 0, 1, 2
RANDOM = "random, 3 seeds, the same for every frame"
Positions = Literal["compact", "original"]
PRUNERS: dict[str, tuple[Pruner, ...]] = {
    "VtcCls, the same for every frame": (VtcCls(last=3),),
    "VtcCls, over all frames": (Pipeline((ClsAttention(3),), Mean(), Even(), TopK(), across="sample"),),
    RANDOM: tuple(RandomPruner(seed) for seed in SEEDS),
}


@dataclass(frozen=True)
class Asked:
    """A question about one scene, with all of its frames."""

    scene: int
    sample: Sample


def films(seed: int, scenes: int) -> Iterator[Asked]:
    """Yield the questions about each scene but those that count; its place among three backgrounds is drawn."""
    rng = np.random.default_rng(seed)
    for number in range(scenes):
        scene, place = draw(rng), int(rng.integers(FRAMES))
        frames = [Image.fromarray(scene.pixels if f == place else _empty(rng)) for f in range(FRAMES)]
        for question in ask(rng, scene):
            if question.kind != COUNT:
                name = f"{number}-{question.kind}"
                yield Asked(
                    number, Sample(name, question.text, (), question.answer, question.kind, pictures=tuple(frames))
                )


def _empty(rng: np.random.Generator) -> np.ndarray:
    """[96, 96, 3] uint8: background and noise of a scene, with nothing on it."""
    noise = rng.normal(0, rng.uniform(2, 9), (SIZE, SIZE, 1))
    return np.clip(np.asarray(background(rng), np.float32) + noise, 0, 255).astype(np.uint8)


def right(path: str, samples: Sequence[Sample], models: Mapping[str, Sequence[Stage]]) -> dict[str, np.ndarray]:
    """[questions] 0..1 for each name: which answers are right, the mean over its stages; none is the model itself."""
    model, processor = Backbone(path, dtype="float32").load()
    processor.tokenizer.model_max_length = sys.maxsize  # four pictures are more than it was trained for: see above
    verdicts: dict[str, list[float]] = {name: [] for name in models}
    for i in range(0, len(samples), BATCH):
        batch = samples[i : i + BATCH]
        inputs = processor_inputs(processor, batch)
        start = inputs["input_ids"].shape[1]
        for name, stages in models.items():
            found = []
            for one in [compress(model, stages=[stage]) for stage in stages] or [model]:
                out = one.generate(**inputs, do_sample=False, max_new_tokens=MOST_TOKENS)
                answers = processor.batch_decode(out[:, start:], skip_special_tokens=True)
                found.append([normalise(a) == normalise(str(s.answer)) for a, s in zip(answers, batch, strict=True)])
            verdicts[name] += np.mean(found, 0).tolist()
    return {name: np.array(own) for name, own in verdicts.items()}


def difference(own: np.ndarray, other: np.ndarray, scene: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """Return the 95 % interval of mean(own - other)."""
    apart, count = (np.bincount(scene, weights) for weights in (own - other, np.ones(len(scene))))
    apart, count = apart[count > 0], count[count > 0]
    pick = np.random.default_rng(SEED).integers(len(count), size=(draws, len(count)))
    low, high = np.quantile(apart[pick].sum(1) / count[pick].sum(1), (0.025, 0.975))
    return float(low), float(high)


def measure(path: str, asked: Sequence[Asked], positions: Positions) -> Iterator[str]:
    """Yield the lines of the table."""
    samples, scene = [one.sample for one in asked], np.array([one.scene for one in asked])
    models: dict[str, list[Stage]] = {"unpruned": []}
    for tokens in TOKENS:
        for name, pruners in PRUNERS.items():
            budget = Budget(tokens=tokens)
            models[f"{tokens} | {name}"] = [Stage("projector", one, budget, positions=positions) for one in pruners]
    found = right(path, samples, models)
    untouched = found.pop("unpruned")
    yield f"{len(samples)} questions about {len(set(scene.tolist()))} scenes, {FRAMES} frames, {positions} positions."
    yield ""
    yield "| tokens kept | method | accuracy | minus random (95 %) | minus unpruned (95 %) |"
    yield "|---|---|---|---|---|"
    yield f"| {FRAMES * 144} | unpruned | {untouched.mean():.3f} | | |"
    for name, own in found.items():
        random = found[f"{name.partition(' | ')[0]} | {RANDOM}"]
        apart = "" if own is random else _told(own, random, scene)
        yield f"| {name} | {own.mean():.3f} | {apart} | {_told(own, untouched, scene)} |"


def _told(own: np.ndarray, other: np.ndarray, scene: np.ndarray) -> str:
    low, high = difference(own, other, scene)
    return f"{own.mean() - other.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def main(arguments: Iterable[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Prune the tokens of four pictures, the frames of a video.")
    parser.add_argument("--model", default="vtcframe:tiny")
    parser.add_argument("--scenes", type=int, default=150)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--positions", choices=get_args(Positions), default="compact")
    given = parser.parse_args(None if arguments is None else list(arguments))
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    print("\n".join(measure(given.model, list(films(given.seed, given.scenes)), given.positions)))


if __name__ == "__main__":
    main()
