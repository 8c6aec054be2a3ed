"""VisPruner (arXiv 2412.01818): [CLS] attention, then removal of duplicates."""

from dataclasses import dataclass

from vtcframe.components.allocators import Even
from vtcframe.components.diverse_selectors import Deduplicate
from vtcframe.components.ensemblers import Mean
from vtcframe.components.scorers import ClsAttention
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.needs import ClsProxy
from vtcframe.core.pipeline import Pipeline


@dataclass(frozen=True)
class VisPruner(Method):
    """VisPruner (arXiv 2412.01818): the most attended by [CLS], then the others without their duplicates.

    The paper counts tokens for each crop: Budget(tokens, per="view"). Its code fails where the others are odd in
    number; see Deduplicate. For towers without [CLS] it takes query="received".
    """

    card = MethodCard(
        paper="arXiv 2412.01818",
        signal="[CLS] attention of one block",
        selector="top-k, then de-duplication",
        dropped="discarded",
        parity="exact",
    )
    important: float = 0.5
    query: ClsProxy = "cls"

    def pipeline(self) -> Pipeline:
        return Pipeline((ClsAttention(1, self.query),), Mean(), Even(), Deduplicate(self.important))
