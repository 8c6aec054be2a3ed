"""The result of a pruner: the tokens that remain, and which slots of the input they take."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vtcframe.core.layout import Layout, reading_order


@dataclass(frozen=True)
class Pruned:
    """The remaining tokens: rows as in `layout`, tokens in reading order, padded at the end."""

    tokens: Tensor  # [V, M, D]
    place: Tensor  # [V, M] index into the row's N tokens: the slot that an output token takes; -1 = padding
    scores: Tensor  # [V, N] float32, -inf where there is no token
    layout: Layout  # of the rows: views, or samples where the pruner joined the views

    @cached_property
    def kept(self) -> Tensor:
        """[V, N] bool, the slots that output tokens take, summary and class tokens included."""
        rows, width = self.scores.shape
        kept = torch.zeros(rows, width + 1, dtype=torch.bool, device=self.place.device)
        return kept.scatter_(1, self.place % (width + 1), True)[:, :-1]

    @cached_property
    def column(self) -> Tensor:
        """[V, M] the column of each output token in the prompt, which is its rotary position. -1 = padding."""
        return self.layout.column.gather(1, self.place.clamp(min=0)).masked_fill(self.place < 0, -1)

    @cached_property
    def total(self) -> Tensor:
        """[P] number of remaining tokens of each sample, on the CPU."""
        return self.layout.total((self.place >= 0).sum(1).cpu())

    def sequence(self, sample: int) -> tuple[Tensor, Tensor]:
        """Return one sample's tokens [K, D] and their columns [K], in the order in which the language model reads."""
        rows = (self.layout.sample == sample).to(self.place.device)
        column = self.column[rows]
        slot = reading_order(self.column)[rows]
        order = slot[column >= 0].argsort()
        return self.tokens[rows][column >= 0][order], column[column >= 0][order]
