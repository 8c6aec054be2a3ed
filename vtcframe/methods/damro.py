"""DAMRO (arXiv 2410.04514): the outlier tokens of its contrastive decoding, used here as a pruner."""

from dataclasses import dataclass

from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean
from vtcframe.components.scorers import ClsAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.pipeline import Pipeline


@dataclass(frozen=True)
class DamroOutliers(Method):
    """The outliers of DAMRO (arXiv 2410.04514): the tokens that [CLS] attends to most, all heads joined as one.

    The paper decodes in contrast to a picture that consists of these tokens only (10 of LLaVA's 576). This class keeps
    these tokens, in raster order, where the code orders them by score. The contrastive decoding itself is not part of
    this class.
    """

    card = MethodCard(
        paper="arXiv 2410.04514",
        signal="[CLS] attention, heads joined",
        selector="top-k",
        dropped="discarded",
        parity="exact",
    )

    def pipeline(self) -> Pipeline:
        return Pipeline((ClsAttention(1, heads="joined"),), Mean(), Even(), TopK())
