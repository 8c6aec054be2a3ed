"""Ensemblers: one [S, V, N] a scorer -> [V, N]."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtcframe.core.layout import Layout
from vtcframe.core.verbs import Ensembler
from vtcframe.ops.views import overview_of


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
        return (1 / (self.k + 1 + _ranks(maps, layout))).sum(0)


@dataclass(frozen=True)
class Borda(Ensembler):
    """Borda count: the share of its view's other tokens that a token is ranked above, mean over all maps.

    Shares and not counts, so that views of different size compare. In a map, ties go to the earlier token.
    """

    def __call__(self, maps: list[Tensor], layout: Layout) -> Tensor:
        others = (layout.valid.sum(1, keepdim=True) - 1).clamp(min=1)
        return (1 - _ranks(maps, layout) / others).mean(0)


@dataclass(frozen=True)
class Max(Ensembler):
    """The highest of all maps: what one of them finds important stays. Maps keep their own scale."""

    def __call__(self, maps: list[Tensor], layout: Layout) -> Tensor:
        return torch.cat(maps).amax(0)


@dataclass(frozen=True)
class OverviewFusion(Ensembler):
    """A crop's map plus its region of the overview's, each of length 1; all other views keep their own.

    GlobalCom2 (arXiv 2501.05179). The overview's map is read where the crop's tokens lie, bilinearly. Its code takes a
    token's place among those that un-padding left for its place in the crop, which scrambles padded crops; here every
    token keeps its own score. Several maps are averaged first.
    """

    def __call__(self, maps: list[Tensor], layout: Layout) -> Tensor:
        scores = Mean()(maps, layout).masked_fill(~layout.valid, 0)
        whole = overview_of(layout)
        crop = (whole >= 0).nonzero()[:, 0].to(scores.device)
        if not len(crop):
            return scores
        source = whole[whole >= 0].to(scores.device)
        piece = _read(scores[source], layout.grid[source], layout.centre[crop]).masked_fill(~layout.valid[crop], 0)
        return scores.index_copy(0, crop, F.normalize(scores[crop], dim=1) + F.normalize(piece, dim=1))


def _ranks(maps: list[Tensor], layout: Layout) -> Tensor:
    """[S, V, N], 0 = the highest of its row; padding comes last."""
    every = torch.cat(maps).masked_fill(~layout.valid, -torch.inf)
    return every.argsort(dim=-1, descending=True, stable=True).argsort(-1)


def _read(values: Tensor, grid: Tensor, at: Tensor) -> Tensor:
    """Read values [C, N] that lie on grid [C, N, 2] (-1 = padding) at [C, M, 2] in 0..1, bilinearly -> [C, M]."""
    size = grid.amax(1, keepdim=True) + 1
    high, wide = size.amax((0, 1)).tolist()
    cell = (grid[..., 0] * wide + grid[..., 1]).masked_fill(grid[..., 0] < 0, high * wide)
    dense = values.new_zeros(len(values), high * wide + 1).scatter_(1, cell, values)
    at = (at.nan_to_num() * size - 0.5).clamp(min=0).minimum(size - 1)
    low = at.long()
    up, part = (low + 1).minimum(size - 1), at - low
    read = torch.zeros_like(at[..., 0])
    for row, near_row in ((low, 1 - part), (up, part)):
        for column, near_column in ((low, 1 - part), (up, part)):
            corner = dense.gather(1, row[..., 0] * wide + column[..., 1])
            read += near_row[..., 0] * near_column[..., 1] * corner
    return read
