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
    """VisPruner (arXiv 2412.01818): the tokens that [CLS] attends to most, then the others without duplicates.

    The fraction `important` of the budget is selected by attention. The paper counts tokens per crop: Budget(tokens,
    per="view"). The authors' code fails if the number of other tokens is odd (see Deduplicate). For towers without
    [CLS] give query="received".
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
