"""TODO: vtcframe/core/verbs.py."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.needs import Need
from vtcframe.core.pruned import Pruned


class Component(ABC):  # noqa: B024 (the kinds add the abstract call)
    """Anything that may ask for evidence."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """What must be gathered before this is called."""
        return ()


class Scorer(Component):
    """Says how much each token matters."""

    @abstractmethod
    def __call__(self, evidence: Evidence) -> Tensor:
        """Return scores [S, V, N] float32, finite wherever there is a token."""


class Ensembler(Component):
    """Makes one map of several, be they layers or scorers."""

    @abstractmethod
    def __call__(self, maps: list[Tensor], layout: Layout) -> Tensor:
        """One [S, V, N] a scorer -> [V, N]. Padding must not reach ranks or minima."""


class Allocator(Component):
    """Splits each sample's budget over its views."""

    @abstractmethod
    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        """Scores [V, N] (-inf at padding), budget [P] -> quota [V] on the CPU; 0 is allowed.

        Without a budget an adaptive allocator decides by itself how many stay; the others raise ValueError.
        """


class Selector(Component):
    """Chooses which tokens stay."""

    @abstractmethod
    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        """Scores [V, N] (-inf at padding), quota [V] -> kept [V, N] bool with quota[v] True in row v."""


class Merger(Component):
    """Saves something of the dropped tokens."""

    def slots(self, quota: Tensor, layout: Layout) -> Tensor:
        """Quota [V] -> [V] output tokens that are not selected ones; never more than the quota."""
        return torch.zeros_like(quota)

    @abstractmethod
    def __call__(self, kept: Tensor, slots: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
        """Kept [V, N] bool, slots [V], scores [V, N] -> what is left; a new token takes the place of a dropped one."""
