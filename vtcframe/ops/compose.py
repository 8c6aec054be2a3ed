"""What is left behind several stages, told by the layout that the first of them saw."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtcframe.core import Evidence, Layout, Pruned


def located(column: Tensor, layout: Layout) -> Tensor:
    """[V, M] columns, -1 = padding -> [V, M] where in the rows of `layout` those tokens lie; -1 = padding."""
    far = torch.iinfo(torch.long).max
    ordered, index = layout.column.masked_fill(~layout.valid, far).sort(1)
    at = torch.searchsorted(ordered, column.contiguous()).clamp(max=max(0, ordered.shape[1] - 1))
    return index.gather(1, at).masked_fill(column < 0, -1)


def put(scores: Tensor, place: Tensor, values: Tensor) -> Tensor:
    """[V, N] with `values` [V, M] at `place` [V, M], -1 = nowhere."""
    width = scores.shape[1]
    return pad(scores, (0, 1)).scatter(1, place.masked_fill(place < 0, width), values)[:, :width]


def everything(evidence: Evidence) -> Pruned:
    """Return all tokens of evidence, each in its own place, in the order of their columns."""
    layout = evidence.layout
    place = layout.column.masked_fill(~layout.valid, torch.iinfo(torch.long).max).argsort(dim=1, stable=True)
    tokens = evidence.tokens.gather(1, place[..., None].expand(-1, -1, evidence.tokens.shape[2]))
    scores = torch.zeros(place.shape, device=place.device, dtype=torch.float32).masked_fill(~layout.valid, -torch.inf)
    return Pruned(tokens, place.masked_fill(~layout.valid.gather(1, place), -1), scores, layout)


def composed(first: Pruned, then: Pruned) -> Pruned:
    """What `then` left of what `first` had left, by the layout of `first`, or by samples where `then` joined views."""
    layout, scores = first.layout, first.scores
    if not torch.equal(then.layout.sample, layout.sample):
        joined = Evidence(scores[..., None], layout).joined()
        layout, scores = joined.layout, joined.tokens[..., 0].masked_fill(~joined.layout.valid, -torch.inf)
    scores = put(scores, located(then.layout.column, layout), then.scores)
    return Pruned(then.tokens, located(then.column, layout), scores, layout)
