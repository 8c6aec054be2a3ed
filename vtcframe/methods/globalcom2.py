"""GlobalCom2 (arXiv 2501.05179): the overview of a picture sets the budgets of its crops."""

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
    """GlobalCom2 (arXiv 2501.05179): the overview sets the quotas of the crops and contributes to their scores.

    Scores are attention logits of the tower's last block, as in the authors' code. With Budget(ratio=r) the overview
    and the crops each keep about the fraction r of their tokens. The code rounds down, keeps the tokens of the overview
    in order of scores, and assigns tokens of padded crops to wrong cells; here quotas sum to the budget, and tokens are
    in raster order. `query` selects a proxy for towers without [CLS] (see ClsAttention).
    """

    card = MethodCard(
        paper="arXiv 2501.05179",
        signal="[CLS] logits of the last block, a crop's and the overview's",
        selector="top-k",
        dropped="discarded",
        parity="exact, given the code's rounding; differs: quotas sum to the budget, padded crops keep their cells",
    )
    tau: float = 10.0
    query: ClsProxy = "cls"

    def pipeline(self) -> Pipeline:
        scorer = ClsAttention(1, self.query, blocks="tower", pre_softmax=True)
        return Pipeline((scorer,), OverviewFusion(), OverviewGuided(self.tau), TopK())
