"""TODO: vtcframe/methods/damro.py."""

from dataclasses import dataclass

from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean
from vtcframe.components.scorers import ClsAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.pipeline import Pipeline


@dataclass(frozen=True)
class DamroOutliers(Method):
    """The outliers of DAMRO (arXiv 2410.04514): most attended by [CLS], all heads read as one of full width.

    The paper decodes in contrast to a picture of these alone (10 of LLaVA's 576); this keeps them, in raster order
    where the code has them by score. The contrast itself is decoding and not part of it.
    """

    card = MethodCard(
        paper="arXiv 2410.04514",
        signal="[CLS] attention, heads joined",
        selector="top-k",
        dropped="gone",
        parity="exact",
    )

    def pipeline(self) -> Pipeline:
        return Pipeline((ClsAttention(1, heads="joined"),), Mean(), Even(), TopK())
