"""TODO: vtcframe/data/results.py."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple, TypedDict

from vtcframe.data.old_rows import convert_row


class ViewRecord(TypedDict):
    """What became of one view. `kept` and `scores` are lists of the grid's rows, top to bottom, left to right.

    They hold null where there is no token. `kept` is true also where a merger's new token has taken the place.
    """

    image: int  # which picture of its sample
    frame: int  # of a video, else 0
    box: list[float]  # top, left, bottom, right in its picture as the model was shown it, 0..1; padding lies outside
    kept: list[list[bool | None]]
    scores: list[list[float | None]]  # six digits


@dataclass(frozen=True)
class Prediction:
    """One line of predictions.jsonl: a sample answered by one method at one budget, or the reason why it was not."""

    id: str
    type: str | None
    question: str
    answer: str | None  # None where it is not known
    label: str | None = None  # `method` as text, "VtcCls(last=3)"; None for a sample that failed in every run
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
    images: list[str] = field(default_factory=list)  # where its pictures and videos are, as its benchmark names them
    views: list[ViewRecord] | None = None  # where the writer wants them and tokens were judged
    error: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)  # the sample's, by which its benchmark scores
    # as data (see vtcframe.core.component_data): {"name": "VtcCls", "last": 3}, {"stages": [...]}, {"name": "unpruned"}
    method: dict[str, Any] | None = None

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Prediction":
        """Make a row of what predictions.jsonl holds, its views left out; rows of vtcframe 0.1 are converted."""
        return cls(**{**convert_row(row), "views": None})

    @property
    def mean_tokens_per_layer(self) -> float | None:
        """Visual tokens that a layer of the language model read, mean over the layers."""
        return fmean(self.layer_tokens) if self.layer_tokens else self.visual_tokens

    @property
    def correct(self) -> bool | None:
        """Whether prediction and answer match, normalised; None where either is missing."""
        if self.prediction is None or self.answer is None:
            return None
        return normalise(self.prediction) == normalise(self.answer)


def normalise(text: str) -> str:
    """Strip, lower the case, drop one final full stop."""
    return text.strip().lower().removesuffix(".").rstrip()


def accuracy(rows: Iterable[Prediction]) -> float | None:
    """Fraction of the rows with an answer that are correct; None where there are none."""
    verdicts = [row.correct for row in rows if row.correct is not None]
    return fmean(verdicts) if verdicts else None


def seconds(rows: Iterable[Prediction]) -> float | None:
    """Mean wall time a sample, encoding included. The first batch, a warm-up, counts only where it is the only one."""
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
    """Split rows by a key, in the order in which its values come; None is no part."""
    split: dict[Any, list[Prediction]] = {}
    for row in rows:
        if (name := key(row)) is not None:
            split.setdefault(name, []).append(row)
    return split


class Score(NamedTuple):
    """A figure of a table, and of how many questions it is. None where no answer is known."""

    questions: int
    value: float | None


def mean_score(values: Sequence[float | None]) -> Score:
    """Mean of those that are known."""
    known = [value for value in values if value is not None]
    return Score(len(values), fmean(known) if known else None)


def mean_scores(
    split: Mapping[str, Sequence[Prediction]], grade: Callable[[Prediction], float | None]
) -> dict[str, Score]:
    """Mean grade of each part. Parts may overlap."""
    return {name: mean_score([grade(row) for row in part]) for name, part in split.items()}


def runs(rows: Iterable[Prediction], failed: bool = False) -> dict[tuple[str, str], list[Prediction]]:
    """Split rows by method and budget, both in words, in the order in which they come; those that `failed` if asked.

    Rows of samples that failed in every run are of none.
    """
    own = (row for row in rows if row.label is not None and (failed or row.error is None))
    return parts(own, lambda row: (row.label, format_budget(row.budget)))


def format_budget(budget: dict[str, Any] | None) -> str:
    """Return a row's budget in words."""
    if budget is None:
        return "-"
    amount = f"{budget['ratio']:.4g}" if "ratio" in budget else f"{budget['tokens']} tokens"
    return f"{amount} a {budget['per']}" if "per" in budget else amount
