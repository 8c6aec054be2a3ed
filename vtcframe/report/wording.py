"""The summary of a report in sentences: conclusions that the figures support, and their limits."""

from collections.abc import Iterable, Iterator, Sequence

from vtcframe.report.runs import UNPRUNED, LoadedRuns
from vtcframe.report.statistics import Average, Difference, MethodResult, split_by_data
from vtcframe.runs.baselines import BASELINES, CHANCE

FEW_SEEDS = 3  # fewer seeds than this are reported


def write_sentences(loaded: LoadedRuns, results: Sequence[MethodResult]) -> list[str]:
    """Return the conclusions that the figures support, and the caveats."""
    lines = []
    for (model, data), group in split_by_data(results).items():
        lines += [f"{model}, {data}: {line}" for line in _data_sentences(group)]
    if loaded.unfinished:
        lines.append(f"Unfinished runs, not included: {', '.join(loaded.unfinished)}.")
    versions = {
        key: sorted({str(run.facts.get(key)) for run in loaded.runs})
        for key in dict.fromkeys(key for run in loaded.runs for key in run.facts if key.startswith("version of"))
    }
    lines += [f"The runs differ in the {key}: {', '.join(used)}." for key, used in versions.items() if len(used) > 1]
    mixed = [run.name for run in loaded.runs if any("mixed with" in attempt for attempt in run.manifest["attempts"])]
    if mixed:
        lines.append(f"Rows of different configurations are mixed (writer.existing: mix): {join_names(mixed)}.")
    return [*lines, TIMES, SEEDS]


TIMES = (
    "Seconds are those of the runs, on any machine and under any load: they are no benchmark. Use vtcframe bench to "
    "measure speedups."
)
SEEDS = (
    "Each interval is computed separately: among twenty methods without any difference, one is expected to be shown to "
    "differ by chance. Intervals reflect the choice of questions, the spread reflects the choice of seeds."
)


def _data_sentences(results: Sequence[MethodResult]) -> Iterator[str]:
    if not any(result.method == UNPRUNED for result in results):
        yield "the unpruned model was not run, so no figure is given in percent of it."
    pruned = [result for result in results if result.method != UNPRUNED]
    present = {(result.name, _amount(result)) for result in pruned}
    amounts = dict.fromkeys(_amount(result) for result in pruned)
    missing = [f"{name} at {amount}" for name in BASELINES for amount in amounts if (name, amount) not in present]
    if missing:
        yield f"missing baselines: {join_names(missing)}."
    few_seeds = [label(result) for result in pruned if result.name == CHANCE[0] and len(result.values) < FEW_SEEDS]
    if few_seeds:
        yield f"run with fewer than three seeds, so the spread is unreliable: {join_names(few_seeds)}."
    slower = [label(result) for result in pruned if result.time_ratio is not None and result.time_ratio > 1]
    if slower:
        yield f"SLOWER than the unpruned model, as measured in these runs: {join_names(slower)}."
    tied = [label(result) for result in pruned if _verdict(result.against_unpruned) == "not shown to differ"]
    if tied:
        yield f"not shown to differ from the unpruned model: {join_names(tied)}."
    methods = [result for result in pruned if result.against_baseline is not None and result.name not in BASELINES]
    for verdict, words in (
        ("higher", "shown to be better than the better of random and uniform at the same budget"),
        ("not shown to differ", "not shown to differ from the better of random and uniform at the same budget"),
        ("lower", "WORSE than the better of random and uniform at the same budget"),
    ):
        if names := [label(result) for result in methods if _verdict(result.against_baseline) == verdict]:
            yield f"{words}: {join_names(names)}."
    sizes = {len(result.grades) for result in results}
    if len(sizes) > 1:
        yield f"methods answered different numbers of questions ({min(sizes)} to {max(sizes)}): see the failed samples."


def _amount(result: MethodResult) -> str:
    """Return the budget without "a image" or "a view", because downsampling always applies to single pictures."""
    return result.budget.partition(" a ")[0]


def _verdict(difference: Difference | None) -> str | None:
    return None if difference is None else difference.verdict


def label(result: MethodResult | Average) -> str:
    """Return method and budget as text."""
    return result.method if result.method == UNPRUNED else f"{result.method} at {result.budget}"


def join_names(names: Iterable[str]) -> str:
    """Join names with commas."""
    return ", ".join(names)
