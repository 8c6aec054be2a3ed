"""A demonstration with four pictures as the frames of a video, of which one shows the objects of the questions.

Nothing is trained for this: the bundled model was trained on single pictures of 144 tokens, and four pictures exceed
its 512 positions. Answers are generated through `compress`, in float32, with compact positions by default. Prints a
Markdown table. Intervals are paired bootstrap intervals over scenes; the questions of a scene are resampled together.

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
TOKENS = 144, 72, 36  # kept, of 4 x 144
MOST_TOKENS = 4  # of an answer; an answer that does not stop is wrong
SEEDS = 0, 1, 2
RANDOM = "random, 3 seeds, the same for every frame"
Positions = Literal["compact", "original"]
PRUNERS: dict[str, tuple[Pruner, ...]] = {
    "VtcCls, the same for every frame": (VtcCls(last=3),),
    "VtcCls, over all frames": (Pipeline((ClsAttention(3),), Mean(), Even(), TopK(), across="sample"),),
    RANDOM: tuple(RandomPruner(seed) for seed in SEEDS),
}


@dataclass(frozen=True)
class VideoQuestion:
    """A question about a scene, with all frames of its video."""

    scene: int
    sample: Sample


def video_questions(seed: int, scenes: int) -> Iterator[VideoQuestion]:
    """Yield all questions but counting for each scene, which is placed at random among three empty frames."""
    rng = np.random.default_rng(seed)
    for number in range(scenes):
        scene = draw(rng)
        place = int(rng.integers(FRAMES))
        frames = [Image.fromarray(scene.pixels if f == place else _empty(rng)) for f in range(FRAMES)]
        for question in ask(rng, scene):
            if question.kind != COUNT:
                name = f"{number}-{question.kind}"
                yield VideoQuestion(
                    number, Sample(name, question.text, (), question.answer, question.kind, pictures=tuple(frames))
                )


def _empty(rng: np.random.Generator) -> np.ndarray:
    """Return the background and noise of a scene without objects, [96, 96, 3] uint8."""
    noise = rng.normal(0, rng.uniform(2, 9), (SIZE, SIZE, 1))
    return np.clip(np.asarray(background(rng), np.float32) + noise, 0, 255).astype(np.uint8)


def grade_models(path: str, samples: Sequence[Sample], models: Mapping[str, Sequence[Stage]]) -> dict[str, np.ndarray]:
    """Return grades [questions] in 0..1 for each name, averaged over its stages; no stages means the unpruned model."""
    model, processor = Backbone(path, dtype="float32").load()
    processor.tokenizer.model_max_length = sys.maxsize  # four pictures exceed the maximum length, see above
    grades: dict[str, list[float]] = {name: [] for name in models}
    for i in range(0, len(samples), BATCH):
        batch = samples[i : i + BATCH]
        inputs = processor_inputs(processor, batch)
        start = inputs["input_ids"].shape[1]
        for name, stages in models.items():
            batch_grades = []
            for compressed in [compress(model, stages=[stage]) for stage in stages] or [model]:
                out = compressed.generate(**inputs, do_sample=False, max_new_tokens=MOST_TOKENS)
                answers = processor.batch_decode(out[:, start:], skip_special_tokens=True)
                pairs = zip(answers, batch, strict=True)
                batch_grades.append([normalise(answer) == normalise(str(sample.answer)) for answer, sample in pairs])
            grades[name] += np.mean(batch_grades, 0).tolist()
    return {name: np.array(values) for name, values in grades.items()}


def difference(
    grades: np.ndarray, others: np.ndarray, scene: np.ndarray, resamples: int = 10_000
) -> tuple[float, float]:
    """Return the 95 % interval of mean(grades - others), a paired bootstrap over scenes."""
    sums = np.bincount(scene, grades - others)
    count = np.bincount(scene, np.ones(len(scene)))
    sums = sums[count > 0]
    count = count[count > 0]
    pick = np.random.default_rng(SEED).integers(len(count), size=(resamples, len(count)))
    low, high = np.quantile(sums[pick].sum(1) / count[pick].sum(1), (0.025, 0.975))
    return float(low), float(high)


def measure(path: str, questions: Sequence[VideoQuestion], positions: Positions) -> Iterator[str]:
    """Yield the lines of the table."""
    samples = [question.sample for question in questions]
    scene = np.array([question.scene for question in questions])
    models: dict[str, list[Stage]] = {"unpruned": []}
    for tokens in TOKENS:
        for name, pruners in PRUNERS.items():
            budget = Budget(tokens=tokens)
            models[f"{tokens} | {name}"] = [
                Stage("projector", pruner, budget, positions=positions) for pruner in pruners
            ]
    grades = grade_models(path, samples, models)
    unpruned = grades.pop("unpruned")
    yield f"{len(samples)} questions about {len(set(scene.tolist()))} scenes, {FRAMES} frames, {positions} positions."
    yield ""
    yield "| tokens kept | method | accuracy | minus random (95 %) | minus unpruned (95 %) |"
    yield "|---|---|---|---|---|"
    yield f"| {FRAMES * 144} | unpruned | {unpruned.mean():.3f} | | |"
    for name, values in grades.items():
        random = grades[f"{name.partition(' | ')[0]} | {RANDOM}"]
        to_random = "" if values is random else _difference_cell(values, random, scene)
        yield f"| {name} | {values.mean():.3f} | {to_random} | {_difference_cell(values, unpruned, scene)} |"


def _difference_cell(grades: np.ndarray, others: np.ndarray, scene: np.ndarray) -> str:
    low, high = difference(grades, others, scene)
    return f"{grades.mean() - others.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def main(arguments: Iterable[str] | None = None) -> None:
    """Run the demonstration and print its table."""
    parser = argparse.ArgumentParser(description="Prune the tokens of four pictures, the frames of a video.")
    parser.add_argument("--model", default="vtcframe:tiny")
    parser.add_argument("--scenes", type=int, default=150)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--positions", choices=get_args(Positions), default="compact")
    options = parser.parse_args(None if arguments is None else list(arguments))
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    print("\n".join(measure(options.model, list(video_questions(options.seed, options.scenes)), options.positions)))


if __name__ == "__main__":
    main()
