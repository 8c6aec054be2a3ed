"""Methods for pictures that are seen twice, whole and in crops."""

from dataclasses import dataclass

from vtcframe.allocators import AttentionMass, OverviewGuided
from vtcframe.ensemblers import Mean, OverviewFusion
from vtcframe.methods.cls import ByCls
from vtcframe.needs import Stand
from vtcframe.pipeline import Facts, Pipeline
from vtcframe.scorers import ClsAttention
from vtcframe.selectors import TopK


@dataclass(frozen=True, repr=False)
class HiRed(ByCls):
    """HiRED (arXiv 2408.10945): crops share the budget by the overview's attention in the first block.

    `alpha` of a picture's budget goes to the overview; tokens are chosen by [CLS] in the last block that feeds the
    projector. Pictures without crops are pruned too; its code leaves them whole in LLaVA-NeXT. Where its code departs
    from the paper (regions are stretches of the raster, counts instead of sums, rounding loses tokens, padding is
    chosen and cut off afterwards), this does not. `query` names what stands in for a missing [CLS] (see ClsAttention).
    """

    facts = Facts(
        "arXiv 2408.10945",
        "[CLS] attention of one block",
        "top-k",
        "gone",
        "exact without crops; differs: regions of crops are the paper's, not its code's",
    )
    alpha: float = 0.5
    query: Stand = "cls"

    def pipeline(self) -> Pipeline:
        scorers, allocator = (ClsAttention(1, self.query),), AttentionMass(self.alpha, query=self.query)
        return Pipeline(scorers, Mean(), allocator, TopK())


@dataclass(frozen=True, repr=False)
class GlobalCom2(ByCls):
    """GlobalCom2 (arXiv 2501.05179): the overview says how much of each crop stays, and helps to say what.

    Attention logits of the tower's last block, as in its code. Give it Budget(ratio=r): overview and crops keep about
    r of theirs. Its code rounds down, keeps the overview in order of scores and puts tokens of padded crops into wrong
    cells; here quotas sum to the budget and order is raster. `query` names what stands in for a missing [CLS] (see
    ClsAttention).
    """

    facts = Facts(
        "arXiv 2501.05179",
        "[CLS] logits of the last block, a crop's and the overview's",
        "top-k",
        "gone",
        "exact given its rounding; differs: quotas sum to the budget, padded crops keep their cells",
    )
    tau: float = 10.0
    query: Stand = "cls"

    def pipeline(self) -> Pipeline:
        scorer = ClsAttention(1, self.query, of="tower", logits=True)
        return Pipeline((scorer,), OverviewFusion(), OverviewGuided(self.tau), TopK())
