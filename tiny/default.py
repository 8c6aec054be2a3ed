"""Design a default on drawn scenes of one seed and report it on those of another, on the bundled model.

    python default.py design     candidates against each other
    python default.py report     the default beside baselines and every registered method, once it is chosen

What counts is accuracy on attribute questions, the mean over all fractions kept; of those within half a point of the
best, the one that leaves most to [CLS], because scenes on which nothing but objects stands out flatter a selector that
looks for what differs. Counting, which this model reads from the background too, is told apart. Whole answers by the
package's own predict loop, in float32 with original positions. Intervals are those of a paired bootstrap over scenes,
whose questions go together. Prints Markdown.
"""

import argparse
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import numpy as np
from measure_answers import RATIOS, SEEDS, rows
from PIL import Image
from scenes import COUNT, ask, draw
from transformers.utils.logging import disable_progress_bar
from video import difference

from vtcframe import (
    Budget,
    ClsAttention,
    Even,
    Mean,
    Method,
    Pipeline,
    Pruner,
    RandomPruner,
    Selector,
    UniformPruner,
    VtcCls,
)
from vtcframe.assets import bundled
from vtcframe.components.diverse_selectors import Coverage, Deduplicate, Dpp, MaxMin, Mixed
from vtcframe.components.selectors import Grid, LocalGlobal, TopK
from vtcframe.data.sample import Sample
from vtcframe.errors import UsageError
from vtcframe.methods.cls_coverage import ClsCoverage
from vtcframe.registry import entries
from vtcframe.runs.comparison import Comparison

DESIGN_SEED, REPORT_SEED = 20270911, 20270912
RANDOM = f"random, {len(SEEDS)} seeds"
GROUPS = "attributes", "counting"
SHALLOW = (
    0  # of the three blocks that feed the projector, for methods whose published one is a shallow one of CLIP-L's 23
)
Pruners = Mapping[str, Sequence[Pruner]]  # a name and what it is the mean of
Verdicts = dict[str, np.ndarray]  # name -> [questions, ratios] 0..1


@dataclass(frozen=True)
class Questions:
    """Questions about drawn scenes, and the scene that each is about."""

    samples: list[Sample]
    scene: np.ndarray

    @classmethod
    def drawn(cls, seed: int, scenes: int) -> "Questions":
        """Draw them, none of them in a file."""
        rng, samples, scene = np.random.default_rng(seed), [], []
        for number in range(scenes):
            drawn = draw(rng)
            picture = Image.fromarray(drawn.pixels)
            for one in ask(rng, drawn):
                samples.append(Sample(f"{number}-{one.kind}", one.text, (), one.answer, one.kind, pictures=(picture,)))
                scene.append(number)
        return cls(samples, np.array(scene))

    def group(self, name: str) -> np.ndarray:
        """[questions] bool."""
        counting = np.array([sample.type == COUNT for sample in self.samples])
        return counting if name == "counting" else ~counting


def candidates() -> dict[str, list[Pruner]]:
    """Return what is tried: [CLS] of the last block, of the last three or none, and ways to look beyond it."""
    beyond = [
        TopK(),
        *(Mixed(Coverage(), share) for share in (0.125, 0.25, 0.5, 0.75)),
        *(Mixed(MaxMin(), share) for share in (0.25, 0.5, 0.75)),
        *(Mixed(Grid(), share) for share in (0.5, 0.75)),
        Mixed(Dpp(), 0.5),
        Dpp(),
        Deduplicate(),
        LocalGlobal(window=3, layer=0),
    ]
    found = {f"last={last}, {one}": [_by_cls(one, last)] for last in (1, 3) for one in beyond}
    return found | {f"no scores, {one}": [_by_cls(one)] for one in (Coverage(), MaxMin())}


def _by_cls(selector: Selector, last: int = 0) -> Pruner:
    return Pipeline((ClsAttention(last),) if last else (), Mean(), Even(), selector)


def registered() -> dict[str, list[Pruner]]:
    """Return every registered method that acts before the language model and needs no option."""
    made: dict[str, list[Pruner]] = {}
    for method in (entry.load() for entry in entries() if entry.kind == "pruner"):
        if issubclass(method, Method) and method not in (RandomPruner, UniformPruner, ClsCoverage):
            own = {f.name: f.default for f in fields(method)}  # pyright: ignore[reportArgumentType] (they are dataclasses)
            if MISSING not in own.values():
                shallow = method.card.site == "projector" and own.get("layer", 0) > SHALLOW
                one = method(**({"layer": SHALLOW} if shallow else {}))
                made |= {str(one): [one]} if _at_projector(one) else {}
    return made


def _at_projector(pruner: Pruner) -> bool:
    try:
        return [stage.at for stage in pruner.stages(Budget(ratio=0.5))] == ["projector"]
    except ValueError:  # it has no use for one budget
        return False


def baselines() -> dict[str, list[Pruner]]:
    """Return what any method has to beat."""
    return {RANDOM: [RandomPruner(seed) for seed in SEEDS], "uniform": [UniformPruner()], str(VtcCls(3)): [VtcCls(3)]}


def verdicts(model: Path, questions: Questions, pruners: Pruners) -> tuple[Verdicts, dict[str, str]]:
    """Answer all questions; return what was right, and why where a pruner cannot be run."""
    right: Verdicts = {}
    refused: dict[str, str] = {}
    for name, seeds in pruners.items():  # one by one: what one needs another model may not have
        try:
            answered = rows(model, questions.samples, Comparison(list(seeds), [Budget(ratio=r) for r in RATIOS]))
        except (UsageError, LookupError, ValueError) as error:
            refused[name] = " ".join(str(error).split())
            continue
        found: dict[tuple[str, float], list[bool]] = {}
        for row in answered:
            ratio = row.budget["ratio"] if row.budget else 1.0
            found.setdefault((str(row.label), ratio), []).append(bool(row.correct))
        right["unpruned"] = np.tile(np.array(found["unpruned", 1.0], float)[:, None], len(RATIOS))
        of_seeds = [[found[str(one), ratio] for ratio in RATIOS] for one in seeds]
        right[name] = np.mean(of_seeds, 0).T
    return right, refused


def design(questions: Questions, right: Verdicts) -> Iterator[str]:
    """Yield the lines of a table: accuracy on attributes by fraction, the means of both groups, the best first."""
    attributes, counting = (questions.group(name) for name in GROUPS)
    yield "| scores, selector | " + " | ".join(f"{r:.2%}" for r in RATIOS) + " | mean, attributes | mean, counting |"
    yield "|---" * (len(RATIOS) + 3) + "|"
    for name, own in sorted(right.items(), key=lambda item: -item[1][attributes].mean()):
        by_ratio = " | ".join(f"{x:.3f}" for x in own[attributes].mean(0))
        yield f"| {name} | {by_ratio} | {own[attributes].mean():.3f} | {own[counting].mean():.3f} |"


def report(questions: Questions, right: Verdicts) -> Iterator[str]:
    """Yield tables: accuracy of each method, and the chosen one's minus it with a 95 % interval."""
    chosen = str(ClsCoverage())
    for group in GROUPS:
        mask = questions.group(group)
        scene = questions.scene[mask]
        yield f"**{group}**, {mask.sum()} questions: accuracy ({chosen} minus it, 95 %)"
        yield ""
        yield "| method | " + " | ".join(f"{r:.2%}" for r in RATIOS) + " | mean |"
        yield "|---" * (len(RATIOS) + 2) + "|"
        for name, own in sorted(right.items(), key=lambda item: -item[1][mask].mean()):
            cells = [_told(right[chosen][mask, i], own[mask, i], scene, name == chosen) for i in range(len(RATIOS))]
            cells.append(_told(right[chosen][mask].mean(1), own[mask].mean(1), scene, name == chosen))
            yield f"| {name} | " + " | ".join(cells) + " |"
        yield ""


def _told(chosen: np.ndarray, own: np.ndarray, scene: np.ndarray, same: bool) -> str:
    if same:
        return f"{own.mean():.3f}"
    low, high = difference(chosen, own, scene)
    return f"{own.mean():.3f} ({chosen.mean() - own.mean():+.3f}: {low:+.3f} to {high:+.3f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Design a default on one seed, report it on another.")
    parser.add_argument("step", choices=("design", "report"))
    parser.add_argument("--model", default="vtcframe:tiny")
    parser.add_argument("--scenes", type=int, default=100)
    given = parser.parse_args(arguments)
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    designing = given.step == "design"
    questions = Questions.drawn(DESIGN_SEED if designing else REPORT_SEED, given.scenes)
    pruners = baselines() | (candidates() if designing else registered() | {str(ClsCoverage()): [ClsCoverage()]})
    right, refused = verdicts(Path(bundled(given.model)), questions, pruners)
    print(f"{len(questions.samples)} questions about {given.scenes} scenes, seed", end=" ")
    print(DESIGN_SEED if designing else REPORT_SEED, end="\n\n")
    print("\n".join(design(questions, right) if designing else report(questions, right)))
    for name, why in refused.items():
        print(f"- {name}: n/a, {why}")


if __name__ == "__main__":
    main()
