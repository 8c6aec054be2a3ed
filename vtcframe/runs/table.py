"""Accuracy by type of question, and the table that is printed at the end of a run."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from vtcframe.data.results import Prediction, Score, columns, mean_scores, runs, seconds

if TYPE_CHECKING:
    from vtcframe.data.benchmarks.base import Benchmark


def table(
    rows: Iterable[Prediction],
    benchmark: "Benchmark | None" = None,
    groups: Mapping[str, Collection[str]] | None = None,
) -> str:
    """Lay out mean visual tokens, seconds and scores, a line for each method and budget. Failures do not count.

    "tokens" are those left in the end; "a layer" those that a layer of the language model reads, mean over its layers,
    which are more where tokens leave inside it; "KV MiB" what is held of the prompt's keys and values. "failed" stands
    where a run has fewer answers than others: so many of its questions are not in its figures. The scores are those of
    the benchmark; without one, the accuracies by type, by `groups` of types and of all (see `columns`).
    """
    every = runs(rows, failed=True)
    split = {run: [row for row in own if row.error is None] for run, own in every.items()}
    answered = [row for own in split.values() for row in own]
    told = all(row.layer_tokens and row.kv_bytes for row in answered)
    failed = len(answered) < sum(map(len, every.values()))
    scores = {run: _scores(own, benchmark, groups) for run, own in split.items() if own}
    names = list(dict.fromkeys(name for own in sorted(scores.values(), key=len, reverse=True) for name in own))
    if not scores and not failed:
        return ""
    cost = ["a layer", "KV MiB"] if told else []
    heads = ["method", "budget", "tokens", "seconds", *cost, *(["failed"] if failed else []), *names]
    asked = [max(own[name].questions for own in scores.values() if name in own) for name in names]
    lines = [heads, *([["questions", *[""] * (len(heads) - 1 - len(names)), *map(str, asked)]] if names else [])]
    for run, own in split.items():
        line = [*run, *(_costs(own, told) if own else ["-"] * (2 + len(cost)))]
        if failed:
            line.append(str(len(every[run]) - len(own)))
        values = [scores.get(run, {}).get(name, Score(0, None)).value for name in names]
        lines.append([*line, *("-" if value is None else f"{value:.3f}" for value in values)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_aligned(line, widths) for line in lines)


def _scores(
    rows: Sequence[Prediction], benchmark: "Benchmark | None", groups: Mapping[str, Collection[str]] | None
) -> Mapping[str, Score]:
    if benchmark is not None:
        return benchmark.score(rows)
    return mean_scores(columns(rows, groups), lambda row: row.correct)


def _costs(rows: Sequence[Prediction], told: bool) -> list[str]:
    """Return the means of tokens and seconds, and of what layers read and caches hold where that is `told`."""
    mean = seconds(rows)
    cells = [f"{fmean(row.visual_tokens or 0 for row in rows):.1f}", "-" if mean is None else f"{mean:.4f}"]
    if told:
        cells.append(f"{fmean(row.processed or 0 for row in rows):.1f}")
        cells.append(f"{fmean(row.kv_bytes or 0 for row in rows) / 2**20:.3f}")
    return cells


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    words = [
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
    return "  ".join(words).rstrip()
