"""Ranking of scores, and conversion between masks, places and columns."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtcframe.core.layout import Layout


def highest(scores: Tensor, quota: Tensor) -> Tensor:
    """Scores [V, N], quota [V] -> [V, N] bool: the `quota` highest of each row; ties go to the lower index."""
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return rank < quota.to(scores.device)[:, None]


def rank_within(cell: Tensor, scores: Tensor) -> Tensor:
    """Cell [V, N], scores [V, N] -> [V, N]: rank of each token in its cell, from 0; ties go to the lower index."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, cell.gather(1, order).argsort(dim=1, stable=True))
    sorted_cell = cell.gather(1, order)
    first = torch.searchsorted(sorted_cell, sorted_cell)
    rank = torch.arange(cell.shape[1], device=cell.device) - first
    return torch.empty_like(rank).scatter_(1, order, rank)


def kept_places(mask: Tensor, by: Tensor | None = None) -> Tensor:
    """[V, N] bool -> [V, M] indices of True values; -1 = padding, M is at least 1.

    The order is raster order, or descending order of `by` [V, N].
    """
    key = mask.float() if by is None else by.masked_fill(~mask, -torch.inf)
    count = mask.sum(1)
    width = max([1, *count.tolist()])
    order = key.argsort(dim=1, descending=True, stable=True)[:, :width]
    return order.masked_fill(torch.arange(order.shape[1], device=mask.device) >= count[:, None], -1)


def first_tokens(free: Tensor, slots: Tensor) -> Tensor:
    """[V, N] bool, slots [V] -> [V, 1]: the first free place; -1 for a row without a free place or without a slot."""
    exists = free.any(1, keepdim=True) & (slots.to(free.device)[:, None] > 0)
    return free.long().argmax(1, keepdim=True).masked_fill(~exists, -1)


def real_tokens(values: Tensor, layout: Layout) -> Tensor:
    """[V, N, C] -> [V, N, C] float32 with padding set to 0, even if it is NaN."""
    return values.float().masked_fill(~layout.valid[..., None], 0)


def gather_tokens(values: Tensor, place: Tensor) -> Tensor:
    """Values [V, N, C], place [V, M] -> [V, M, C]; rows with place -1 hold arbitrary values."""
    return values.gather(1, place.clamp(min=0)[..., None].expand(-1, -1, values.shape[2]))


def best_match(values: Tensor, count: int) -> Tensor:
    """[..., N] -> [..., N] bool: the `count` highest values above -inf; ties go to the lower index."""
    last = values.topk(min(count, values.shape[-1])).values[..., -1:]
    above = values > last
    level = values == last
    return (above | (level & (level.cumsum(-1) <= count - above.sum(-1, keepdim=True)))) & (values > -torch.inf)


def find_columns(column: Tensor, layout: Layout) -> Tensor:
    """[V, M] columns, -1 = padding -> [V, M] indices of those tokens in the rows of `layout`; -1 = padding."""
    far = torch.iinfo(torch.long).max
    ordered, index = layout.column.masked_fill(~layout.valid, far).sort(1)
    at = torch.searchsorted(ordered, column.contiguous()).clamp(max=max(0, ordered.shape[1] - 1))
    return index.gather(1, at).masked_fill(column < 0, -1)


def scatter(scores: Tensor, place: Tensor, values: Tensor) -> Tensor:
    """Return scores [V, N] with `values` [V, M] written at `place` [V, M]; values at place -1 are ignored."""
    width = scores.shape[1]
    return pad(scores, (0, 1)).scatter(1, place.masked_fill(place < 0, width), values)[:, :width]
