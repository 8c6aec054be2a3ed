"""Allocators: (scores [V, N], budget [P] or None, evidence) -> quota [V]."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtcframe.core import Evidence
from vtcframe.pipeline import Allocator


@dataclass(frozen=True)
class Even(Allocator):
    """Every view of a sample gets the same, as far as it has tokens; the first of the larger ones get the remainder."""

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        if budget is None:
            raise ValueError("Even shares out a budget: give tokens or ratio")
        layout = evidence.layout
        quota, left = torch.zeros_like(layout.sample), budget.tolist()
        owner, count = layout.sample.tolist(), layout.count.tolist()
        unserved = torch.bincount(layout.sample, minlength=len(left)).tolist()
        for v in sorted(range(len(owner)), key=lambda v: (count[v], -v)):  # the smallest first: what it lacks goes on
            p = owner[v]
            quota[v] = share = min(count[v], left[p] // unserved[p])
            left[p] -= share
            unserved[p] -= 1
        return quota
