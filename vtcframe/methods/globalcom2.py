"""GlobalCom2 (arXiv 2501.05179): budgets of crops follow the overview."""

from dataclasses import dataclass

from vtcframe.components.allocators import OverviewGuided
from vtcframe.components.ensemblers import OverviewFusion
from vtcframe.components.scorers import ClsAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.method import MethodCard
from vtcframe.core.needs import ClsProxy
from vtcframe.core.pipeline import Pipeline
from vtcframe.methods._base import ClsScored


@dataclass(frozen=True, repr=False)
class GlobalCom2(ClsScored):
    """GlobalCom2 (arXiv 2501.05179): the overview says how much of each crop stays, and helps to say what.

    Attention logits of the tower's last block, as in its code. Give it Budget(ratio=r): overview and crops keep about
    r of theirs. Its code rounds down, keeps the overview in order of scores and puts tokens of padded crops into wrong
    cells; here quotas sum to the budget and order is raster. `query` names what stands in for a missing [CLS] (see
    ClsAttention).
    """

    card = MethodCard(
        paper="arXiv 2501.05179",
        signal="[CLS] logits of the last block, a crop's and the overview's",
        selector="top-k",
        dropped="discarded",
        parity="exact given its rounding; differs: quotas sum to the budget, padded crops keep their cells",
    )
    tau: float = 10.0
    query: ClsProxy = "cls"

    def pipeline(self) -> Pipeline:
        scorer = ClsAttention(1, self.query, blocks="tower", pre_softmax=True)
        return Pipeline((scorer,), OverviewFusion(), OverviewGuided(self.tau), TopK())
