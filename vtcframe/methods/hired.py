"""HiRED (arXiv 2408.10945): the attention of a picture's overview splits the budget between its crops."""

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

    The share `alpha` of a picture's budget goes to the overview. Tokens are selected by [CLS] attention in the last
    block that feeds the projector. Pictures without crops are pruned too; the authors' code does not prune them in
    LLaVA-NeXT. This class follows the paper where the code deviates from it: the code's regions are ranges of the
    raster, it counts tokens instead of summing attention, its rounding loses tokens, and it selects padding that is cut
    off afterwards. `query` selects a proxy for towers without [CLS] (see ClsAttention).
    """

    card = MethodCard(
        paper="arXiv 2408.10945",
        signal="[CLS] attention of one block",
        selector="top-k",
        dropped="discarded",
        parity="exact without crops; differs: regions of crops are those of the paper, not of the code",
    )
    alpha: float = 0.5
    query: ClsProxy = "cls"

    def pipeline(self) -> Pipeline:
        allocator = AttentionMass(self.alpha, query=self.query)
        return Pipeline((ClsAttention(1, self.query),), Mean(), allocator, TopK())
