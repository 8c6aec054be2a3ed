"""The kinds of components, each an abstract class with one `__call__`: scorer, ensembler, allocator, selector, merger.

Components are frozen dataclasses. Their fields are their options, and their class name is their public name.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.needs import Need
from vtcframe.core.pruned import Pruned


class Component(ABC):  # noqa: B024 (the kinds add the abstract call)
    """Base of all components: an object that can require evidence."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """The evidence that must be gathered before the component is called."""
        return ()


class Scorer(Component):
    """Rates the importance of each token."""

    @abstractmethod
    def __call__(self, evidence: Evidence) -> Tensor:
        """Return scores [S, V, N] float32, finite for every token; S score maps."""


class Ensembler(Component):
    """Combines the score maps of all scorers and layers into a single map."""

    @abstractmethod
    def __call__(self, maps: list[Tensor], layout: Layout) -> Tensor:
        """[S, V, N] for each scorer -> [V, N]. Padding must not influence ranks or minima."""


class Allocator(Component):
    """Divides each sample's budget among its views."""

    @abstractmethod
    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        """Scores [V, N] (-inf at padding), budget [P] -> quota [V] on the CPU; a quota of 0 is allowed.

        Without a budget an adaptive allocator chooses the number of tokens; the others raise ValueError.
        """


class Selector(Component):
    """Chooses the tokens to keep."""

    @abstractmethod
    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        """Scores [V, N] (-inf at padding), quota [V] -> kept [V, N] bool, with quota[v] values True in row v."""


class Merger(Component):
    """Merges information of dropped tokens into kept or additional tokens."""

    def slots(self, quota: Tensor, layout: Layout) -> Tensor:
        """Quota [V] -> [V] number of output tokens that the selector does not choose; at most the quota."""
        return torch.zeros_like(quota)

    @abstractmethod
    def __call__(self, kept: Tensor, slots: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
        """Kept [V, N] bool, slots [V], scores [V, N] -> the remaining tokens.

        A new token takes the place of a dropped token.
        """
