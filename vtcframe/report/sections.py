"""The sections of a report: tables, plots, pictures, failed samples and runs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtcframe.report.plots import Point, legend_mark, plot
from vtcframe.report.runs import UNPRUNED, LoadedRuns, Run
from vtcframe.report.statistics import (
    Average,
    Difference,
    MethodResult,
    average_over_data,
    collect_results,
    split_by_data,
)
from vtcframe.report.wording import join_names, label, write_sentences
from vtcframe.runs.baselines import BASELINES

PICTURES = 2  # sheets per model and data
IDS = 5  # sample ids listed for each failure reason
REASONS = 20  # failure reasons listed for each run
NONE = "\u2013"  # shown for a missing figure
DIFFERENT_RUN = "*"  # marks a time ratio of two different runs


@dataclass(frozen=True)
class Cell:
    """The text of one cell, and the number by which it is sorted; None sorts by text."""

    text: str
    key: float | None = None

    @property
    def number(self) -> bool:
        """Whether the cell is right-aligned: numbers and missing figures."""
        return self.key is not None or self.text == NONE


@dataclass(frozen=True)
class Table:
    """A table with one row per method and budget, run, or failure reason."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    baselines: Sequence[bool] = ()  # for each row, whether it is a baseline


@dataclass
class Section:
    """A heading and the content below it."""

    title: str
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)  # SVG
    legend: list[tuple[str, str]] = field(default_factory=list)  # mark as SVG, method
    sheets: list[tuple[str, Path]] = field(default_factory=list)  # id of the sample, file
    details: list[tuple[str, str]] = field(default_factory=list)  # title and text of collapsible blocks


def make_sections(loaded: LoadedRuns) -> Iterator[Section]:
    """Yield the sections in order."""
    results = collect_results(loaded.runs)
    methods = list(dict.fromkeys(result.method for result in results))
    yield Section("Summary", write_sentences(loaded, results))
    for model in dict.fromkeys(result.model for result in results):
        if averages := [average for average in average_over_data(results) if average.model == model]:
            yield _average_section(model, averages, methods)
    for (model, data), group in split_by_data(results).items():
        runs = [run for run in loaded.runs if (run.model, run.data) == (model, data)]
        yield _data_section(group, runs, methods)
    yield _failure_section(loaded.runs)
    yield _run_section(loaded)


def _average_section(model: str, averages: Sequence[Average], methods: Sequence[str]) -> Section:
    data = list(averages[0].percent)
    table = Table(
        "Percent of the unpruned model",
        ["method", "budget", *data, "mean", "min without one", *(f"without {name}" for name in data)],
        [
            [
                *_name_cells(average),
                *(_figure(value, ".1f") for value in average.percent.values()),
                _figure(average.mean, ".1f"),
                _figure(average.least, ".1f"),
                *(_figure(value, ".1f") for value in average.without.values()),
            ]
            for average in averages
        ],
        [_is_baseline(average.method) for average in averages],
    )
    complete = [average for average in averages if average.mean is not None]
    costs = {
        "visual tokens per layer": [(average, average.tokens_per_layer) for average in complete],
        "seconds per sample, as measured": [
            (average, average.seconds) for average in complete if average.seconds is not None
        ],
    }
    plots = [
        plot(
            [
                Point(average.method, _describe(average, average.mean), cost, average.mean or 0)
                for average, cost in points
            ],
            x_label,
            "% of unpruned",
            methods,
        )
        for x_label, points in costs.items()
    ]
    note = (
        "Every set of questions has the same weight. A ranking that changes when one set is left out depends on that "
        "set: compare the columns “without”. A mean is shown only if every set has a figure."
    )
    return Section(
        f"{model}: mean over {len(data)} sets",
        [note],
        [table],
        [svg for svg in plots if svg],
        _legend(averages, methods),
    )


def _data_section(results: Sequence[MethodResult], runs: Sequence[Run], methods: Sequence[str]) -> Section:
    first = results[0]
    headline = f"score ({list(first.scores)[-1] if first.scores else NONE})"
    baselines = [_is_baseline(result.method) for result in results]
    scores = Table(
        "Scores",
        ["method", "budget", "seeds", "questions", headline, "min", "max", "s.d.", "% of unpruned"],
        [
            [
                *_name_cells(result),
                Cell(str(len(result.values)), len(result.values)),
                Cell(str(len(result.grades)), len(result.grades)),
                _score(result.value),
                *(_score(value) for value in (result.spread or (None,) * 3)),
                _figure(result.percent, ".1f"),
            ]
            for result in results
        ],
        baselines,
    )
    pruned = [result for result in results if result.method != UNPRUNED]
    differences = Table(
        "Paired differences in grade",
        [
            "method", "budget", "minus unpruned", "95 % interval", "verdict", "McNemar p",
            "minus the better of random and uniform", "95 % interval", "verdict",
        ],
        [
            [
                *_name_cells(result),
                *_difference_cells(result.against_unpruned),
                _figure(result.against_unpruned and result.against_unpruned.mcnemar, ".3g"),
                *_difference_cells(result.against_baseline, result.baseline),
            ]
            for result in pruned
        ],
        [_is_baseline(result.method) for result in pruned],
    )  # fmt: skip
    cost = Table(
        "Cost",
        [
            "method", "budget", "tokens before", "tokens kept", "structural tokens", "tokens per layer", "KV MiB",
            "seconds", "seconds / unpruned",
        ],
        [
            [
                *_name_cells(result),
                _figure(result.tokens_before, ".1f"),
                _figure(result.tokens_kept, ".1f"),
                _figure(result.structural_tokens, ".1f"),
                _figure(result.tokens_per_layer, ".1f"),
                _figure(None if result.kv_bytes is None else result.kv_bytes / 2**20, ".3f"),
                _figure(result.seconds, ".4f"),
                _time_ratio(result),
            ]
            for result in results
        ],
        baselines,
    )  # fmt: skip
    names = list(dict.fromkeys(name for result in results for name in result.scores))
    columns = Table(
        "By column",
        ["method", "budget", *names],
        [[*_name_cells(result), *(_score(result.scores.get(name)) for name in names)] for result in results],
        baselines,
    )
    scored = [result for result in results if result.value is not None]
    costs = {
        "visual tokens per layer": [(result, result.tokens_per_layer) for result in scored],
        "seconds per sample, as measured": [
            (result, result.seconds) for result in scored if result.seconds is not None
        ],
    }
    plots = [
        plot(
            [
                Point(
                    result.method,
                    _describe(result, result.value),
                    cost,
                    result.value or 0,
                    result.spread and result.spread[:2],
                )
                for result, cost in points
            ],
            x_label,
            headline,
            methods,
        )
        for x_label, points in costs.items()
    ]
    sheets = [(file.stem, file) for run in runs for file in sorted((run.path / "pictures").glob("*.png"))]
    return Section(
        f"{first.model}: {first.data}",
        list(_notes(results)),
        [scores, *([differences] if differences.rows else []), cost, *([columns] if len(names) > 1 else [])],
        [svg for svg in plots if svg],
        _legend(results, methods),
        sheets[:PICTURES],
    )


def _notes(results: Sequence[MethodResult]) -> Iterator[str]:
    differences = [result.against_unpruned for result in results if result.against_unpruned is not None]
    if differences:
        units = results[0].units
        independent = len(set(units.values())) == len(units)
        unit = "questions" if independent else "pictures or groups, each with all of its questions"
        yield (
            "Differences are paired differences of a question's grade (0..1). Intervals are percentiles of 2000 "
            f"bootstrap resamples over {differences[0].units} {unit}. McNemar's test is exact, assumes independent "
            "questions, and is shown only if every grade is 0 or 1."
        )
    yield "Baselines are in bold. Values of several seeds are means, with minimum, maximum and standard deviation."
    if any(not result.same_run for result in results):
        yield f"{DIFFERENT_RUN} The times of the method and of the unpruned model are from different runs."


def _name_cells(result: MethodResult | Average) -> list[Cell]:
    if result.method == UNPRUNED:
        return [Cell(result.method), Cell(NONE)]
    amount = float(result.budget.partition(" ")[0])  # of "0.25" or "64 tokens a image"
    return [Cell(result.method), Cell(result.budget, amount)]


def _is_baseline(method: str) -> bool:
    return method.partition("(")[0] in (UNPRUNED, *BASELINES)


def _figure(value: float | None, form: str) -> Cell:
    return Cell(NONE) if value is None else Cell(format(value, form), value)


def _score(value: float | None) -> Cell:
    return _figure(value, ".3f" if value is None or abs(value) <= 1 else ".1f")  # MME scores range up to 2000


def _difference_cells(difference: Difference | None, baseline: str | None = None) -> list[Cell]:
    if difference is None:
        return [Cell(NONE)] * 3
    interval = NONE if difference.interval is None else "{:+.3f} to {:+.3f}".format(*difference.interval)
    suffix = f" ({baseline})" if baseline else ""
    return [
        Cell(f"{difference.mean:+.3f}{suffix}", difference.mean),
        Cell(interval, difference.interval and difference.interval[0]),
        Cell(difference.verdict),
    ]


def _time_ratio(result: MethodResult) -> Cell:
    if result.time_ratio is None:
        return Cell(NONE)
    slower = " slower" if result.time_ratio > 1 and result.method != UNPRUNED else ""
    return Cell(f"{result.time_ratio:.2f}{slower}{'' if result.same_run else DIFFERENT_RUN}", result.time_ratio)


def _describe(result: MethodResult | Average, value: float | None) -> str:
    time = "" if result.seconds is None else f", {result.seconds:.4f} s"
    return f"{label(result)}: {value:.4g}, {result.tokens_per_layer:.1f} tokens per layer{time}"


def _legend(results: Sequence[MethodResult] | Sequence[Average], methods: Sequence[str]) -> list[tuple[str, str]]:
    names = dict.fromkeys(result.method for result in results)
    return [(legend_mark(method, methods), method) for method in names]


def _failure_section(runs: Sequence[Run]) -> Section:
    rows = []
    omitted = []
    for run in runs:
        reasons: dict[str, list[str]] = {}
        for row in run.rows:
            if row.error is not None:
                reasons.setdefault(row.error, []).append(row.id)
        for reason, ids in list(reasons.items())[:REASONS]:
            rest = f" and {len(ids) - IDS} more" if len(ids) > IDS else ""
            id_text = join_names(ids[:IDS]) + rest
            rows.append([Cell(run.name), Cell(str(len(ids)), len(ids)), Cell(id_text), Cell(reason)])
        if len(reasons) > REASONS:
            omitted.append(f"{run.name}: {len(reasons) - REASONS} more reasons are in its predictions.jsonl.")
    if not rows:
        return Section("Failed samples", ["None."])
    note = "Failed samples are excluded from all figures, unless the rules of their benchmark count them."
    return Section("Failed samples", [note, *omitted], [Table("Failed", ["run", "samples", "ids", "reason"], rows)])


def _run_section(loaded: LoadedRuns) -> Section:
    section = Section("Runs", ["The configuration, versions and attempts of each run, from its run.json."])
    heads = ["run", "model", "data", "samples", "attempts", "processes"]
    rows = []
    for run in loaded.runs:
        attempts = run.manifest["attempts"]
        samples = len({row.id for row in run.rows})
        processes = join_names([str(attempt["processes"]) for attempt in attempts])
        rows.append([
            Cell(run.name), Cell(run.model), Cell(run.data), Cell(str(samples), samples),
            Cell(str(len(attempts)), len(attempts)), Cell(processes),
        ])  # fmt: skip
        section.details.append((f"{run.name}/run.json", json.dumps(run.manifest, indent=1, ensure_ascii=False)))
        if run.configuration is not None:
            section.details.append((f"{run.name}/config.yaml", run.configuration))
    section.tables.append(Table("Runs", heads, rows))
    return section
