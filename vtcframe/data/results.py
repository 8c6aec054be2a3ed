"""Rows of predictions.jsonl, and the accuracy, seconds and scores of several rows."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple, TypedDict

from vtcframe.data.old_rows import convert_row


class ViewRecord(TypedDict):
    """Kept tokens and scores of one view, as lists of the rows of its grid, top to bottom and left to right.

    They are null where there is no token. `kept` is also true at the position of a token that a merger made.
    """

    image: int  # index of the picture in its sample
    frame: int  # index in a video, else 0
    box: list[float]  # top, left, bottom, right in the picture as the model sees it; padding is outside of 0..1
    kept: list[list[bool | None]]
    scores: list[list[float | None]]  # with six digits


@dataclass(frozen=True)
class Prediction:
    """One line of predictions.jsonl: a sample answered by one method at one budget, or the reason why it was not."""

    id: str
    type: str | None
    question: str
    answer: str | None  # None if it is not known
    label: str | None = None  # `method` as text, "VtcCls(last=3)"; None for a sample that failed in every run
    budget: dict[str, Any] | None = None  # as in the configuration; None for the untouched model
    prediction: str | None = None
    visual_tokens: int | None = None  # after the last stage
    visual_tokens_before: int | None = None  # before the first stage
    structural_tokens: int | None = None  # tokens between visual tokens, for example newlines, after the last stage
    layer_tokens: list[int] | None = None  # visual tokens that each layer of the language model reads
    kv_bytes: int | None = None  # size of the KV cache of the prompt
    seconds: float | None = None  # prune, splice and generate: the wall time of the batch divided by its samples
    encode_seconds: float | None = None  # the encoding, done once for all runs; 0 if it is a part of generate
    batch: int | None = None  # index of its batch; the first batch is slower than others
    images: list[str] = field(default_factory=list)  # paths of its pictures and videos
    views: list[ViewRecord] | None = None  # if the run records them and tokens were scored
    error: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)  # metadata of the sample that its benchmark needs for scores
    # as data (see vtcframe.core.serialization): {"name": "VtcCls", "last": 3}, {"stages": [...]}, {"name": "unpruned"}
    method: dict[str, Any] | None = None

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Prediction":
        """Return the row of a line of predictions.jsonl, without views. Rows of vtcframe 0.1 are converted."""
        return cls(**{**convert_row(row), "views": None})

    @property
    def mean_tokens_per_layer(self) -> float | None:
        """Mean, over the layers of the language model, of the visual tokens that a layer reads."""
        return fmean(self.layer_tokens) if self.layer_tokens else self.visual_tokens

    @property
    def correct(self) -> bool | None:
        """Whether prediction and answer are equal after normalisation; None if one of them is missing."""
        if self.prediction is None or self.answer is None:
            return None
        return normalise(self.prediction) == normalise(self.answer)


def normalise(text: str) -> str:
    """Strip white space, lower the case, and remove one full stop at the end."""
    return text.strip().lower().removesuffix(".").rstrip()


def accuracy(rows: Iterable[Prediction]) -> float | None:
    """Return the fraction of correct rows among those with an answer; None if there are none."""
    verdicts = [row.correct for row in rows if row.correct is not None]
    return fmean(verdicts) if verdicts else None


def mean_seconds(rows: Iterable[Prediction]) -> float | None:
    """Return the mean wall time per sample, encoding included. The first batch is left out if there are others."""
    timed = [row for row in rows if row.seconds is not None]
    later = [row for row in timed if row.batch] or timed
    return fmean((row.seconds or 0) + (row.encode_seconds or 0) for row in later) if later else None


def columns(
    rows: Sequence[Prediction], groups: Mapping[str, Collection[str]] | None = None
) -> dict[str, list[Prediction]]:
    """Split rows by type of question, in the order in which the types come; then by groups of types; then "all".

    `groups` maps the name of a group to its types (see `vtcframe.data.formats.read_groups`). A group is left out if no
    row belongs to it, or every row does.
    """
    split = parts(rows, lambda row: row.type)
    for name, types in (groups or {}).items():
        group = [row for row in rows if row.type in types]
        if 0 < len(group) < len(rows):
            split[name] = group
    return split | {"all": list(rows)}


def parts(rows: Iterable[Prediction], key: Callable[[Prediction], Any]) -> dict[Any, list[Prediction]]:
    """Return value of the key -> rows, in the order of the first row of each; rows whose key is None are left out."""
    split: dict[Any, list[Prediction]] = {}
    for row in rows:
        if (name := key(row)) is not None:
            split.setdefault(name, []).append(row)
    return split


class Score(NamedTuple):
    """A figure of a table, and the number of its questions. The figure is None if no answer is known."""

    questions: int
    value: float | None


def mean_score(values: Sequence[float | None]) -> Score:
    """Return the mean of the values that are not None."""
    numbers = [value for value in values if value is not None]
    return Score(len(values), fmean(numbers) if numbers else None)


def mean_scores(
    split: Mapping[str, Sequence[Prediction]], grade: Callable[[Prediction], float | None]
) -> dict[str, Score]:
    """Return the mean grade of each part. Parts may overlap."""
    return {name: mean_score([grade(row) for row in part]) for name, part in split.items()}


def runs(rows: Iterable[Prediction], failed: bool = False) -> dict[tuple[str, str], list[Prediction]]:
    """Return (label of the method, budget as text) -> rows, in the order of the first row of each.

    Rows with an error are included if `failed`. Rows of samples that failed in every run are left out.
    """
    included = (row for row in rows if row.label is not None and (failed or row.error is None))
    return parts(included, lambda row: (row.label, format_budget(row.budget)))


def format_budget(budget: dict[str, Any] | None) -> str:
    """Return the budget of a row as text: "0.25", "64 tokens", "9 tokens a image", or "-" without a budget."""
    if budget is None:
        return "-"
    amount = f"{budget['ratio']:.4g}" if "ratio" in budget else f"{budget['tokens']} tokens"
    return f"{amount} a {budget['per']}" if "per" in budget else amount
