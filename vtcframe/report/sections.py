"""The sections of a report: tables, plots, pictures, what failed and what ran."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtcframe.report.plots import Point, legend, plot
from vtcframe.report.runs import UNPRUNED, LoadedRuns, Run
from vtcframe.report.statistics import Average, Difference, MethodResult, averages, entries, sets
from vtcframe.report.wording import labelled, listed, sentences
from vtcframe.runs.baselines import BASELINES

PICTURES = 2  # sheets of each model and data
IDS, REASONS = 5, 20  # ids told of a reason for failing, and reasons told of a run
NONE = "\u2013"  # in place of a figure
DIFFERENT_RUN = "*"  # behind a pace whose two times are of different runs


@dataclass(frozen=True)
class Cell:
    """One cell, and what it is sorted by: its text unless that is a number."""

    text: str
    key: float | None = None

    @property
    def number(self) -> bool:
        """Whether it is set flush right, as numbers and missing ones are."""
        return self.key is not None or self.text == NONE


@dataclass(frozen=True)
class Table:
    """A line a method and budget."""

    caption: str
    heads: Sequence[str]
    lines: Sequence[Sequence[Cell]]
    strong: Sequence[bool] = ()  # lines of baselines


@dataclass
class Section:
    """A heading and what stands below it."""

    title: str
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)  # SVG
    legend: list[tuple[str, str]] = field(default_factory=list)  # mark as SVG, method
    sheets: list[tuple[str, Path]] = field(default_factory=list)  # id of the sample, file
    folds: list[tuple[str, str]] = field(default_factory=list)  # title and text of what is folded away


def told(found: LoadedRuns) -> Iterator[Section]:
    """Yield the sections in their order."""
    made = entries(found.runs)
    methods = list(dict.fromkeys(one.method for one in made))
    yield Section("In words", sentences(found, made))
    for model in dict.fromkeys(one.model for one in made):
        if over := [one for one in averages(made) if one.model == model]:
            yield _mean(model, over, methods)
    for (model, data), own in sets(made).items():
        yield _measured(own, [run for run in found.runs if (run.model, run.data) == (model, data)], methods)
    yield _failed(found.runs)
    yield _runs(found)


def _mean(model: str, over: Sequence[Average], methods: Sequence[str]) -> Section:
    data = list(over[0].percent)
    table = Table(
        "Percent of the untouched model",
        ["method", "budget", *data, "mean", "least without one", *(f"without {name}" for name in data)],
        [
            [
                *_named(one),
                *(_figure(value, ".1f") for value in one.percent.values()),
                _figure(one.mean, ".1f"),
                _figure(one.least, ".1f"),
                *(_figure(value, ".1f") for value in one.without.values()),
            ]
            for one in over
        ],
        [_baseline(one.method) for one in over],
    )
    whole = [one for one in over if one.mean is not None]
    points = {
        "visual tokens a layer reads": [(one, one.layer) for one in whole],
        "seconds a sample, as measured": [(one, one.seconds) for one in whole if one.seconds is not None],
    }
    plots = [
        plot(
            [Point(one.method, _told(one, one.mean), cost, one.mean or 0) for one, cost in own],
            across,
            "% of unpruned",
            methods,
        )
        for across, own in points.items()
    ]
    note = (
        "Every set of questions counts alike. A ranking that changes when one set is left out hangs on that set: "
        "compare the columns “without”. A mean is told only where every set has a figure."
    )
    return Section(
        f"{model}: mean over {len(data)} sets", [note], [table], [p for p in plots if p], _legend(over, methods)
    )


def _measured(own: Sequence[MethodResult], runs: Sequence[Run], methods: Sequence[str]) -> Section:
    one = own[0]
    headline = f"score ({list(one.scores)[-1] if one.scores else NONE})"
    strong = [_baseline(one.method) for one in own]
    scores = Table(
        "Scores",
        ["method", "budget", "seeds", "questions", headline, "least", "greatest", "s.d.", "% of unpruned"],
        [
            [
                *_named(one),
                Cell(str(len(one.values)), len(one.values)),
                Cell(str(len(one.grades)), len(one.grades)),
                _score(one.value),
                *(_score(value) for value in (one.spread or (None,) * 3)),
                _figure(one.percent, ".1f"),
            ]
            for one in own
        ],
        strong,
    )
    pairs = Table(
        "Paired differences in grade",
        [
            "method", "budget", "to unpruned", "95 % interval", "verdict", "McNemar p",
            "to the better of random and uniform", "95 % interval", "verdict",
        ],
        [
            [
                *_named(one),
                *_difference(one.against_unpruned),
                _figure(one.against_unpruned and one.against_unpruned.mcnemar, ".3g"),
                *_difference(one.against_baseline, one.baseline),
            ]
            for one in own
            if one.method != UNPRUNED
        ],
        [_baseline(one.method) for one in own if one.method != UNPRUNED],
    )  # fmt: skip
    cost = Table(
        "Cost",
        [
            "method", "budget", "tokens before", "tokens left", "newlines and the like", "tokens a layer", "KV MiB",
            "seconds", "times unpruned",
        ],
        [
            [
                *_named(one),
                *(_figure(value, ".1f") for value in (one.before, one.left, one.structural, one.layer)),
                _figure(None if one.kv is None else one.kv / 2**20, ".3f"),
                _figure(one.seconds, ".4f"),
                _pace(one),
            ]
            for one in own
        ],
        strong,
    )  # fmt: skip
    names = list(dict.fromkeys(name for one in own for name in one.scores))
    parts = Table(
        "By column",
        ["method", "budget", *names],
        [[*_named(one), *(_score(one.scores.get(name)) for name in names)] for one in own],
        strong,
    )
    known = [one for one in own if one.value is not None]
    costs = {
        "visual tokens a layer reads": [(one, one.layer) for one in known],
        "seconds a sample, as measured": [(one, one.seconds) for one in known if one.seconds is not None],
    }
    plots = [
        plot(
            [Point(o.method, _told(o, o.value), cost, o.value or 0, o.spread and o.spread[:2]) for o, cost in points],
            across,
            headline,
            methods,
        )
        for across, points in costs.items()
    ]
    sheets = [(file.stem, file) for run in runs for file in sorted((run.path / "pictures").glob("*.png"))]
    return Section(
        f"{one.model}: {one.data}",
        list(_how(own)),
        [scores, *([pairs] if pairs.lines else []), cost, *([parts] if len(names) > 1 else [])],
        [p for p in plots if p],
        _legend(own, methods),
        sheets[:PICTURES],
    )


def _how(own: Sequence[MethodResult]) -> Iterator[str]:
    compared = next((one.against_unpruned for one in own if one.against_unpruned is not None), None)
    if compared is not None:
        one = own[0]
        alone = len(set(one.units.values())) == len(one.units)
        what = "questions" if alone else "pictures or groups, each with all of its questions"
        yield (
            f"Differences are those of the mean grade of a question (0..1), paired; intervals are percentiles of 2000 "
            f"bootstraps over {compared.units} {what}. McNemar's test is exact, takes questions for independent, and "
            "is told where every grade is 0 or 1."
        )
    yield "Baselines are set in bold. Values of several seeds are means, with least, greatest and standard deviation."
    if any(not one.same_run for one in own):
        yield f"{DIFFERENT_RUN} its seconds and those of the untouched model are of different runs."


def _named(one: MethodResult | Average) -> list[Cell]:
    if one.method == UNPRUNED:
        return [Cell(one.method), Cell(NONE)]
    return [Cell(one.method), Cell(one.budget, float(one.budget.partition(" ")[0]))]  # 0.25, or 64 tokens an image


def _baseline(method: str) -> bool:
    return method.partition("(")[0] in (UNPRUNED, *BASELINES)


def _figure(value: float | None, form: str) -> Cell:
    return Cell(NONE) if value is None else Cell(format(value, form), value)


def _score(value: float | None) -> Cell:
    return _figure(value, ".3f" if value is None or abs(value) <= 1 else ".1f")  # MME's figures go to 2000


def _difference(one: Difference | None, baseline: str | None = None) -> list[Cell]:
    if one is None:
        return [Cell(NONE)] * 3
    low_high = NONE if one.interval is None else "{:+.3f} to {:+.3f}".format(*one.interval)
    behind = f" ({baseline})" if baseline else ""
    return [
        Cell(f"{one.mean:+.3f}{behind}", one.mean),
        Cell(low_high, one.interval and one.interval[0]),
        Cell(one.verdict),
    ]


def _pace(one: MethodResult) -> Cell:
    if one.pace is None:
        return Cell(NONE)
    slower = " slower" if one.pace > 1 and one.method != UNPRUNED else ""
    return Cell(f"{one.pace:.2f}{slower}{'' if one.same_run else DIFFERENT_RUN}", one.pace)


def _told(one: MethodResult | Average, value: float | None) -> str:
    time = "" if one.seconds is None else f", {one.seconds:.4f} s"
    return f"{labelled(one)}: {value:.4g}, {one.layer:.1f} tokens a layer{time}"


def _legend(own: Sequence[MethodResult] | Sequence[Average], methods: Sequence[str]) -> list[tuple[str, str]]:
    return [(legend(method, methods), method) for method in dict.fromkeys(one.method for one in own)]


def _failed(runs: Sequence[Run]) -> Section:
    lines, left = [], []
    for run in runs:
        reasons: dict[str, list[str]] = {}
        for row in run.rows:
            if row.error is not None:
                reasons.setdefault(row.error, []).append(row.id)
        for reason, ids in list(reasons.items())[:REASONS]:
            more = f" and {len(ids) - IDS} more" if len(ids) > IDS else ""
            lines.append([Cell(run.name), Cell(str(len(ids)), len(ids)), Cell(listed(ids[:IDS]) + more), Cell(reason)])
        if len(reasons) > REASONS:
            left.append(f"{run.name}: {len(reasons) - REASONS} more reasons are in its predictions.jsonl.")
    if not lines:
        return Section("Failed samples", ["None."])
    note = "They count in no figure, unless their benchmark's rules say so."
    return Section("Failed samples", [note, *left], [Table("Failed", ["run", "samples", "ids", "why"], lines)])


def _runs(found: LoadedRuns) -> Section:
    section = Section("Runs", ["The configuration, versions and attempts of each, as its run.json has them."])
    heads = ["run", "model", "data", "samples", "attempts", "processes"]
    lines = []
    for run in found.runs:
        attempts, samples = run.told["attempts"], len({row.id for row in run.rows})
        lines.append([
            Cell(run.name), Cell(run.model), Cell(run.data), Cell(str(samples), samples),
            Cell(str(len(attempts)), len(attempts)), Cell(listed([str(one["processes"]) for one in attempts])),
        ])  # fmt: skip
        section.folds.append((f"{run.name}/run.json", json.dumps(run.told, indent=1, ensure_ascii=False)))
        if run.configuration is not None:
            section.folds.append((f"{run.name}/config.yaml", run.configuration))
    section.tables.append(Table("Runs", heads, lines))
    return section
