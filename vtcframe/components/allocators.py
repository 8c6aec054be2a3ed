"""Allocators: (scores [V, N], budget [P] or None, evidence) -> quota [V] on the CPU."""

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

import torch
from torch import Tensor

from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.needs import AttentionRows, ClsProxy, Need
from vtcframe.core.verbs import Allocator
from vtcframe.ops.quotas import apportion
from vtcframe.ops.views import outlier_tokens, overview_of, overview_sums


def require_budget(allocator: Allocator, budget: Tensor | None) -> Tensor:
    """Return the budget. ValueError without one: only adaptive allocators decide by themselves."""
    if budget is None:
        raise ValueError(f"{type(allocator).__name__} shares out a budget: give tokens or ratio")
    return budget


@dataclass(frozen=True)
class Even(Allocator):
    """Every view of a sample gets the same, as far as it has tokens; the first of the larger ones get the remainder."""

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        return apportion(require_budget(self, budget), torch.ones(len(scores), dtype=torch.float32), evidence.layout)


@dataclass(frozen=True)
class Joint(Allocator):
    """One pool over all views of a sample: each gets as many as it has among the sample's highest scores.

    With TopK what stays is the same as with `across="sample"`, but rows remain views, so that selectors and mergers
    work within them. Scores must compare across views. Ties go to the earlier view, then the lower index.
    """

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout, (views, width) = evidence.layout, scores.shape
        order = scores.flatten().argsort(descending=True, stable=True)
        owner = layout.sample.to(order.device)[order // max(width, 1)]
        owner, by_sample = owner.sort(stable=True)
        before = (torch.bincount(layout.sample, minlength=len(layout.key)).cumsum(0) * width).roll(1)
        before[:1] = 0
        rank = torch.arange(len(order), device=order.device) - before.to(order.device)[owner]
        chosen = torch.zeros(views * width, dtype=torch.long, device=order.device)
        chosen[order[by_sample]] = (rank < require_budget(self, budget).to(order.device)[owner]).long()
        return chosen.view(views, width).sum(1).cpu()


@dataclass(frozen=True)
class Entropy(Allocator):
    """By the effective number of tokens that a view's scores are spread over: exp of their Shannon entropy.

    Scores are read as shares of a view: all on one token is 1, all equal is the number of tokens. Negative ones count
    as 0 (give attention, not logits). That number is known as perplexity or Hill number (Hill, Ecology 1973); to split
    a token budget by it is no published method's.
    """

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        return apportion(require_budget(self, budget), _effective(scores), evidence.layout)


@dataclass(frozen=True)
class EffectiveRank(Allocator):
    """By the effective rank of a view's tokens: exp of the entropy of their normalised singular values.

    Roy and Vetterli, EUSIPCO 2007, of the tokens as the language model would read them, not centred: a view of equal
    tokens has 1. To split a token budget by it is no published method's. Costs a decomposition a view.
    """

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        tokens = evidence.tokens.float().masked_fill(~layout.valid[..., None], 0)
        return apportion(require_budget(self, budget), _effective(torch.linalg.svdvals(tokens)), layout)


def _effective(parts: Tensor) -> Tensor:
    """[V, N] -> [V]: exp of the entropy of the positive parts of a whole; 1 where there are none."""
    share = torch.nn.functional.normalize(parts.clamp(min=0), p=1, dim=1)
    return torch.special.entr(share).sum(1).exp()


@dataclass(frozen=True)
class AttentionMass(Allocator):
    """`alpha` of a picture's budget to its overview, the rest by the [CLS] attention on the region of each crop.

    HiRED (arXiv 2408.10945): the overview's attention in the first block, mean over heads, summed over the tokens that
    lie in the crop's box. Pictures of a sample share its budget evenly over their views; one without crops keeps its
    part. The paper rounds every part down; here largest remainders go up, so that the quotas sum to the budget. Its
    code takes stretches of the raster for regions and counts the hottest tokens instead of summing.
    """

    alpha: float = 0.5
    layer: int = 0  # of the blocks that feed the projector
    query: ClsProxy = "cls"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is the overview's share of the budget and must lie in [0, 1], got {self.alpha}")
        if self.query not in get_args(ClsProxy):
            raise ValueError(f"query must be one of {', '.join(map(repr, get_args(ClsProxy)))}, got {self.query!r}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (AttentionRows(self.query, (self.layer,)),)

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        mass = overview_sums(evidence[self.needs[0]].float().mean((0, 2)), layout).double()
        if not mass.isfinite().all():
            samples = layout.sample[~mass.isfinite()].unique().tolist()
            raise ValueError(f"{self}: the attention in block {self.layer} of samples {samples} is not finite")
        whole = overview_of(layout)
        part = whole >= 0
        head = whole.where(part, torch.arange(len(whole)))  # a view's overview, or itself
        crops = torch.bincount(head[part], minlength=len(whole)).double()
        total = torch.zeros_like(mass).index_add_(0, head, mass)[head]
        share = torch.where(total > 0, mass / total, 1 / crops[head])  # seen nowhere: evenly
        own = torch.where(crops > 0, self.alpha * (1 + crops), 1)
        return apportion(
            require_budget(self, budget), torch.where(part, (1 - self.alpha) * (1 + crops[head]) * share, own), layout
        )


@dataclass(frozen=True)
class OverviewGuided(Allocator):
    """A crop keeps more of its tokens where the overview's scores are high on its region.

    GlobalCom2 (arXiv 2501.05179): at a fraction r of all, a crop keeps r (1 + σ - mean σ) of its tokens, σ the softmax
    over the picture's crops of the summed scores / `tau`; the overview keeps r. Its `tau` fits logits: sums of
    attention hardly differ by 10. Its code rounds down; here the quotas sum to the budget. Regions are by box; those of
    its code ignore that un-padding shifts them.
    """

    tau: float = 10.0

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise ValueError(f"tau is a temperature and must be positive, got {self.tau}")

    def density(self, scores: Tensor, layout: Layout) -> Tensor:
        """[V] how much of its tokens a view keeps, relative to the budgeted fraction; float64 on the CPU."""
        whole, total = overview_of(layout), overview_sums(scores, layout).double() / self.tau
        same = (whole == whole[:, None]) & (whole >= 0)
        softmax = total.expand(len(total), -1).masked_fill(~same, -inf).softmax(1).diagonal()
        return torch.where(whole >= 0, 1 + softmax - 1 / same.sum(1), 1)

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        return apportion(require_budget(self, budget), self.density(scores, layout) * layout.count, layout)


@dataclass(frozen=True)
class Outliers(Allocator):
    """Adaptive: as many as stand out, above Q3 + 1.5 IQR of their view, at least one; a budget is split by that number.

    PruMerge (arXiv 2403.15388). Its code finds one number for a whole batch and loses a token to rounding at some
    sizes (never at 576).
    """

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        count = outlier_tokens(scores, evidence.layout).sum(1).cpu()
        return count if budget is None else apportion(budget, count, evidence.layout)


@dataclass(frozen=True)
class KeepRatio(Allocator):
    """Adaptive: every row keeps `ratio` of the tokens that it has now; a budget is split by these numbers.

    Budget(ratio) counts from what there was at first; a stage behind another one may want a part of what is left.
    Parts of a token are rounded "down" or to the "nearest", halves to even. A sample left with none at all keeps the
    one token with the highest score.
    """

    ratio: float = 0.5
    rounded: Literal["down", "nearest"] = "down"

    def __post_init__(self) -> None:
        check_ratio("ratio", self.ratio)
        if self.rounded not in ("down", "nearest"):
            raise ValueError(f"rounded must be 'down' or 'nearest', got {self.rounded!r}")

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        part = layout.count.double() * self.ratio
        quota = (part.floor() if self.rounded == "down" else part.round()).long()
        if budget is not None:
            return apportion(budget, quota, layout)
        bare = (layout.total(quota) == 0) & (layout.total(layout.count) > 0)
        return quota + Joint()(scores, bare.long(), evidence)


def check_ratio(name: str, ratio: float) -> None:
    if not 0 < ratio <= 1:
        raise ValueError(f"{name} is the fraction of tokens kept and must lie in (0, 1], got {ratio}")
