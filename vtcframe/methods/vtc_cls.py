"""Methods that rank by [CLS], and the baselines they are compared with."""

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
    """VTC-CLS (arXiv 2412.05819): the most attended by [CLS], mean over the last blocks that feed the projector.

    The authors' code sums layers where the paper averages (the same ranking), numbers positions anew ("compact" here)
    and leaves its layer to the command line. last=3 reproduces the paper's tables according to third parties; the
    code's default, start layer 16 of CLIP-L, is last=7. `query` names what stands in for a missing [CLS] (see
    ClsAttention); that is no part of the paper.
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
