"""Bipartite matching and budget schedules, shared by the methods that merge tokens in encoder blocks.

Without a budget each method follows its published schedule. With a budget, each stage comes closer to it, and after the
last stage exactly that many tokens remain.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtcframe.components.allocators import Even
from vtcframe.core.budget import Budget
from vtcframe.core.evidence import Evidence
from vtcframe.core.stages import Pruner
from vtcframe.core.token_merging import EncoderEvidence

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class MatchHalf:
    """Every second token of each view: one side of a bipartite matching."""

    index: Tensor  # [V, E] the tokens of this half; shorter rows are padded with indices of arbitrary tokens
    is_token: Tensor  # [V, E] bool, False at the padding of a row

    def pair_mask(self, other: "MatchHalf") -> Tensor:
        """[V, E, O] bool, True for the pairs of a token of this half and a token of `other`."""
        return self.is_token[:, :, None] & other.is_token[:, None]

    def rank(self, best: Tensor) -> Tensor:
        """[V, E] scores -> [V, E] ranks, 0 for the highest; padding comes last, ties go to the earlier token."""
        return best.masked_fill(~self.is_token, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)

    def scatter(self, base: Tensor, values: Tensor) -> Tensor:
        """Return a copy of `base` [V, N] with `values` [V, E] at the tokens of this half."""
        width = base.shape[1]
        index = self.index.masked_fill(~self.is_token, width)
        return torch.nn.functional.pad(base, (0, 1)).scatter(1, index, values.to(base.dtype))[:, :width]


def match_halves(evidence: Evidence) -> tuple[MatchHalf, MatchHalf]:
    """Return the even and the odd tokens of each view; the class tokens before the patches count."""
    valid = evidence.layout.valid
    even = (valid.cumsum(1) - 1 + count_class_tokens(evidence)) % 2 == 0
    width = (valid.shape[1] + 1) // 2

    def half(mask: Tensor) -> MatchHalf:
        index = (~mask).long().argsort(dim=1, stable=True)[:, :width]
        return MatchHalf(index, mask.gather(1, index))

    return half(valid & even), half(valid & ~even)


def count_class_tokens(evidence: Evidence) -> int:
    """Return the number of class tokens and registers before the patches."""
    return evidence.classes if isinstance(evidence, EncoderEvidence) else 0


def token_index(evidence: Evidence) -> Tensor:
    """[V, N] the index of each token in its view."""
    column = evidence.layout.column
    return torch.arange(column.shape[1], device=column.device).expand(column.shape)


def order_where_merged(order: Tensor, count: Tensor, evidence: Evidence) -> Tensor:
    """[V, N] `order`, replaced by the original order in views where `count` [V], the tokens that merge, is 0."""
    return torch.where(count.to(order.device)[:, None] > 0, order, token_index(evidence))


def merge_count(
    step: Pruner, evidence: Evidence, budget: Budget | None, remaining_stages: int, published: int | Tensor
) -> Tensor:
    """[V] the number of tokens that merge in this block, at most half of a view's tokens.

    Without a budget that is `published`. `remaining_stages` counts this stage too. ValueError for a budget that merging
    half of the tokens in every remaining stage cannot reach.
    """
    layout = evidence.layout
    half = layout.count // 2
    if budget is None:
        return half.clamp(max=published) if isinstance(published, int) else half.minimum(published)
    final = Even()(layout.column.float(), budget.total(layout), evidence)
    quota = layout.count - (layout.count - final + remaining_stages - 1) // remaining_stages
    quota = quota.minimum(final << (remaining_stages - 1))  # so that halving reaches the budget
    if bool((layout.count - quota > half).any()):
        v = int((layout.count - quota - half).argmax())
        raise ValueError(
            f"{type(step).__name__.removesuffix('Step')} merges at most half of the tokens in a block: "
            f"{int(layout.count[v])} tokens of a view cannot become {int(final[v])} in {remaining_stages} blocks. Give "
            "it more blocks, or a larger budget"
        )
    return layout.count - quota


def check_signal(step: Pruner, signal: Tensor, evidence: Evidence) -> None:
    """Raise ValueError, naming the samples, where the signal [V, N] or [V, N, C] of a step is not finite."""
    finite = signal.isfinite() if signal.ndim == 2 else signal.isfinite().all(-1)
    non_finite = (~finite & evidence.layout.valid).any(1).cpu()
    if non_finite.any():
        samples = evidence.layout.sample[non_finite].unique().tolist()
        raise ValueError(f"the values by which {step} ranks the tokens of samples {samples} are not finite")
