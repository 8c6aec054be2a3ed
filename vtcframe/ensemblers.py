"""Ensemblers: one [S, V, N] a scorer -> [V, N]."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtcframe.core import Layout
from vtcframe.pipeline import Ensembler


@dataclass(frozen=True)
class Mean(Ensembler):
    """Mean of the scorers, each the mean of its layers."""

    def __call__(self, maps: list[Tensor], layout: Layout) -> Tensor:
        return torch.stack([m.mean(0) for m in maps]).mean(0)


@dataclass(frozen=True)
class Weighted(Ensembler):
    """Sum of the scorers with one weight each, shared by a scorer's layers (their mean is weighed).

    Maps keep their own scale: attention is about 1/N, a random score about 1/2. RankFusion needs no scale.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(self.weights))

    def __call__(self, maps: list[Tensor], layout: Layout) -> Tensor:
        if len(maps) != len(self.weights):
            raise ValueError(f"Weighted has {len(self.weights)} weights for {len(maps)} scorers: give one a scorer")
        return torch.stack([w * m.mean(0) for w, m in zip(self.weights, maps, strict=True)]).sum(0)


@dataclass(frozen=True)
class RankFusion(Ensembler):
    """Reciprocal rank fusion (Cormack et al., SIGIR 2009): the sum of 1 / (k + rank) over all maps; k=60 there.

    Nothing is learned and no scale matters. In a map, ties go to the earlier token.
    """

    k: int = 60

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ValueError(f"k must not be negative, got {self.k}")

    def __call__(self, maps: list[Tensor], layout: Layout) -> Tensor:
        every = torch.cat(maps).masked_fill(~layout.valid, -torch.inf)
        rank = every.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        return (1 / (self.k + 1 + rank)).sum(0)
