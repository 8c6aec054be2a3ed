"""VTC-CLS (arXiv 2412.05819): ranks tokens by [CLS] attention, mean over the last encoder blocks."""

from dataclasses import dataclass

from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean
from vtcframe.components.scorers import ClsAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.method import MethodCard
from vtcframe.core.needs import ClsProxy
from vtcframe.core.pipeline import Pipeline
from vtcframe.methods._base import ClsScored


@dataclass(frozen=True, repr=False)
class VtcCls(ClsScored):
    """VTC-CLS (arXiv 2412.05819): the tokens that [CLS] attends to most, mean over the last blocks.

    Only blocks that feed the projector count. The authors' code sums over layers where the paper averages (the ranking
    is the same), renumbers positions ("compact" here) and takes its layer from the command line. According to third
    parties last=3 reproduces the paper's tables; the code's default, start layer 16 of CLIP-L, is last=7. `query`
    selects a proxy for towers without [CLS] (see ClsAttention), which is not part of the paper.
    """

    card = MethodCard(
        paper="arXiv 2412.05819",
        signal="[CLS] attention, mean over the last blocks",
        selector="top-k",
        dropped="discarded",
        parity="exact",
    )
    last: int = 3
    query: ClsProxy = "cls"

    def pipeline(self) -> Pipeline:
        return Pipeline((ClsAttention(self.last, self.query),), Mean(), Even(), TopK())
