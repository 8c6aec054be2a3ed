"""FasterVLM (arXiv 2412.01818)."""

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
class FasterVlm(ClsScored):
    """FasterVLM (arXiv 2412.01818): the most attended by [CLS] in the last block that feeds the projector.

    The paper counts tokens for each crop: Budget(tokens, per="view"). Its code drops un-padding and newlines from
    LLaVA-NeXT prompts; here padding is no candidate and newlines stay with their rows. `query` names what stands in for
    a missing [CLS] (see ClsAttention); that is no part of the paper.
    """

    card = MethodCard(
        paper="arXiv 2412.01818",
        signal="[CLS] attention of one block",
        selector="top-k",
        dropped="discarded",
        parity="exact",
    )
    query: ClsProxy = "cls"

    def pipeline(self) -> Pipeline:
        return Pipeline((ClsAttention(1, self.query),), Mean(), Even(), TopK())
