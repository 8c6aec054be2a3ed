"""Methods inside the encoder: tokens leave its blocks, or become one there, so that later blocks run on fewer.

Without a budget each keeps its published schedule, whatever that leaves. With one, the stages come down to it step by
step and leave exactly that many in the end.
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

    at: Tensor  # [V, E] which tokens; behind them, any others
    there: Tensor  # [V, E] bool

    def to(self, other: "MatchHalf") -> Tensor:
        """[V, E, O] bool, the pairs that there are."""
        return self.there[:, :, None] & other.there[:, None]

    def rank(self, best: Tensor) -> Tensor:
        """[V, E] scores -> their rank from the highest, those not there last; ties go to the earlier token."""
        return best.masked_fill(~self.there, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)

    def put(self, base: Tensor, values: Tensor) -> Tensor:
        """[V, N] with `values` [V, E] where these tokens are."""
        width = base.shape[1]
        at = self.at.masked_fill(~self.there, width)
        return torch.nn.functional.pad(base, (0, 1)).scatter(1, at, values.to(base.dtype))[:, :width]


def match_halves(evidence: Evidence) -> tuple[MatchHalf, MatchHalf]:
    """Even and odd ones of a view's tokens, the class tokens in front counted."""
    valid = evidence.layout.valid
    even = (valid.cumsum(1) - 1 + count_class_tokens(evidence)) % 2 == 0
    width = (valid.shape[1] + 1) // 2

    def half(mask: Tensor) -> MatchHalf:
        at = (~mask).long().argsort(dim=1, stable=True)[:, :width]
        return MatchHalf(at, mask.gather(1, at))

    return half(valid & even), half(valid & ~even)


def count_class_tokens(evidence: Evidence) -> int:
    return evidence.classes if isinstance(evidence, EncoderEvidence) else 0


def token_index(evidence: Evidence) -> Tensor:
    column = evidence.layout.column
    return torch.arange(column.shape[1], device=column.device).expand(column.shape)


def unchanged(order: Tensor, gone: Tensor, evidence: Evidence) -> Tensor:
    """[V, N] the order of views in which nothing merges is that in which their tokens are."""
    return torch.where(gone.to(order.device)[:, None] > 0, order, token_index(evidence))


def merge_count(step: Pruner, evidence: Evidence, budget: Budget | None, left: int, published: int | Tensor) -> Tensor:
    """[V] how many tokens merge now, at most half of a view's. ValueError for a budget that cannot be met."""
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
    """ValueError where what tokens are judged by, [V, N] or [V, N, C], is not finite, naming the samples."""
    finite = signal.isfinite() if signal.ndim == 2 else signal.isfinite().all(-1)
    broken = (~finite & evidence.layout.valid).any(1).cpu()
    if broken.any():
        samples = evidence.layout.sample[broken].unique().tolist()
        raise ValueError(f"what {step} judges samples {samples} by is not finite")
