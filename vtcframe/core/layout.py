"""The geometry of visual tokens: the views of each sample, and where their tokens lie in picture and prompt."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The origin of views and the positions of their tokens.

    `grid`, `column` and `centre` are on the device of the scores, all other tensors on the CPU, so that dividing a
    budget needs no device synchronisation.
    """

    sample: Tensor  # [V] the sample a view belongs to, 0..P-1
    key: Tensor  # [P] stable 63-bit hash of the sample's id: the same in every batch
    image: Tensor  # [V] index of the picture within its sample
    frame: Tensor  # [V] index of the frame within its video, 0 for pictures
    box: Tensor  # [V, 4] top, left, bottom, right in its picture, 0..1; padding lies outside
    grid: Tensor  # [V, N, 2] row and column in the view; -1 for a token that shows no part of a picture
    column: Tensor  # [V, N] position in the sample's own prompt (batch padding not counted); -1 = no token
    untouched: Tensor  # [P] number of visual tokens of each sample before any was dropped
    # [V, N, 2] centre of each token in its picture (row, column), 0..1; computed from `grid` and `box` by default
    centre: Tensor = None  # pyright: ignore[reportAssignmentType] (__post_init__ sets it)

    def __post_init__(self) -> None:
        if self.centre is None:  # the grid gives a view's size only before tokens are dropped; later layouts set centre
            size = (self.grid.amax(1, keepdim=True) if self.grid.shape[1] else self.grid) + 1
            box = self.box.to(self.grid.device)[:, None]
            centre = box[..., :2] + (self.grid + 0.5) / size * (box[..., 2:] - box[..., :2])
            object.__setattr__(self, "centre", centre)

    @cached_property
    def valid(self) -> Tensor:
        """[V, N] bool, True where there is a token and no padding."""
        return self.column >= 0

    @cached_property
    def count(self) -> Tensor:
        """[V] number of tokens in each view, on the CPU."""
        return self.valid.sum(1).cpu()

    def total(self, values: Tensor) -> Tensor:
        """[V] -> [P], the sum over the views of each sample."""
        return torch.zeros_like(self.key).index_add_(0, self.sample, values)


@dataclass(frozen=True)
class Structural:
    """Placeholders that show no part of a picture: newlines of LLaVA-NeXT, a frame's [CLS] of Video-LLaVA.

    They are not candidates for pruning and do not count in the budget. A structural token is dropped when every token
    in columns `first`..`last` of its sample is dropped. A structural token with an empty span (first > last) always
    stays.
    """

    tokens: Tensor  # [U, D]
    sample: Tensor  # [U]
    column: Tensor  # [U] position in the sample's own prompt
    first: Tensor  # [U]
    last: Tensor  # [U]

    def stays(self, kept: Tensor) -> Tensor:
        """[P, columns] bool, True where a candidate stays -> [U] bool, True where a structural token stays."""
        before = torch.nn.functional.pad(kept.long().cumsum(1), (1, 0))
        inside = before[self.sample, self.last + 1] - before[self.sample, self.first]
        return (inside > 0) | (self.first > self.last)


def reading_order(column: Tensor) -> Tensor:
    """[V, M] columns, -1 = padding -> [V, M] the column of the prompt in which each token is read.

    The tokens of a view fill the view's own columns, sorted, in the order of the tokens. Crops that the prompt
    stitches row by row therefore interleave, and the order of a merger's tokens holds within its view.
    """
    real = column >= 0
    ordered = column.masked_fill(~real, torch.iinfo(column.dtype).max).sort(1).values
    return ordered.gather(1, (real.cumsum(1) - 1).clamp(min=0)).masked_fill(~real, -1)
