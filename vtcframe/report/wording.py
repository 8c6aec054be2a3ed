"""What the figures of a report allow to say, and what they do not."""

from collections.abc import Iterable, Iterator, Sequence

from vtcframe.report.runs import UNPRUNED, LoadedRuns
from vtcframe.report.statistics import Average, Difference, MethodResult, sets
from vtcframe.runs.baselines import BASELINES, CHANCE

FEW = 3  # seeds


def sentences(found: LoadedRuns, made: Sequence[MethodResult]) -> list[str]:
    """Say what the figures allow to say, and what they do not."""
    lines = []
    for (model, data), own in sets(made).items():
        lines += [f"{model}, {data}: {line}" for line in _said(own)]
    if found.unfinished:
        lines.append(f"Not finished, and not in here: {', '.join(found.unfinished)}.")
    several = {
        key: sorted({str(run.facts.get(key)) for run in found.runs})
        for key in dict.fromkeys(key for run in found.runs for key in run.facts if key.startswith("version of"))
    }
    lines += [f"The runs differ in the {key}: {', '.join(own)}." for key, own in several.items() if len(own) > 1]
    mixed = [run.name for run in found.runs if any("mixed with" in one for one in run.told["attempts"])]
    if mixed:
        lines.append(
            f"Rows of different configurations stand among each other (writer.existing: mix): {listed(mixed)}."
        )
    return [*lines, TIMES, SEEDS]


TIMES = (
    "The seconds are those of the runs themselves, on whatever machine and beside whatever else it did: they are no "
    "benchmark. What pruning saves is measured by vtcframe bench."
)
SEEDS = (
    "Each interval stands for itself: of twenty methods that differ in nothing one is shown to differ, by chance. "
    "Intervals tell how much other questions would change the figure; the spread, how much other seeds would."
)


def _said(own: Sequence[MethodResult]) -> Iterator[str]:
    if not any(one.method == UNPRUNED for one in own):
        yield "the untouched model was not asked, so nothing is told in percent of it."
    pruned = [one for one in own if one.method != UNPRUNED]
    there = {(one.name, _amount(one)) for one in pruned}
    amounts = dict.fromkeys(_amount(one) for one in pruned)
    missing = [f"{name} at {amount}" for name in BASELINES for amount in amounts if (name, amount) not in there]
    if missing:
        yield f"not run beside: {listed(missing)}."
    few = [labelled(one) for one in pruned if one.name == CHANCE[0] and len(one.values) < FEW]
    if few:
        yield f"drawn with fewer than three seeds, so that its spread says little: {listed(few)}."
    slower = [labelled(one) for one in pruned if one.pace is not None and one.pace > 1]
    if slower:
        yield f"SLOWER than the untouched model, as measured here: {listed(slower)}."
    tied = [labelled(one) for one in pruned if _verdict(one.against_unpruned) == "not shown to differ"]
    if tied:
        yield f"not shown to differ from the untouched model: {listed(tied)}."
    methods = [one for one in pruned if one.against_baseline is not None and one.name not in BASELINES]
    for verdict, words in (
        ("higher", "shown to be better than the better of random and uniform at the same budget"),
        ("not shown to differ", "not shown to differ from the better of random and uniform at the same budget"),
        ("lower", "WORSE than the better of random and uniform at the same budget"),
    ):
        if those := [labelled(one) for one in methods if _verdict(one.against_baseline) == verdict]:
            yield f"{words}: {listed(those)}."
    sizes = {len(one.grades) for one in own}
    if len(sizes) > 1:
        yield f"not all methods answered the same questions ({min(sizes)} to {max(sizes)}): see what failed."


def _amount(one: MethodResult) -> str:
    """Return a budget without whose it is: pictures are shrunk one by one."""
    return one.budget.partition(" a ")[0]


def _verdict(difference: Difference | None) -> str | None:
    return None if difference is None else difference.verdict


def labelled(one: MethodResult | Average) -> str:
    """Return method and budget."""
    return one.method if one.method == UNPRUNED else f"{one.method} at {one.budget}"


def listed(names: Iterable[str]) -> str:
    """Return names as a sentence has them."""
    return ", ".join(names)
