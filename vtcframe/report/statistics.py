"""The figures of a report: scores over seeds, paired differences with their intervals, what it cost."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy.stats import binomtest, bootstrap

from vtcframe.data.results import Prediction, mean_seconds
from vtcframe.report.runs import UNPRUNED, Run
from vtcframe.runs.baselines import BASELINES, CHANCE

RESAMPLES, LEVEL, DRAWN = 2000, 0.95, 2_000_000  # DRAWN: numbers at a time, for the memory's sake
SHARED = "picture", "group"  # keys of a row's meta that say which questions are no independent ones
Grades = Mapping[str, float]  # id -> how right its answer is, mean over seeds


@dataclass(frozen=True)
class Difference:
    """Mean of the paired differences in grade, with its interval; None for an interval of fewer than two units."""

    mean: float
    interval: tuple[float, float] | None
    mcnemar: float | None  # exact p of the questions that only one of the two got right; None for graded answers
    units: int  # pictures or questions that were drawn

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "not shown to differ"
        return "lower" if self.mean < 0 else "higher"


@dataclass(frozen=True)
class MethodResult:
    """One method at one budget, all its seeds, asked one set of questions by one model."""

    model: str
    data: str
    method: str
    budget: str  # in words
    run: str | None  # the folder that its rows are from; None where its seeds are from several
    values: tuple[float | None, ...]  # the headline, one a seed
    scores: Mapping[str, float | None]  # of all columns, mean over seeds
    grades: Grades = field(repr=False)
    units: Mapping[str, Any] = field(repr=False)  # id -> what it is drawn with
    before: float  # visual tokens of the untouched model
    left: float
    structural: float
    layer: float  # that a layer of the language model reads
    kv: float | None  # bytes
    seconds: float | None
    pace: float | None = None  # seconds over those of the untouched model in the same run; else in its first run
    same_run: bool = True  # whether `pace` is of one run
    against_unpruned: Difference | None = None
    baseline: str | None = None  # the better of random and uniform at this budget
    against_baseline: Difference | None = None
    percent: float | None = None  # of the untouched model's headline

    @property
    def name(self) -> str:
        """The method without its options."""
        return self.method.partition("(")[0]

    @property
    def value(self) -> float | None:
        """Mean of the headline over seeds."""
        return mean(self.values)

    @property
    def spread(self) -> tuple[float, float, float] | None:
        """Least, greatest and standard deviation over seeds; None for fewer than two."""
        known = [value for value in self.values if value is not None]
        return (min(known), max(known), stdev(known)) if len(known) > 1 else None


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of values that are all known; None where one is not, or where there are none."""
    told = list(values)
    known = [value for value in told if value is not None]
    return fmean(known) if known and len(known) == len(told) else None


def entries(runs: Sequence[Run]) -> list[MethodResult]:
    """Return what was asked, by model, data, then the untouched model, baselines and other methods, by budget.

    Where several runs hold the same answers (each holds the untouched model's), those of the first count.
    """
    rows: dict[tuple[str, ...], dict[str, tuple[Run, list[Prediction]]]] = {}
    untouched: dict[tuple[str, str, str], list[Prediction]] = {}
    for run in runs:
        for method, seed, budget, row in run.answers():
            if method == UNPRUNED:
                untouched.setdefault((run.model, run.data, run.name), []).append(row)
            owner, own = rows.setdefault((run.model, run.data, method, budget), {}).setdefault(seed, (run, []))
            if owner is run:
                own.append(row)
    made = [_entry(key, seeds) for key, seeds in rows.items()]
    first = {(one.model, one.data): one for one in made if one.method == UNPRUNED}
    compared = [_beside_unpruned(one, first.get((one.model, one.data)), untouched) for one in made]
    compared = [_beside_chance(one, compared) for one in compared]
    places = {place: at for at, place in enumerate(dict.fromkeys((run.model, run.data) for run in runs))}
    methods = {method: at for at, method in enumerate(dict.fromkeys(one.method for one in compared))}
    rank = {name: at for at, name in enumerate((UNPRUNED, *BASELINES))}
    return sorted(
        compared,
        key=lambda one: (
            places[one.model, one.data],
            rank.get(one.name, len(rank)),
            methods[one.method],
            -one.layer,
            one.budget,
        ),
    )


def _entry(key: tuple[str, ...], seeds: Mapping[str, tuple[Run, list[Prediction]]]) -> MethodResult:
    run, names = next(iter(seeds.values()))[0], {run.name for run, _ in seeds.values()}
    drawn = [rows for _, rows in sorted(seeds.values(), key=lambda own: str(own[1][0].label))]
    scores = [run.score(rows) for rows in drawn]
    grades: dict[str, list[float | None]] = {}
    for rows in drawn:
        for row in rows:
            grades.setdefault(row.id, []).append(run.grade(row))
    means = {name: mean(own) for name, own in grades.items() if len(own) == len(drawn)}
    every = [row for rows in drawn for row in rows]
    kv = [row.kv_bytes for row in every]
    return MethodResult(
        *key,
        run=run.name if len(names) == 1 else None,
        values=tuple(list(score.values())[-1].value if score else None for score in scores),
        scores={name: mean(score[name].value for score in scores if name in score) for name in scores[0]},
        grades={name: value for name, value in means.items() if value is not None},
        units={row.id: unit(row) for row in drawn[0]},
        before=fmean(row.visual_tokens_before or 0 for row in every),
        left=fmean(row.visual_tokens or 0 for row in every),
        structural=fmean(row.structural_tokens or 0 for row in every),
        layer=fmean(row.mean_tokens_per_layer or 0 for row in every),
        kv=mean(kv),
        seconds=mean(mean_seconds(rows) for rows in drawn),
    )


def unit(row: Prediction) -> Any:
    """What a question is drawn with: the picture or group that its benchmark names, else all about its pictures."""
    named = next(((row.type, row.meta[key]) for key in SHARED if key in row.meta), None)
    return named or tuple(row.images) or row.id


def _beside_unpruned(
    one: MethodResult, unpruned: MethodResult | None, untouched: Mapping[tuple[str, str, str], list[Prediction]]
) -> MethodResult:
    if unpruned is None:
        return one
    whole = unpruned.value
    told = replace(one, percent=100 * one.value / whole if one.value is not None and whole else None)
    own = untouched.get((one.model, one.data, one.run or ""))
    beside = unpruned.seconds if own is None else mean_seconds(own)
    if one.seconds is not None and beside:
        told = replace(told, pace=one.seconds / beside, same_run=own is not None)
    if one.method == UNPRUNED:
        return told
    return replace(told, against_unpruned=difference(one.grades, unpruned.grades, one.units))


def _beside_chance(one: MethodResult, others: Sequence[MethodResult]) -> MethodResult:
    rivals = [
        other
        for other in others
        if (other.model, other.data, other.budget) == (one.model, one.data, one.budget)
        and other.name in CHANCE
        and other.value is not None
    ]
    if not rivals or one.name in (*CHANCE, UNPRUNED):
        return one
    best = max(rivals, key=lambda other: other.value or 0)
    return replace(one, baseline=best.name, against_baseline=difference(one.grades, best.grades, one.units))


def difference(here: Grades, there: Grades, units: Mapping[str, Any]) -> Difference | None:
    """Compare the grades of the questions that both answered; None where there are none.

    Bootstrap of the pairs (percentiles of 2000 draws, seed 0; scipy): units are drawn, each with all of its questions.
    Grades are means over seeds, so that the interval is that of other questions and not that of other seeds.
    """
    both = [name for name in here if name in there]
    if not both:
        return None
    totals: dict[Any, list[float]] = {}
    for name in both:
        totals.setdefault(units[name], []).append(here[name] - there[name])
    sums = np.array([sum(own) for own in totals.values()])
    sizes = np.array([len(own) for own in totals.values()])
    interval = None
    if len(sums) > 1:
        drawn = bootstrap(
            (sums, sizes),
            lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis),
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, DRAWN // len(sums)),
            confidence_level=LEVEL,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        interval = float(drawn.low), float(drawn.high)
    return Difference(float(sums.sum() / sizes.sum()), interval, _mcnemar(here, there, both), len(sums))


def _mcnemar(here: Grades, there: Grades, both: Sequence[str]) -> float | None:
    if not all(grades[name] in (0, 1) for grades in (here, there) for name in both):
        return None
    gained = sum(here[name] > there[name] for name in both)
    lost = sum(here[name] < there[name] for name in both)
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def sets(made: Iterable[MethodResult]) -> dict[tuple[str, str], list[MethodResult]]:
    """Split entries by model and data."""
    split: dict[tuple[str, str], list[MethodResult]] = {}
    for one in made:
        split.setdefault((one.model, one.data), []).append(one)
    return split


@dataclass(frozen=True)
class Average:
    """One method at one budget over all the data of a model, in percent of the untouched model."""

    model: str
    method: str
    budget: str
    percent: Mapping[str, float | None]  # by data
    layer: float
    seconds: float | None

    @property
    def mean(self) -> float | None:
        """Over all data; None where one has no figure."""
        return mean(self.percent.values())

    @property
    def without(self) -> dict[str, float | None]:
        """Leave-one-out: the mean over all data but the named."""
        return {left: mean(value for data, value in self.percent.items() if data != left) for left in self.percent}

    @property
    def least(self) -> float | None:
        """The least of those; None where one is not known."""
        known = [value for value in self.without.values() if value is not None]
        return min(known) if len(known) == len(self.percent) else None


def averages(made: Sequence[MethodResult]) -> list[Average]:
    """Average each method and budget over the data of its model, where there is more than one; in `made`'s order."""
    data: dict[str, dict[str, None]] = {}
    for one in made:
        data.setdefault(one.model, {})[one.data] = None
    split: dict[tuple[str, str, str], dict[str, MethodResult]] = {}
    for one in made:
        split.setdefault((one.model, one.method, one.budget), {})[one.data] = one
    return [
        Average(
            *key,
            percent={name: own[name].percent if name in own else None for name in data[key[0]]},
            layer=fmean(one.layer for one in own.values()),
            seconds=mean(own[name].seconds if name in own else None for name in data[key[0]]),
        )
        for key, own in split.items()
        if len(data[key[0]]) > 1
    ]


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return those (cost, value) that no other beats: none is as cheap and better, or as good and cheaper."""
    best: list[tuple[float, float]] = []
    for cost, value in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not best or value > best[-1][1]:
            best.append((cost, value))
    return best
