"""TODO: vtcframe/ops/gather.py."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtcframe.core.layout import Layout


def highest(scores: Tensor, quota: Tensor) -> Tensor:
    """[V, N], [V] -> [V, N] bool: the quota highest of each row; ties go to the lower index."""
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return rank < quota.to(scores.device)[:, None]


def rank_within(cell: Tensor, scores: Tensor) -> Tensor:
    """[V, N] each: the rank of a token, from 0, among those of its cell; ties go to the lower index."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, cell.gather(1, order).argsort(dim=1, stable=True))
    sorted_cell = cell.gather(1, order)
    first = torch.searchsorted(sorted_cell, sorted_cell)
    rank = torch.arange(cell.shape[1], device=cell.device) - first
    return torch.empty_like(rank).scatter_(1, order, rank)


def kept_places(mask: Tensor, by: Tensor | None = None) -> Tensor:
    """[V, N] bool -> [V, M] where it is True, in raster order or by falling `by` [V, N]; -1 = padding, M at least 1."""
    key = mask.float() if by is None else by.masked_fill(~mask, -torch.inf)
    count = mask.sum(1)
    width = max([1, *count.tolist()])
    order = key.argsort(dim=1, descending=True, stable=True)[:, :width]
    return order.masked_fill(torch.arange(order.shape[1], device=mask.device) >= count[:, None], -1)


def first_tokens(free: Tensor, slots: Tensor) -> Tensor:
    """[V, N] bool, slots [V] -> [V, 1]: the first free place, -1 where there is none or no slot."""
    wanted = free.any(1, keepdim=True) & (slots.to(free.device)[:, None] > 0)
    return free.long().argmax(1, keepdim=True).masked_fill(~wanted, -1)


def real_tokens(values: Tensor, layout: Layout) -> Tensor:
    """[V, N, C] in float32, 0 at padding, whatever lies there."""
    return values.float().masked_fill(~layout.valid[..., None], 0)


def gather_tokens(values: Tensor, place: Tensor) -> Tensor:
    """[V, N, C], [V, M] -> [V, M, C]; anything where place is -1."""
    return values.gather(1, place.clamp(min=0)[..., None].expand(-1, -1, values.shape[2]))


def best_match(values: Tensor, count: int) -> Tensor:
    """[..., N] -> bool: the `count` highest above -inf; of equals the first."""
    last = values.topk(min(count, values.shape[-1])).values[..., -1:]
    above, level = values > last, values == last
    return (above | (level & (level.cumsum(-1) <= count - above.sum(-1, keepdim=True)))) & (values > -torch.inf)


def find_columns(column: Tensor, layout: Layout) -> Tensor:
    """[V, M] columns, -1 = padding -> [V, M] where in the rows of `layout` those tokens lie; -1 = padding."""
    far = torch.iinfo(torch.long).max
    ordered, index = layout.column.masked_fill(~layout.valid, far).sort(1)
    at = torch.searchsorted(ordered, column.contiguous()).clamp(max=max(0, ordered.shape[1] - 1))
    return index.gather(1, at).masked_fill(column < 0, -1)


def scatter(scores: Tensor, place: Tensor, values: Tensor) -> Tensor:
    """[V, N] with `values` [V, M] at `place` [V, M], -1 = nowhere."""
    width = scores.shape[1]
    return pad(scores, (0, 1)).scatter(1, place.masked_fill(place < 0, width), values)[:, :width]
