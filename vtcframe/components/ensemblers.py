"""Ensemblers combine the score maps of all scorers and layers: a map [S, V, N] for each scorer -> [V, N]."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtcframe.core.layout import Layout
from vtcframe.core.verbs import Ensembler
from vtcframe.ops.views import overview_of


@dataclass(frozen=True)
class Mean(Ensembler):
    """The mean over scorers of the mean over each scorer's layers."""

    def __call__(self, maps: list[Tensor], layout: Layout) -> Tensor:
        return torch.stack([m.mean(0) for m in maps]).mean(0)


@dataclass(frozen=True)
class Weighted(Ensembler):
    """The weighted sum of the scorers; a weight applies to the mean over a scorer's layers.

    Maps are not rescaled: attention is about 1/N, a random score about 1/2. RankFusion does not depend on the scale.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(self.weights))

    def __call__(self, maps: list[Tensor], layout: Layout) -> Tensor:
        if len(maps) != len(self.weights):
            raise ValueError(
                f"Weighted has {len(self.weights)} weights for {len(maps)} scorers: give a weight for each scorer"
            )
        return torch.stack([w * m.mean(0) for w, m in zip(self.weights, maps, strict=True)]).sum(0)


@dataclass(frozen=True)
class RankFusion(Ensembler):
    """Reciprocal rank fusion (Cormack et al., SIGIR 2009): the sum of 1 / (k + rank) over all maps.

    The paper uses k=60. Nothing is learned, and the scale of the maps does not matter. Within a map, ties go to the
    earlier token.
    """

    k: int = 60

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ValueError(f"k must not be negative, got {self.k}")

    def __call__(self, maps: list[Tensor], layout: Layout) -> Tensor:
        return (1 / (self.k + 1 + _ranks(maps, layout))).sum(0)


@dataclass(frozen=True)
class Borda(Ensembler):
    """Borda count: the share of the view's other tokens that rank below a token, mean over all maps.

    Shares make views of different sizes comparable. Within a map, ties go to the earlier token.
    """

    def __call__(self, maps: list[Tensor], layout: Layout) -> Tensor:
        others = (layout.valid.sum(1, keepdim=True) - 1).clamp(min=1)
        return (1 - _ranks(maps, layout) / others).mean(0)


@dataclass(frozen=True)
class Max(Ensembler):
    """The maximum over all maps, so that a token with a high score in any map ranks high. Maps are not rescaled."""

    def __call__(self, maps: list[Tensor], layout: Layout) -> Tensor:
        return torch.cat(maps).amax(0)


@dataclass(frozen=True)
class OverviewFusion(Ensembler):
    """A crop's map plus the crop's region of the overview's map, each normalised to length 1.

    GlobalCom2 (arXiv 2501.05179). Views without an overview keep their maps. The overview's map is interpolated
    bilinearly at the centres of the crop's tokens. Several maps are averaged first. Deviation: after un-padding, the
    authors' code confuses the index of a token with its place in the crop, which mixes up the scores of padded crops;
    here every token keeps its score.
    """

    def __call__(self, maps: list[Tensor], layout: Layout) -> Tensor:
        scores = Mean()(maps, layout).masked_fill(~layout.valid, 0)
        overview = overview_of(layout)
        crop = (overview >= 0).nonzero()[:, 0].to(scores.device)
        if not len(crop):
            return scores
        source = overview[overview >= 0].to(scores.device)
        region = _interpolate(scores[source], layout.grid[source], layout.centre[crop])
        region = region.masked_fill(~layout.valid[crop], 0)
        return scores.index_copy(0, crop, F.normalize(scores[crop], dim=1) + F.normalize(region, dim=1))


def _ranks(maps: list[Tensor], layout: Layout) -> Tensor:
    """[S, V, N] ranks of all maps, 0 = the highest of its row; padding comes last."""
    stacked = torch.cat(maps).masked_fill(~layout.valid, -torch.inf)
    return stacked.argsort(dim=-1, descending=True, stable=True).argsort(-1)


def _interpolate(values: Tensor, grid: Tensor, at: Tensor) -> Tensor:
    """Values [C, N] on grid [C, N, 2] (-1 = padding), points `at` [C, M, 2] in 0..1 -> [C, M], bilinearly."""
    size = grid.amax(1, keepdim=True) + 1
    high, wide = size.amax((0, 1)).tolist()
    cell = (grid[..., 0] * wide + grid[..., 1]).masked_fill(grid[..., 0] < 0, high * wide)
    dense = values.new_zeros(len(values), high * wide + 1).scatter_(1, cell, values)
    at = (at.nan_to_num() * size - 0.5).clamp(min=0).minimum(size - 1)
    low = at.long()
    up = (low + 1).minimum(size - 1)
    part = at - low
    total = torch.zeros_like(at[..., 0])
    for row, row_weight in ((low, 1 - part), (up, part)):
        for column, column_weight in ((low, 1 - part), (up, part)):
            corner = dense.gather(1, row[..., 0] * wide + column[..., 1])
            total += row_weight[..., 0] * column_weight[..., 1] * corner
    return total
