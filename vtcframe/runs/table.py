"""The table that is printed at the end of a run: tokens, seconds, and accuracy by type of question."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from vtcframe.data.results import Prediction, Score, columns, mean_scores, mean_seconds, runs

if TYPE_CHECKING:
    from vtcframe.data.benchmarks.base import Benchmark


def format_table(
    rows: Iterable[Prediction],
    benchmark: "Benchmark | None" = None,
    groups: Mapping[str, Collection[str]] | None = None,
) -> str:
    """Return a table with a line for each method and budget. Rows of failures are left out.

    "tokens" is the mean number of visual tokens after all stages. "a layer" is the mean number that a layer of the
    language model reads; it is higher if stages inside the language model drop tokens. "KV MiB" is the size of the
    prompt's KV cache. "failed" is the number of questions without an answer; the column is left out if there are none.
    The other columns are the scores of the benchmark or, without one, accuracies by type, by `groups` of types and of
    all questions (see `columns`).
    """
    attempted = runs(rows, failed=True)
    answered = {run: [row for row in part if row.error is None] for run, part in attempted.items()}
    has_costs = all(row.layer_tokens and row.kv_bytes for part in answered.values() for row in part)
    has_failures = sum(map(len, answered.values())) < sum(map(len, attempted.values()))
    scores = {run: _scores(part, benchmark, groups) for run, part in answered.items() if part}
    if not scores and not has_failures:
        return ""
    longest_first = sorted(scores.values(), key=len, reverse=True)
    names = list(dict.fromkeys(name for by_name in longest_first for name in by_name))
    costs = ["a layer", "KV MiB"] if has_costs else []
    heads = ["method", "budget", "tokens", "seconds", *costs, *(["failed"] if has_failures else []), *names]
    counts = [max(by_name[name].questions for by_name in scores.values() if name in by_name) for name in names]
    lines = [heads]
    if names:
        lines.append(["questions", *[""] * (len(heads) - 1 - len(names)), *map(str, counts)])
    for run, part in answered.items():
        line = [*run, *(_costs(part, has_costs) if part else ["-"] * (2 + len(costs)))]
        if has_failures:
            line.append(str(len(attempted[run]) - len(part)))
        values = [scores.get(run, {}).get(name, Score(0, None)).value for name in names]
        lines.append([*line, *("-" if value is None else f"{value:.3f}" for value in values)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_align(line, widths) for line in lines)


def _scores(
    rows: Sequence[Prediction], benchmark: "Benchmark | None", groups: Mapping[str, Collection[str]] | None
) -> Mapping[str, Score]:
    if benchmark is not None:
        return benchmark.score(rows)
    return mean_scores(columns(rows, groups), lambda row: row.correct)


def _costs(rows: Sequence[Prediction], has_costs: bool) -> list[str]:
    """Return the cells of mean tokens and seconds and, if rows have them, of tokens per layer and KV cache."""
    mean = mean_seconds(rows)
    cells = [f"{fmean(row.visual_tokens or 0 for row in rows):.1f}", "-" if mean is None else f"{mean:.4f}"]
    if has_costs:
        cells.append(f"{fmean(row.mean_tokens_per_layer or 0 for row in rows):.1f}")
        cells.append(f"{fmean(row.kv_bytes or 0 for row in rows) / 2**20:.3f}")
    return cells


def _align(line: Sequence[str], widths: Sequence[int]) -> str:
    """Return a line with the first cell flush left and the others flush right."""
    first, *others = line
    cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
    return "  ".join(cells).rstrip()
