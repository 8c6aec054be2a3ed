"""TODO: vtcframe/core/pruned.py."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vtcframe.core.layout import Layout, reading_order


@dataclass(frozen=True)
class Pruned:
    """What is left: rows as in `layout`, tokens in the order in which they are read, padded at the end."""

    tokens: Tensor  # [V, M, D]
    place: Tensor  # [V, M] index into the row's N tokens whose slot an output token takes; -1 = padding
    scores: Tensor  # [V, N] float32, -inf where there is no token
    layout: Layout  # of the rows: views, or samples where the pruner joined them

    @cached_property
    def kept(self) -> Tensor:
        """[V, N] bool, the slots that are taken (those of summary and class tokens too)."""
        rows, width = self.scores.shape
        kept = torch.zeros(rows, width + 1, dtype=torch.bool, device=self.place.device)
        return kept.scatter_(1, self.place % (width + 1), True)[:, :-1]

    @cached_property
    def column(self) -> Tensor:
        """[V, M] where in the prompt each output token came from: its rotary position. -1 = padding."""
        return self.layout.column.gather(1, self.place.clamp(min=0)).masked_fill(self.place < 0, -1)

    @cached_property
    def total(self) -> Tensor:
        """[P] tokens left in each sample, on the CPU."""
        return self.layout.total((self.place >= 0).sum(1).cpu())

    def sequence(self, sample: int) -> tuple[Tensor, Tensor]:
        """Return one sample's tokens [K, D] and their columns [K], as the language model reads them."""
        rows = (self.layout.sample == sample).to(self.place.device)
        column, slot = self.column[rows], reading_order(self.column)[rows]
        order = slot[column >= 0].argsort()
        return self.tokens[rows][column >= 0][order], column[column >= 0][order]
