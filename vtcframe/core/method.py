"""TODO: vtcframe/core/method.py."""

from dataclasses import dataclass
from typing import ClassVar

from vtcframe.core.budget import Budget
from vtcframe.core.contracts import describe_type
from vtcframe.core.evidence import Evidence
from vtcframe.core.needs import Need
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Pruner


@dataclass(frozen=True)
class MethodCard:
    """What a table of methods says of one; docs/methods.md is made of these."""

    paper: str  # "arXiv 2412.05819", or "" for a baseline
    signal: str  # what tokens are judged by
    selector: str
    dropped: str  # what becomes of the dropped tokens
    parity: str  # "exact", "within 2e-5", "differs: ..." with what and why, or "no public code"
    site: str = "projector"
    text: bool = False  # whether the question matters


class Method(Pruner):
    """A published pruner: its own few plain fields, its paper in the docstring.

    Override `pipeline`; override `stages` too where it acts at another site or at several.
    """

    card: ClassVar[MethodCard]

    def pipeline(self) -> Pipeline:
        """Return the parts it is made of."""
        raise TypeError(f"{type(self).__name__} acts at several stages: give it as the method, not inside a stage")

    @property
    def needs(self) -> tuple[Need, ...]:
        return self._made().needs

    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        return self._made()(evidence, budget)

    def _made(self) -> Pruner:
        if not isinstance(made := self.pipeline(), Pruner):
            raise TypeError(f"pipeline() returned {describe_type(made)}, and not a Pipeline")
        return made
