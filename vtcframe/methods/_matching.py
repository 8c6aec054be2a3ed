"""What methods that merge tokens in encoder blocks share: bipartite matching, and schedules that reach a budget.

Without a budget each method keeps its published schedule. With one, its stages approach the budget step by step, and
exactly that many tokens remain in the end.
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
    """Every other token of each view."""

    at: Tensor  # [V, E] which tokens; the rest of a shorter row is filled with any others
    is_token: Tensor  # [V, E] bool, False where a row is filled

    def to(self, other: "MatchHalf") -> Tensor:
        """[V, E, O] bool, the pairs of tokens."""
        return self.is_token[:, :, None] & other.is_token[:, None]

    def rank(self, best: Tensor) -> Tensor:
        """[V, E] scores -> their rank from the highest, filled places last; ties go to the earlier token."""
        return best.masked_fill(~self.is_token, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)

    def put(self, base: Tensor, values: Tensor) -> Tensor:
        """[V, N] with `values` [V, E] where these tokens are."""
        width = base.shape[1]
        at = self.at.masked_fill(~self.is_token, width)
        return torch.nn.functional.pad(base, (0, 1)).scatter(1, at, values.to(base.dtype))[:, :width]


def match_halves(evidence: Evidence) -> tuple[MatchHalf, MatchHalf]:
    """Return the even and the odd tokens of each view, counted with the class tokens in front."""
    valid = evidence.layout.valid
    even = (valid.cumsum(1) - 1 + count_class_tokens(evidence)) % 2 == 0
    width = (valid.shape[1] + 1) // 2

    def half(mask: Tensor) -> MatchHalf:
        at = (~mask).long().argsort(dim=1, stable=True)[:, :width]
        return MatchHalf(at, mask.gather(1, at))

    return half(valid & even), half(valid & ~even)


def count_class_tokens(evidence: Evidence) -> int:
    """Return how many class tokens and registers stand in front of the patches."""
    return evidence.classes if isinstance(evidence, EncoderEvidence) else 0


def token_index(evidence: Evidence) -> Tensor:
    """[V, N] the index of each token in its view."""
    column = evidence.layout.column
    return torch.arange(column.shape[1], device=column.device).expand(column.shape)


def unchanged(order: Tensor, gone: Tensor, evidence: Evidence) -> Tensor:
    """[V, N] `order`, but that of their own tokens in views where nothing merges."""
    return torch.where(gone.to(order.device)[:, None] > 0, order, token_index(evidence))


def merge_count(step: Pruner, evidence: Evidence, budget: Budget | None, left: int, published: int | Tensor) -> Tensor:
    """[V] how many tokens merge in this block, at most half of a view's. ValueError for a budget out of reach."""
    layout = evidence.layout
    half = layout.count // 2
    if budget is None:
        return half.clamp(max=published) if isinstance(published, int) else half.minimum(published)
    final = Even()(layout.column.float(), budget.total(layout), evidence)
    quota = layout.count - (layout.count - final + left - 1) // left
    quota = quota.minimum(final << (left - 1))  # so that halving reaches the budget
    if bool((layout.count - quota > half).any()):
        v = int((layout.count - quota - half).argmax())
        raise ValueError(
            f"{type(step).__name__.removesuffix('Step')} merges at most half of the tokens in a block: "
            f"{int(layout.count[v])} of a view cannot become {int(final[v])} in {left} blocks. Give it more blocks, or "
            "a larger budget"
        )
    return layout.count - quota


def verify_schedule(step: Pruner, signal: Tensor, evidence: Evidence) -> None:
    """Raise ValueError, naming the samples, where the signal [V, N] or [V, N, C] of a step is not finite."""
    finite = signal.isfinite() if signal.ndim == 2 else signal.isfinite().all(-1)
    broken = (~finite & evidence.layout.valid).any(1).cpu()
    if broken.any():
        samples = evidence.layout.sample[broken].unique().tolist()
        raise ValueError(f"what {step} judges samples {samples} by is not finite")
