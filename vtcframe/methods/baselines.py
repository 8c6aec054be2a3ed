"""Baselines without a paper: random tokens, an even grid, and average pooling."""

from dataclasses import dataclass

from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean
from vtcframe.components.mergers import CellMean
from vtcframe.components.scorers import Random
from vtcframe.components.selectors import Grid, TopK
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.pipeline import Pipeline


@dataclass(frozen=True)
class RandomPruner(Method):
    """Baseline: keeps tokens drawn uniformly without replacement, the same ones for a sample in any batch."""

    card = MethodCard(paper="", signal="none", selector="at random", dropped="discarded", parity="no public code")
    seed: int = 0

    def pipeline(self) -> Pipeline:
        return Pipeline((Random(self.seed),), Mean(), Even(), TopK())


@dataclass(frozen=True)
class UniformPruner(Method):
    """Baseline: keeps the tokens of an even spatial grid."""

    card = MethodCard(paper="", signal="none", selector="even grid", dropped="discarded", parity="no public code")

    def pipeline(self) -> Pipeline:
        return Pipeline((), Mean(), Even(), Grid())


@dataclass(frozen=True)
class Pool(Method):
    """Baseline: average pooling to the budget; each token of an even grid becomes the mean of the nearest tokens."""

    card = MethodCard(
        paper="",
        signal="none",
        selector="even grid",
        dropped="averaged into the nearest on the grid",
        parity="no public code",
    )

    def pipeline(self) -> Pipeline:
        return Pipeline((), Mean(), Even(), Grid(), CellMean())
