"""Selectors: (scores [V, N], quota [V], evidence) -> kept [V, N] bool with quota[v] True in row v."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtcframe.core import Evidence, Layout
from vtcframe.pipeline import Selector


def highest(scores: Tensor, quota: Tensor) -> Tensor:
    """[V, N], [V] -> [V, N] bool: the quota highest of each row; ties go to the lower index."""
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return rank < quota.to(scores.device)[:, None]


@dataclass(frozen=True)
class TopK(Selector):
    """The highest scores; ties go to the lower index."""

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        return highest(scores, quota)


@dataclass(frozen=True)
class Grid(Selector):
    """An even spatial grid of exactly the quota, whatever the scores say.

    A view of R x C tokens gets about sqrt(quota R / C) rows, evenly spaced, and each of them its share of the quota,
    evenly spaced too. Where the tokens left are no full rectangle, what the grid misses is filled evenly in raster
    order.
    """

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        nth = layout.valid.cumsum(1) - 1
        filler = (nth * 0.6180339887) % 1  # multiples of the golden ratio spread evenly at every length
        wanted = _lattice(layout, quota.to(layout.column.device)) * 2 + filler
        return highest(wanted.masked_fill(~layout.valid, -torch.inf), quota)


def _lattice(layout: Layout, quota: Tensor) -> Tensor:
    """[V, N] bool: `quota` points spread evenly over the rectangle that a view's tokens span."""
    valid = layout.valid[..., None]
    low = layout.grid.masked_fill(~valid, torch.iinfo(layout.grid.dtype).max).amin(1, keepdim=True)
    at = layout.grid - low
    high, wide = (at.masked_fill(~valid, 0).amax(1) + 1).unbind(-1)
    rows = (quota * high / wide).sqrt().round().long()
    rows = rows.maximum((quota + wide - 1) // wide).minimum(high).minimum(quota).clamp(min=1)[:, None]
    quota, high, wide = quota[:, None], high[:, None], wide[:, None]

    row, on_row = _spread(at[..., 0], rows, high)
    each = (row + 1) * quota // rows - row * quota // rows
    _, on_column = _spread(at[..., 1], each, wide)
    return on_row & on_column & layout.valid


def _spread(index: Tensor, count: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Put `count` picks into the middles of as many equal spans of `size` cells.

    Return the number of the last pick up to cell `index`, and whether that cell is a pick. With count <= size the
    picks are distinct.
    """
    upto = (2 * count * (index + 1) + size - 1) // (2 * size)
    return upto - 1, upto > (2 * count * index + size - 1) // (2 * size)
