"""The base class of published methods, and the card that describes a method in the documentation."""

from dataclasses import dataclass
from typing import ClassVar

from vtcframe.core.budget import Budget
from vtcframe.core.contracts import describe_type
from vtcframe.core.evidence import Evidence
from vtcframe.core.needs import Need
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Pruner


@dataclass(frozen=True, kw_only=True)
class MethodCard:
    """The row of a method in docs/methods.md."""

    paper: str  # "arXiv 2412.05819", or "" for a baseline
    signal: str  # the signal by which tokens are scored
    selector: str
    dropped: str  # what happens to dropped tokens
    parity: str  # "exact", "within 2e-5", "differs: ..." with the difference and its reason, or "no public code"
    site: str = "projector"
    text: bool = False  # whether the question influences the selection


class Method(Pruner):
    """A published pruner: a frozen dataclass with a few plain options and its paper in the docstring.

    Override `pipeline`. Override `stages` too if the method acts at another site or at several sites.
    """

    card: ClassVar[MethodCard]

    def pipeline(self) -> Pipeline:
        """Return the pipeline of components that the method consists of."""
        raise TypeError(f"{type(self).__name__} acts at several stages: give it as the method, not inside a stage")

    @property
    def needs(self) -> tuple[Need, ...]:
        return self._checked_pipeline().needs

    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        return self._checked_pipeline()(evidence, budget)

    def _checked_pipeline(self) -> Pruner:
        if not isinstance(pipeline := self.pipeline(), Pruner):
            raise TypeError(f"pipeline() returned {describe_type(pipeline)}, and not a Pipeline")
        return pipeline
