"""The figures of a report: scores over seeds, paired differences with intervals, and costs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy.stats import binomtest, bootstrap

from vtcframe.data.results import Prediction, mean_seconds
from vtcframe.report.runs import UNPRUNED, Run
from vtcframe.runs.baselines import BASELINES, CHANCE

RESAMPLES = 2000  # of the bootstrap
LEVEL = 0.95  # confidence level of intervals
BATCH_NUMBERS = 2_000_000  # random numbers per bootstrap batch, which limits the memory
SHARED_KEYS = "picture", "group"  # keys of a row's meta that mark dependent questions
Grades = Mapping[str, float]  # question id -> correctness of the answer, mean over seeds


@dataclass(frozen=True)
class Difference:
    """Mean of the paired differences in grade, with its interval; the interval is None for fewer than two units."""

    mean: float
    interval: tuple[float, float] | None
    mcnemar: float | None  # p-value of the exact McNemar test; None unless every grade is 0 or 1
    units: int  # number of resampled units: pictures, groups or questions

    @property
    def verdict(self) -> str:
        """The conclusion that the interval supports: lower, higher, or not shown to differ."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "not shown to differ"
        return "lower" if self.mean < 0 else "higher"


@dataclass(frozen=True)
class MethodResult:
    """The figures of one method at one budget, over all seeds, for one model and one set of questions."""

    model: str
    data: str
    method: str
    budget: str  # as text
    run: str | None  # name of the run of all rows; None if the seeds are from several runs
    values: tuple[float | None, ...]  # headline score of each seed
    scores: Mapping[str, float | None]  # mean over seeds of each column
    grades: Grades = field(repr=False)
    units: Mapping[str, Any] = field(repr=False)  # question id -> bootstrap unit
    tokens_before: float  # visual tokens of the unpruned model
    tokens_kept: float
    structural_tokens: float
    tokens_per_layer: float  # visual tokens in a layer of the language model, mean over layers
    kv_bytes: float | None
    seconds: float | None
    time_ratio: float | None = None  # seconds / seconds of the unpruned model, in the same run or else its first run
    same_run: bool = True  # whether both times of `time_ratio` are of the same run
    against_unpruned: Difference | None = None
    baseline: str | None = None  # the better of random and uniform at this budget
    against_baseline: Difference | None = None
    percent: float | None = None  # headline score in percent of the unpruned model's

    @property
    def name(self) -> str:
        """The method without its options."""
        return self.method.partition("(")[0]

    @property
    def value(self) -> float | None:
        """Mean of the headline score over seeds."""
        return mean(self.values)

    @property
    def spread(self) -> tuple[float, float, float] | None:
        """Minimum, maximum and standard deviation over seeds; None for fewer than two values."""
        values = [value for value in self.values if value is not None]
        return (min(values), max(values), stdev(values)) if len(values) > 1 else None


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean; None if a value is None or there are no values."""
    numbers = list(values)
    present = [value for value in numbers if value is not None]
    return fmean(present) if present and len(present) == len(numbers) else None


def collect_results(runs: Sequence[Run]) -> list[MethodResult]:
    """Return the results of all methods and budgets.

    They are sorted by model and data, then the unpruned model, baselines and other methods, then by budget. If several
    runs hold the same answers (each holds those of the unpruned model), the first run counts.
    """
    rows: dict[tuple[str, ...], dict[str, tuple[Run, list[Prediction]]]] = {}
    unpruned_rows: dict[tuple[str, str, str], list[Prediction]] = {}
    for run in runs:
        for method, seed, budget, row in run.labelled_rows():
            if method == UNPRUNED:
                unpruned_rows.setdefault((run.model, run.data, run.name), []).append(row)
            owner, owner_rows = rows.setdefault((run.model, run.data, method, budget), {}).setdefault(seed, (run, []))
            if owner is run:
                owner_rows.append(row)
    results = [_method_result(key, seeds) for key, seeds in rows.items()]
    unpruned = {(result.model, result.data): result for result in results if result.method == UNPRUNED}
    results = [
        _compare_to_unpruned(result, unpruned.get((result.model, result.data)), unpruned_rows) for result in results
    ]
    results = [_compare_to_baselines(result, results) for result in results]
    data_rank = {key: rank for rank, key in enumerate(dict.fromkeys((run.model, run.data) for run in runs))}
    method_rank = {method: rank for rank, method in enumerate(dict.fromkeys(result.method for result in results))}
    baseline_rank = {name: rank for rank, name in enumerate((UNPRUNED, *BASELINES))}
    return sorted(
        results,
        key=lambda result: (
            data_rank[result.model, result.data],
            baseline_rank.get(result.name, len(baseline_rank)),
            method_rank[result.method],
            -result.tokens_per_layer,
            result.budget,
        ),
    )


def _method_result(key: tuple[str, ...], seeds: Mapping[str, tuple[Run, list[Prediction]]]) -> MethodResult:
    run = next(iter(seeds.values()))[0]
    run_names = {run.name for run, _ in seeds.values()}
    seed_rows = [rows for _, rows in sorted(seeds.values(), key=lambda pair: str(pair[1][0].label))]
    scores = [run.score(rows) for rows in seed_rows]
    grades: dict[str, list[float | None]] = {}
    for rows in seed_rows:
        for row in rows:
            grades.setdefault(row.id, []).append(run.grade(row))
    means = {name: mean(values) for name, values in grades.items() if len(values) == len(seed_rows)}
    all_rows = [row for rows in seed_rows for row in rows]
    return MethodResult(
        *key,
        run=run.name if len(run_names) == 1 else None,
        values=tuple(list(score.values())[-1].value if score else None for score in scores),
        scores={name: mean(score[name].value for score in scores if name in score) for name in scores[0]},
        grades={name: value for name, value in means.items() if value is not None},
        units={row.id: bootstrap_unit(row) for row in seed_rows[0]},
        tokens_before=fmean(row.visual_tokens_before or 0 for row in all_rows),
        tokens_kept=fmean(row.visual_tokens or 0 for row in all_rows),
        structural_tokens=fmean(row.structural_tokens or 0 for row in all_rows),
        tokens_per_layer=fmean(row.mean_tokens_per_layer or 0 for row in all_rows),
        kv_bytes=mean(row.kv_bytes for row in all_rows),
        seconds=mean(mean_seconds(rows) for rows in seed_rows),
    )


def bootstrap_unit(row: Prediction) -> Any:
    """Return what a question is resampled with: the picture or group of its benchmark, else its images, else its id."""
    unit = next(((row.type, row.meta[key]) for key in SHARED_KEYS if key in row.meta), None)
    return unit or tuple(row.images) or row.id


def _compare_to_unpruned(
    result: MethodResult,
    unpruned: MethodResult | None,
    unpruned_rows: Mapping[tuple[str, str, str], list[Prediction]],
) -> MethodResult:
    if unpruned is None:
        return result
    full = unpruned.value
    percent = 100 * result.value / full if result.value is not None and full else None
    compared = replace(result, percent=percent)
    rows = unpruned_rows.get((result.model, result.data, result.run or ""))
    unpruned_seconds = unpruned.seconds if rows is None else mean_seconds(rows)
    if result.seconds is not None and unpruned_seconds:
        compared = replace(compared, time_ratio=result.seconds / unpruned_seconds, same_run=rows is not None)
    if result.method == UNPRUNED:
        return compared
    return replace(compared, against_unpruned=paired_difference(result.grades, unpruned.grades, result.units))


def _compare_to_baselines(result: MethodResult, others: Sequence[MethodResult]) -> MethodResult:
    rivals = [
        other
        for other in others
        if (other.model, other.data, other.budget) == (result.model, result.data, result.budget)
        and other.name in CHANCE
        and other.value is not None
    ]
    if not rivals or result.name in (*CHANCE, UNPRUNED):
        return result
    best = max(rivals, key=lambda other: other.value or 0)
    difference = paired_difference(result.grades, best.grades, result.units)
    return replace(result, baseline=best.name, against_baseline=difference)


def paired_difference(grades: Grades, others: Grades, units: Mapping[str, Any]) -> Difference | None:
    """Compare grades of the questions that both methods answered; None if there are none.

    The interval is a paired bootstrap (percentiles of 2000 resamples, seed 0; scipy) over units, each with all of its
    questions. Grades are means over seeds, so the interval covers the choice of questions, not of seeds.
    """
    common = [name for name in grades if name in others]
    if not common:
        return None
    differences: dict[Any, list[float]] = {}
    for name in common:
        differences.setdefault(units[name], []).append(grades[name] - others[name])
    sums = np.array([sum(values) for values in differences.values()])
    sizes = np.array([len(values) for values in differences.values()])
    interval = None
    if len(sums) > 1:
        limits = bootstrap(
            (sums, sizes),
            lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis),
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, BATCH_NUMBERS // len(sums)),
            confidence_level=LEVEL,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        interval = float(limits.low), float(limits.high)
    return Difference(float(sums.sum() / sizes.sum()), interval, _mcnemar(grades, others, common), len(sums))


def _mcnemar(grades: Grades, others: Grades, names: Sequence[str]) -> float | None:
    if not all(values[name] in (0, 1) for values in (grades, others) for name in names):
        return None
    better = sum(grades[name] > others[name] for name in names)
    worse = sum(grades[name] < others[name] for name in names)
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def split_by_data(results: Iterable[MethodResult]) -> dict[tuple[str, str], list[MethodResult]]:
    """Split results by model and data."""
    split: dict[tuple[str, str], list[MethodResult]] = {}
    for result in results:
        split.setdefault((result.model, result.data), []).append(result)
    return split


@dataclass(frozen=True)
class Average:
    """One method at one budget over all data of a model, in percent of the unpruned model."""

    model: str
    method: str
    budget: str
    percent: Mapping[str, float | None]  # by data
    tokens_per_layer: float
    seconds: float | None

    @property
    def mean(self) -> float | None:
        """Mean over all data; None if a figure is missing."""
        return mean(self.percent.values())

    @property
    def without(self) -> dict[str, float | None]:
        """Leave-one-out: for each data, the mean over all other data."""
        return {
            excluded: mean(value for data, value in self.percent.items() if data != excluded)
            for excluded in self.percent
        }

    @property
    def least(self) -> float | None:
        """The minimum of the leave-one-out means; None if one is missing."""
        means = [value for value in self.without.values() if value is not None]
        return min(means) if len(means) == len(self.percent) else None


def average_over_data(results: Sequence[MethodResult]) -> list[Average]:
    """Average each method and budget over the data of its model, in the order of `results`.

    Models with a single set of data are left out.
    """
    data: dict[str, dict[str, None]] = {}
    for result in results:
        data.setdefault(result.model, {})[result.data] = None
    split: dict[tuple[str, str, str], dict[str, MethodResult]] = {}
    for result in results:
        split.setdefault((result.model, result.method, result.budget), {})[result.data] = result
    return [
        Average(
            *key,
            percent={name: by_data[name].percent if name in by_data else None for name in data[key[0]]},
            tokens_per_layer=fmean(result.tokens_per_layer for result in by_data.values()),
            seconds=mean(by_data[name].seconds if name in by_data else None for name in data[key[0]]),
        )
        for key, by_data in split.items()
        if len(data[key[0]]) > 1
    ]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (cost, value) that no other point dominates, by increasing cost."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front
