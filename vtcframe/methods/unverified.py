"""UNVERIFIED: methods written from their papers alone, because their authors published no code.

Their numbers were never compared with those of their authors. Choices that a paper leaves open are named in the
docstrings.
"""

from dataclasses import dataclass
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
    """FoPru (arXiv 2411.14164): the most attended in the vision encoder, single tokens ("rank") or whole rows ("row").

    Inspired by the paper, unverified: there is no public code, and block, queries and what becomes of a partial row are
    ours (the last block that feeds the projector, all patches' queries, its best tokens).
    """

    card = MethodCard(
        paper="arXiv 2411.14164",
        signal="attention received",
        selector="top-k or whole rows",
        dropped="discarded",
        parity="no public code",
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
    """Token-level correlation-guided compression (arXiv 2407.14439): outliers of deep [CLS] attention and a draw.

    Inspired by the paper, unverified: there is no public code; what is ours is said in OutliersThenDraw. The paper
    finds the number of tokens by itself; here it is budgeted.
    """

    card = MethodCard(
        paper="arXiv 2407.14439",
        signal="[CLS] attention, keys",
        selector="outliers, then drawn at random",
        dropped="discarded",
        parity="no public code",
    )
    layer: int = 5
    alike: float = 0.9
    seed: int = 0

    def pipeline(self) -> Pipeline:
        return Pipeline(
            (ClsAttention(1),), Mean(), Even(), OutliersThenDraw(self.layer, alike=self.alike, seed=self.seed)
        )
