"""DivPrune (arXiv 2503.02175): the tokens that maximise the minimum distance between them."""

from dataclasses import dataclass

from vtcframe.components.allocators import Even
from vtcframe.components.diverse_selectors import MaxMin
from vtcframe.components.ensemblers import Mean
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.pipeline import Pipeline


@dataclass(frozen=True)
class DivPrune(Method):
    """DivPrune (arXiv 2503.02175): greedily keeps the tokens of a sample that are farthest apart.

    In the authors' code the newline tokens of LLaVA-NeXT are candidates; here they stay with their rows.
    """

    card = MethodCard(
        paper="arXiv 2503.02175",
        signal="none",
        selector="max-min distance of tokens",
        dropped="discarded",
        parity="exact",
    )

    def pipeline(self) -> Pipeline:
        return Pipeline((), Mean(), Even(), MaxMin(), across="sample")
