"""Allocators divide the budget of each sample among its views.

(scores [V, N], budget [P] or None, evidence) -> quota [V] on the CPU.
"""

from dataclasses import KW_ONLY, dataclass
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
    """Return the budget. ValueError if it is None: only adaptive allocators choose the number of tokens themselves."""
    if budget is None:
        raise ValueError(f"{type(allocator).__name__} shares out a budget: give tokens or ratio")
    return budget


@dataclass(frozen=True)
class Even(Allocator):
    """The same quota for every view of a sample, as far as it has tokens. The first views get the remainder."""

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        return apportion(require_budget(self, budget), torch.ones(len(scores), dtype=torch.float32), evidence.layout)


@dataclass(frozen=True)
class Joint(Allocator):
    """A shared ranking of all views of a sample: each view's quota is its number of tokens among the highest scores.

    With TopK the same tokens are kept as with `across="sample"`. Rows remain views, however, so that selectors and
    mergers work within views. Scores must be comparable across views. Ties go to the earlier view, then to the lower
    index.
    """

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        views, width = scores.shape
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
    """Quotas in proportion to the effective number of tokens in a view: exp of the Shannon entropy of its scores.

    Scores are normalised to shares of a view. The effective number is 1 if a single token has the entire score, and the
    number of tokens if all scores are equal. Negative scores count as 0, so use attention weights and not logits. The
    measure is known as perplexity or Hill number (Hill, Ecology 1973). No published method divides a token budget by
    it.
    """

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        return apportion(require_budget(self, budget), _effective(scores), evidence.layout)


@dataclass(frozen=True)
class EffectiveRank(Allocator):
    """Quotas in proportion to the effective rank of a view's tokens: exp of the entropy of their singular values.

    The singular values are normalised to sum to 1 (Roy and Vetterli, EUSIPCO 2007). They are those of the tokens as the
    language model would read them, not centred: the effective rank of equal tokens is 1. No published method divides a
    token budget by it. The cost is a singular value decomposition for each view.
    """

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        tokens = evidence.tokens.float().masked_fill(~layout.valid[..., None], 0)
        return apportion(require_budget(self, budget), _effective(torch.linalg.svdvals(tokens)), layout)


def _effective(parts: Tensor) -> Tensor:
    """[V, N] -> [V]: exp of the entropy of a row's positive values, normalised to sum to 1; 1 if a row has none."""
    share = torch.nn.functional.normalize(parts.clamp(min=0), p=1, dim=1)
    return torch.special.entr(share).sum(1).exp()


@dataclass(frozen=True)
class AttentionMass(Allocator):
    """A share `alpha` of a picture's budget for its overview, the rest by [CLS] attention to the region of each crop.

    HiRED (arXiv 2408.10945). The attention is that of the overview in the first block, mean over heads, summed over the
    tokens inside the crop's box. The budget of a sample is divided among its pictures in proportion to their numbers of
    views. A picture without crops keeps its part.

    Deviations: the paper rounds every part down; here the largest remainders are rounded up, so that the quotas sum to
    the budget. The authors' code uses segments of the raster order as regions, and counts the tokens with the highest
    attention instead of summing.
    """

    alpha: float = 0.5
    _: KW_ONLY
    layer: int = 0  # counts the blocks that feed the projector
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
        overview = overview_of(layout)
        is_crop = overview >= 0
        head = overview.where(is_crop, torch.arange(len(overview)))  # the overview of a crop; else the view itself
        crops = torch.bincount(head[is_crop], minlength=len(overview)).double()
        total = torch.zeros_like(mass).index_add_(0, head, mass)[head]
        share = torch.where(total > 0, mass / total, 1 / crops[head])  # evenly if no crop receives attention
        overview_weight = torch.where(crops > 0, self.alpha * (1 + crops), 1)
        crop_weight = (1 - self.alpha) * (1 + crops[head]) * share
        return apportion(require_budget(self, budget), torch.where(is_crop, crop_weight, overview_weight), layout)


@dataclass(frozen=True)
class OverviewGuided(Allocator):
    """Larger quotas for crops whose regions have high scores in the overview.

    GlobalCom2 (arXiv 2501.05179). At a budget of a fraction r of all tokens, the overview keeps r of its tokens, and a
    crop keeps r (1 + σ - mean σ). σ is the softmax, over the picture's crops, of the summed scores divided by `tau`.
    The paper's `tau` is meant for logits; sums of attention weights hardly differ by 10.

    Deviations from the authors' code: it rounds down, while here the quotas sum to the budget. Regions are the boxes of
    crops; the regions of the code ignore that un-padding shifts them.
    """

    tau: float = 10.0

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise ValueError(f"tau is a temperature and must be positive, got {self.tau}")

    def density(self, scores: Tensor, layout: Layout) -> Tensor:
        """[V] fraction of tokens that each view keeps, relative to the budget's fraction; float64 on the CPU."""
        overview = overview_of(layout)
        total = overview_sums(scores, layout).double() / self.tau
        same = (overview == overview[:, None]) & (overview >= 0)
        softmax = total.expand(len(total), -1).masked_fill(~same, -inf).softmax(1).diagonal()
        return torch.where(overview >= 0, 1 + softmax - 1 / same.sum(1), 1)

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        return apportion(require_budget(self, budget), self.density(scores, layout) * layout.count, layout)


@dataclass(frozen=True)
class Outliers(Allocator):
    """Adaptive: the number of outliers in each view, scores above Q3 + 1.5 IQR, but at least 1.

    With a budget, the quotas are in proportion to these numbers. PruMerge (arXiv 2403.15388). The authors' code uses
    the same number for all images of a batch and loses a token to rounding at some sizes (never at 576).
    """

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        count = outlier_tokens(scores, evidence.layout).sum(1).cpu()
        return count if budget is None else apportion(budget, count, evidence.layout)


@dataclass(frozen=True)
class KeepRatio(Allocator):
    """Adaptive: a fraction `ratio` of the tokens that each row has now.

    With a budget, the quotas are in proportion to these numbers. Budget(ratio=...), in contrast, is a fraction of the
    tokens before any was dropped; a later stage may need a fraction of the remaining tokens. Numbers are rounded "down"
    or to the "nearest", halves to even. A sample whose quotas are all 0 keeps the token with the highest score.
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
        is_empty = (layout.total(quota) == 0) & (layout.total(layout.count) > 0)
        return quota + Joint()(scores, is_empty.long(), evidence)


def check_ratio(name: str, ratio: float) -> None:
    """Raise ValueError unless the option `name`, the fraction of tokens to keep, lies in (0, 1]."""
    if not 0 < ratio <= 1:
        raise ValueError(f"{name} is the fraction of tokens kept and must lie in (0, 1], got {ratio}")
