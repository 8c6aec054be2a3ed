"""Accuracy by type of question, and the table that is printed at the end of a run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypedDict

COUNT = "count"  # the type that "attributes" leaves out: any concentrating pruner thins the background it is read from


class View(TypedDict):
    """What became of one view. `kept` and `scores` are lists of the grid's rows, top to bottom, left to right.

    They hold null where there is no token. `kept` is true also where a merger's new token has taken the place.
    """

    image: int  # which picture of its sample
    frame: int  # of a video, else 0
    box: list[float]  # top, left, bottom, right in its picture as the model was shown it, 0..1; padding lies outside
    kept: list[list[bool | None]]
    scores: list[list[float | None]]  # six digits


@dataclass(frozen=True)
class Row:
    """One line of predictions.jsonl: a sample answered by one method at one budget, or the reason why it was not."""

    id: str
    type: str | None
    question: str
    answer: str | None  # None where it is not known
    method: str | None = None  # a pruner with its options, or "unpruned"; None for a sample that failed
    budget: dict[str, Any] | None = None  # as in the configuration; None where nothing was pruned
    prediction: str | None = None
    visual_tokens: int | None = None  # that the language model read, behind its last stage where it has some
    visual_tokens_before: int | None = None
    structural_tokens: int | None = None  # newlines and the like that it read with them
    layer_tokens: list[int] | None = None  # visual tokens that each layer of the language model read
    kv_bytes: int | None = None  # of the prompt's keys and values while it answers
    seconds: float | None = None  # share of its batch's wall time in this run: prune, splice and generate
    encode_seconds: float | None = None  # the encoding before it, once for all runs; 0 where generate encodes
    batch: int | None = None  # the batch that it was answered in; in the first, everything runs for the first time
    views: list[View] | None = None  # where the writer wants them and tokens were judged
    error: str | None = None

    @property
    def processed(self) -> float | None:
        """Visual tokens that a layer of the language model read, mean over the layers."""
        return fmean(self.layer_tokens) if self.layer_tokens else self.visual_tokens

    @property
    def correct(self) -> bool | None:
        """Whether prediction and answer match, normalised; None where either is missing."""
        if self.prediction is None or self.answer is None:
            return None
        return normalised(self.prediction) == normalised(self.answer)


def normalised(text: str) -> str:
    """Strip, lower the case, drop one final full stop."""
    return text.strip().lower().removesuffix(".").rstrip()


def accuracy(rows: Iterable[Row]) -> float | None:
    """Fraction of the rows with an answer that are correct; None where there are none."""
    verdicts = [row.correct for row in rows if row.correct is not None]
    return fmean(verdicts) if verdicts else None


def seconds(rows: Iterable[Row]) -> float | None:
    """Mean wall time a sample, encoding included. The first batch, a warm-up, counts only where it is the only one."""
    timed = [row for row in rows if row.seconds is not None]
    later = [row for row in timed if row.batch] or timed
    return fmean((row.seconds or 0) + (row.encode_seconds or 0) for row in later) if later else None


def columns(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Split rows by type of question, in the order in which the types come; then "attributes" and "all".

    "attributes" is every type but `count`, and stands only where there is both.
    """
    types = list(dict.fromkeys(row.type for row in rows if row.type is not None))
    split = {kind: [row for row in rows if row.type == kind] for kind in types}
    if COUNT in types and len(types) > 1:
        split["attributes"] = [row for row in rows if row.type != COUNT]
    return split | {"all": list(rows)}


def table(rows: Iterable[Row]) -> str:
    """Lay out mean visual tokens, seconds and accuracies, a line for each method and budget. Failures do not count.

    "tokens" are those left in the end; "a layer" those that a layer of the language model reads, mean over its layers,
    which are more where tokens leave inside it; "KV MiB" what is held of the prompt's keys and values.
    """
    answered = [row for row in rows if row.error is None]
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in answered:
        runs.setdefault((str(row.method), written(row.budget)), []).append(row)
    lines, told = [], all(row.layer_tokens and row.kv_bytes for row in answered)
    for (method, budget), own in runs.items():
        split = columns(own)
        if not lines:
            cost = ["a layer", "KV MiB"] if told else []
            lines.append(["method", "budget", "tokens", "seconds", *cost, *split])
            lines.append(["questions", "", "", "", *[""] * len(cost), *(str(len(part)) for part in split.values())])
        scores = [accuracy(part) for part in split.values()]
        tokens = f"{fmean(row.visual_tokens or 0 for row in own):.1f}"
        time = "-" if (mean := seconds(own)) is None else f"{mean:.4f}"
        line = [method, budget, tokens, time]
        if told:
            line.append(f"{fmean(row.processed or 0 for row in own):.1f}")
            line.append(f"{fmean(row.kv_bytes or 0 for row in own) / 2**20:.3f}")
        lines.append([*line, *("-" if score is None else f"{score:.3f}" for score in scores)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_aligned(line, widths) for line in lines)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    words = [
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
    return "  ".join(words).rstrip()


def written(budget: dict[str, Any] | None) -> str:
    """Return a row's budget in words."""
    if budget is None:
        return "-"
    amount = f"{budget['ratio']:.4g}" if "ratio" in budget else f"{budget['tokens']} tokens"
    return f"{amount} a {budget['per']}" if "per" in budget else amount
