"""Methods that merge what they drop, and average pooling beside them."""

from dataclasses import dataclass

from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean
from vtcframe.components.mergers import Contextual
from vtcframe.components.scorers import ClsAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.method import MethodCard
from vtcframe.core.needs import ClsProxy
from vtcframe.core.pipeline import Pipeline
from vtcframe.methods._base import ClsScored


@dataclass(frozen=True, repr=False)
class VisionZip(ClsScored):
    """VisionZip (arXiv 2412.04467): dominant tokens by [CLS], [CLS] itself, the rest merged into contextual ones.

    The paper counts tokens for each view, of which `share` are contextual: 54 + 10 = 64, 108 + 20 and 162 + 30. Its
    code reads the class tokens of crops behind all dominant tokens, and their contextual ones last; here what a view
    keeps stays together. With a stand-in for [CLS] (see ClsAttention) no class token is kept.
    """

    card = MethodCard(
        paper="arXiv 2412.04467",
        signal="[CLS] attention of one block",
        selector="top-k",
        dropped="merged into contextual tokens",
        parity="within 2e-5; differs: crops' class and contextual tokens are read with their crop",
    )
    share: float = 10 / 64
    query: ClsProxy = "cls"

    def pipeline(self) -> Pipeline:
        merger = Contextual(self.share, class_token=self.query == "cls")
        return Pipeline((ClsAttention(1, self.query),), Mean(), Even(), TopK(), merger)
