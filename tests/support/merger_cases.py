"""Mergers and ragged views."""

from dataclasses import replace

import torch

from vtcframe.ops.gather import highest
from vtcframe.testing import make_evidence

RAGGED = {1: [(3, 4), (2, 2)], 2: [(5, 5)], 3: [(1, 1)]}


def drawn(needs, seed, part=0.4, levels=0):
    """Ragged evidence, kept [V, N] of `part` and scores; with `levels`, so few different tokens and scores."""
    evidence, rng = make_evidence(needs, RAGGED, channels=6), torch.Generator().manual_seed(seed)
    valid = evidence.layout.valid
    scores = torch.rand(valid.shape, generator=rng)
    if levels:
        scores = (scores * levels).round() / levels
        few = torch.rand(levels, 6, generator=rng)[torch.randint(levels, valid.shape, generator=rng)]
        evidence = replace(evidence, tokens=few.where(valid[..., None], 1e4))
    kept = highest(torch.rand(valid.shape, generator=rng).masked_fill(~valid, -torch.inf), evidence.layout.count * part)
    return evidence, kept & valid, scores.masked_fill(~valid, -torch.inf)
