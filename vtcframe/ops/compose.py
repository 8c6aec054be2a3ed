"""Composition of prunings from several stages, expressed in the layout of the first stage."""

import torch

from vtcframe.core.evidence import Evidence
from vtcframe.core.pruned import Pruned
from vtcframe.ops.gather import find_columns, scatter


def keep_all(evidence: Evidence) -> Pruned:
    """Return all tokens of the evidence, each in its own place, in the order of their columns."""
    layout = evidence.layout
    place = layout.column.masked_fill(~layout.valid, torch.iinfo(torch.long).max).argsort(dim=1, stable=True)
    tokens = evidence.tokens.gather(1, place[..., None].expand(-1, -1, evidence.tokens.shape[2]))
    scores = torch.zeros(place.shape, device=place.device, dtype=torch.float32).masked_fill(~layout.valid, -torch.inf)
    return Pruned(tokens, place.masked_fill(~layout.valid.gather(1, place), -1), scores, layout)


def compose_prunings(first: Pruned, then: Pruned) -> Pruned:
    """Return the tokens that remain after `first` and `then`, in the layout of `first`.

    `then` pruned the result of `first`. If `then` joined the views of samples, the rows of the result are samples.
    """
    layout = first.layout
    scores = first.scores
    if not torch.equal(then.layout.sample, layout.sample):
        joined = Evidence(scores[..., None], layout).join_views()
        layout = joined.layout
        scores = joined.tokens[..., 0].masked_fill(~layout.valid, -torch.inf)
    scores = scatter(scores, find_columns(then.layout.column, layout), then.scores)
    return Pruned(then.tokens, find_columns(then.column, layout), scores, layout)
