"""The budget of visual tokens, and how many tokens of each sample it allows."""

from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import Literal

import torch
from torch import Tensor

from vtcframe.core.layout import Layout


@dataclass(frozen=True)
class Budget:
    """How many visual tokens to keep: a number, or a fraction of the number before any was dropped.

    `per` says whether `tokens` applies to each sample, image or view. The allocator always divides the total of a
    sample. A ratio is rounded half to even. A sample that has tokens keeps at least one and at most all of them.
    """

    tokens: int | None = None
    ratio: float | None = None
    _: KW_ONLY
    per: Literal["sample", "image", "view"] = "sample"

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.ratio is None):
            raise ValueError(f"give tokens or ratio, exactly one of them: got tokens={self.tokens}, ratio={self.ratio}")
        if self.tokens is not None and (isinstance(self.tokens, bool) or not isinstance(self.tokens, Integral)):
            raise TypeError(f"tokens must be an int, got {self.tokens!r}: give ratio for a fraction")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {self.tokens}")
        if self.ratio is not None and (isinstance(self.ratio, bool) or not isinstance(self.ratio, Real)):
            raise TypeError(f"ratio must be a number, got {self.ratio!r}")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"ratio is the fraction of tokens kept and must lie in (0, 1], got {self.ratio}")
        if self.per not in ("sample", "image", "view"):
            raise ValueError(f"per must be 'sample', 'image' or 'view', got {self.per!r}")

    def total(self, layout: Layout) -> Tensor:
        """[P] how many of its current tokens each sample may keep, on the CPU."""
        present = layout.total(layout.count)
        tokens = self.tokens or 0
        if self.ratio is not None:
            total = (layout.untouched.double() * self.ratio).round().long()
        elif self.per == "sample":
            total = torch.full_like(present, tokens)
        else:  # each image or view has its own limit: what a small one does not use is not given to the others
            owner = layout.sample * (layout.image.max() + 1 if len(layout.image) else 1) + layout.image
            group = torch.arange(len(owner)) if self.per == "view" else owner.unique(return_inverse=True)[1]
            size = torch.zeros_like(layout.sample).index_add_(0, group, layout.count).clamp(max=tokens)
            first = torch.zeros_like(layout.sample).index_copy_(0, group, layout.sample)
            total = torch.zeros_like(present).index_add_(0, first, size)
        return total.clamp(min=1).minimum(present)

    def covers(self, layout: Layout) -> bool:
        """Return whether the budget allows every sample to keep all tokens that it had before any was dropped."""
        return bool((self.total(layout) >= layout.untouched).all())
