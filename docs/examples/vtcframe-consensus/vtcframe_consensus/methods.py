"""One whole method."""

from dataclasses import dataclass

from vtcframe import Coverage, Even, Mean, Method, Mixed, Pipeline
from vtcframe.core.method import MethodCard

from vtcframe_consensus.scorers import Consensus


@dataclass(frozen=True)
class ConsensusPruner(Method):
    """`agreed` of the budget to what three blocks agree on, the rest to what stands for all other tokens."""

    card = MethodCard(
        paper="",
        signal="least [CLS] attention of three blocks",
        selector="top-k, then coverage",
        dropped="gone",
        parity="ours",
    )
    agreed: float = 0.75

    def pipeline(self) -> Pipeline:
        return Pipeline((Consensus(),), Mean(), Even(), Mixed(Coverage(), self.agreed))
