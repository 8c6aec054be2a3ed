"""UNVERIFIED methods: their numbers were never checked against the authors' code, because no code is public.

FoPru (arXiv 2411.14164) and TokenCorrelation (arXiv 2407.14439) are written from the papers alone. No test compares
them with recorded numbers. The docstrings name the choices that the papers leave open; results of these classes are not
results of the published methods.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean
from vtcframe.components.scorers import ClsAttention
from vtcframe.components.selectors import OutliersThenDraw, TopK, WholeRows
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.needs import ClsProxy
from vtcframe.core.pipeline import Pipeline


@dataclass(frozen=True)
class FoPru(Method):
    """FoPru (arXiv 2411.14164), unverified: keeps the most attended tokens ("rank") or rows of the grid ("row").

    Inspired by the paper, unverified: never checked against the authors' code, which is not public. Our choices:
    attention of the last block that feeds the projector, the queries of all patches, and the best tokens of a row that
    the budget cuts.
    """

    card = MethodCard(
        paper="arXiv 2411.14164",
        signal="attention received",
        selector="top-k or whole rows",
        dropped="discarded",
        parity="no public code, unverified",
    )
    keep: Literal["rank", "row"] = "rank"
    query: ClsProxy = "received"

    def __post_init__(self) -> None:
        if self.keep not in ("rank", "row"):
            raise ValueError(f"keep must be 'rank' (single tokens) or 'row' (whole rows), got {self.keep!r}")

    def pipeline(self) -> Pipeline:
        selector = TopK() if self.keep == "rank" else WholeRows()
        return Pipeline((ClsAttention(1, self.query),), Mean(), Even(), selector)


@dataclass(frozen=True)
class TokenCorrelation(Method):
    """Token-level correlation compression (arXiv 2407.14439), unverified: outliers of [CLS] attention, random others.

    Inspired by the paper, unverified: never checked against the authors' code, which is not public. OutliersThenDraw
    lists our choices. The paper derives the number of tokens from the picture; here the budget sets it.
    """

    card = MethodCard(
        paper="arXiv 2407.14439",
        signal="[CLS] attention, keys",
        selector="outliers, then drawn at random",
        dropped="discarded",
        parity="no public code, unverified",
    )
    layer: int = 5
    alike: float = 0.9
    _: KW_ONLY
    seed: int = 0

    def pipeline(self) -> Pipeline:
        return Pipeline(
            (ClsAttention(1),), Mean(), Even(), OutliersThenDraw(self.layer, alike=self.alike, seed=self.seed)
        )
