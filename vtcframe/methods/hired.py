"""Methods for pictures that are seen twice, whole and in crops."""

from dataclasses import dataclass

from vtcframe.components.allocators import AttentionMass
from vtcframe.components.ensemblers import Mean
from vtcframe.components.scorers import ClsAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.method import MethodCard
from vtcframe.core.needs import ClsProxy
from vtcframe.core.pipeline import Pipeline
from vtcframe.methods._base import ClsScored


@dataclass(frozen=True, repr=False)
class HiRed(ClsScored):
    """HiRED (arXiv 2408.10945): crops share the budget by the overview's attention in the first block.

    `alpha` of a picture's budget goes to the overview; tokens are chosen by [CLS] in the last block that feeds the
    projector. Pictures without crops are pruned too; its code leaves them whole in LLaVA-NeXT. Where its code departs
    from the paper (regions are stretches of the raster, counts instead of sums, rounding loses tokens, padding is
    chosen and cut off afterwards), this does not. `query` names what stands in for a missing [CLS] (see ClsAttention).
    """

    card = MethodCard(
        paper="arXiv 2408.10945",
        signal="[CLS] attention of one block",
        selector="top-k",
        dropped="discarded",
        parity="exact without crops; differs: regions of crops are the paper's, not its code's",
    )
    alpha: float = 0.5
    query: ClsProxy = "cls"

    def pipeline(self) -> Pipeline:
        scorers, allocator = (ClsAttention(1, self.query),), AttentionMass(self.alpha, query=self.query)
        return Pipeline(scorers, Mean(), allocator, TopK())
