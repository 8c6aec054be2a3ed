"""VisionZip (arXiv 2412.04467): dominant tokens by [CLS] attention, and contextual tokens merged from the others."""

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
    """VisionZip (arXiv 2412.04467): dominant tokens by [CLS], [CLS] itself, the rest merged into contextual tokens.

    The paper counts tokens per view, of which the fraction `share` is contextual: 54 + 10 = 64, 108 + 20 and 162 + 30.
    The authors' code places the class tokens of crops after all dominant tokens, and the contextual tokens last; here
    the tokens of a view stay together. With a proxy for [CLS] (see ClsAttention) no class token is kept.
    """

    card = MethodCard(
        paper="arXiv 2412.04467",
        signal="[CLS] attention of one block",
        selector="top-k",
        dropped="merged into contextual tokens",
        parity="within 2e-5; differs: class and contextual tokens of crops stay with their crop",
    )
    share: float = 10 / 64
    query: ClsProxy = "cls"

    def pipeline(self) -> Pipeline:
        merger = Contextual(self.share, class_token=self.query == "cls")
        return Pipeline((ClsAttention(1, self.query),), Mean(), Even(), TopK(), merger)
