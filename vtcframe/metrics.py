"""Accuracy by type of question, and the table that is printed at the end of a run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

COUNT = "count"  # the type that "attributes" leaves out: any concentrating pruner thins the background it is read from


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
    visual_tokens: int | None = None  # that the language model read
    visual_tokens_before: int | None = None
    structural_tokens: int | None = None  # newlines and the like that it read with them
    error: str | None = None

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
    """Lay out mean visual tokens and accuracies, one line for each method and budget. Failed samples do not count."""
    answered = [row for row in rows if row.error is None]
    runs: dict[tuple[str, str], list[Row]] = {}
    for row in answered:
        runs.setdefault((str(row.method), _budget(row.budget)), []).append(row)
    lines = []
    for (method, budget), own in runs.items():
        split = columns(own)
        if not lines:
            lines.append(["method", "budget", "tokens", *split])
            lines.append(["questions", "", "", *(str(len(part)) for part in split.values())])
        scores = [accuracy(part) for part in split.values()]
        tokens = f"{fmean(row.visual_tokens or 0 for row in own):.1f}"
        lines.append([method, budget, tokens, *("-" if score is None else f"{score:.3f}" for score in scores)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_aligned(line, widths) for line in lines)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    words = [
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
    return "  ".join(words).rstrip()


def _budget(budget: dict[str, Any] | None) -> str:
    if budget is None:
        return "-"
    amount = f"{budget['ratio']:.4g}" if "ratio" in budget else f"{budget['tokens']} tokens"
    return f"{amount} a {budget['per']}" if "per" in budget else amount
