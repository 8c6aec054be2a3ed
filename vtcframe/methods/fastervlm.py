"""FasterVLM (arXiv 2412.01818): ranks tokens by the [CLS] attention of one encoder block."""

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
    """FasterVLM (arXiv 2412.01818): the tokens that [CLS] attends to most in the last block that feeds the projector.

    The paper counts tokens per crop: Budget(tokens, per="view"). The authors' code skips the un-padding and newlines of
    LLaVA-NeXT prompts; here padding is not a candidate, and newlines stay with their rows. `query` selects a proxy for
    towers without [CLS] (see ClsAttention), which is not part of the paper.
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
