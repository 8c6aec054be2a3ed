"""What is left behind several stages, told by the layout that the first of them saw."""

import torch

from vtcframe.core.evidence import Evidence
from vtcframe.core.pruned import Pruned
from vtcframe.ops.gather import find_columns, scatter


def keep_all(evidence: Evidence) -> Pruned:
    """Return all tokens of evidence, each in its own place, in the order of their columns."""
    layout = evidence.layout
    place = layout.column.masked_fill(~layout.valid, torch.iinfo(torch.long).max).argsort(dim=1, stable=True)
    tokens = evidence.tokens.gather(1, place[..., None].expand(-1, -1, evidence.tokens.shape[2]))
    scores = torch.zeros(place.shape, device=place.device, dtype=torch.float32).masked_fill(~layout.valid, -torch.inf)
    return Pruned(tokens, place.masked_fill(~layout.valid.gather(1, place), -1), scores, layout)


def compose_prunings(first: Pruned, then: Pruned) -> Pruned:
    """What `then` left of what `first` had left, by the layout of `first`, or by samples where `then` joined views."""
    layout, scores = first.layout, first.scores
    if not torch.equal(then.layout.sample, layout.sample):
        joined = Evidence(scores[..., None], layout).join_views()
        layout, scores = joined.layout, joined.tokens[..., 0].masked_fill(~joined.layout.valid, -torch.inf)
    scores = scatter(scores, find_columns(then.layout.column, layout), then.scores)
    return Pruned(then.tokens, find_columns(then.column, layout), scores, layout)
