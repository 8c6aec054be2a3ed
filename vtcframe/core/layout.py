"""TODO: vtcframe/core/layout.py."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where views came from and where their tokens sit.

    `grid`, `column` and `centre` lie on the scores' device, everything else on the CPU, so that sharing out a budget
    costs no device sync.
    """

    sample: Tensor  # [V] the sample a view belongs to, 0..P-1
    key: Tensor  # [P] stable 63-bit hash of the sample's id: the same in every batch
    image: Tensor  # [V] which picture of its sample
    frame: Tensor  # [V] which frame of a video, else 0
    box: Tensor  # [V, 4] top, left, bottom, right in its picture, 0..1; padding lies outside
    grid: Tensor  # [V, N, 2] row and column in the view; -1 for a token of no picture
    column: Tensor  # [V, N] place in the sample's own prompt (batch padding not counted); -1 = no token
    untouched: Tensor  # [P] visual tokens each sample had before any was dropped
    # [V, N, 2] where in its picture each token's centre lies (row, column), 0..1; by default from `grid` and `box`
    centre: Tensor = None  # pyright: ignore[reportAssignmentType] (filled in at once)

    def __post_init__(self) -> None:
        if self.centre is None:  # only a whole view's grid tells its size: what is left of one carries its centres on
            size = (self.grid.amax(1, keepdim=True) if self.grid.shape[1] else self.grid) + 1
            box = self.box.to(self.grid.device)[:, None]
            centre = box[..., :2] + (self.grid + 0.5) / size * (box[..., 2:] - box[..., :2])
            object.__setattr__(self, "centre", centre)

    @cached_property
    def valid(self) -> Tensor:
        """[V, N] bool, True where there is a token."""
        return self.column >= 0

    @cached_property
    def count(self) -> Tensor:
        """[V] tokens in each view, on the CPU."""
        return self.valid.sum(1).cpu()

    def total(self, values: Tensor) -> Tensor:
        """[V] -> [P], summed over the views of each sample."""
        return torch.zeros_like(self.key).index_add_(0, self.sample, values)


@dataclass(frozen=True)
class Structural:
    """Placeholders that carry no picture: newlines of LLaVA-NeXT, a frame's [CLS] of Video-LLaVA.

    They are no candidates and not in the budget. One is dropped when every token in columns `first`..`last` of its
    sample is dropped; one with an empty span (first > last) always stays.
    """

    tokens: Tensor  # [U, D]
    sample: Tensor  # [U]
    column: Tensor  # [U] place in the sample's own prompt
    first: Tensor  # [U]
    last: Tensor  # [U]

    def stays(self, kept: Tensor) -> Tensor:
        """[P, columns] bool, True where a candidate stays -> [U] bool."""
        before = torch.nn.functional.pad(kept.long().cumsum(1), (1, 0))
        inside = before[self.sample, self.last + 1] - before[self.sample, self.first]
        return (inside > 0) | (self.first > self.last)


def reading_order(column: Tensor) -> Tensor:
    """[V, M] columns, -1 = padding -> [V, M]: where in the prompt each token is read.

    A view's own columns are sorted and filled in the order of its tokens. So crops that the prompt stitches row by
    row interleave, and the order that a merger publishes holds within its view.
    """
    real = column >= 0
    ordered = column.masked_fill(~real, torch.iinfo(column.dtype).max).sort(1).values
    return ordered.gather(1, (real.cumsum(1) - 1).clamp(min=0)).masked_fill(~real, -1)
