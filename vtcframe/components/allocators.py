"""Allocators: (scores [V, N], budget [P] or None, evidence) -> quota [V] on the CPU."""

from dataclasses import dataclass
from math import inf
from typing import get_args

import torch
from torch import Tensor

from vtcframe.core import Evidence, Layout
from vtcframe.needs import Need, Rows, Stand
from vtcframe.pipeline import Allocator


def apportion(budget: Tensor, weight: Tensor, layout: Layout) -> Tensor:
    """Budget [P], weight [V] -> quota [V]: each sample's budget in proportion to its views' weights.

    No view gets more than it has tokens; what it cannot take goes to the others. Largest remainders are rounded up
    (Hamilton's method), of equals the first. Views of weight 0 or less get what all others cannot take.
    """
    quota, room = torch.zeros_like(layout.sample), layout.count.tolist()
    weights = weight.cpu().double().nan_to_num(0, 0, 0).clamp(min=0).tolist()  # the pipeline tells of broken scores
    mine: list[list[int]] = [[] for _ in budget]
    for v, p in enumerate(layout.sample.tolist()):
        mine[p].append(v)
    for total, views in zip(budget.tolist(), mine, strict=True):
        quota[views] = quota.new_tensor(_shares(total, [weights[v] for v in views], [room[v] for v in views]))
    return quota


def _shares(total: int, weight: list[float], room: list[int]) -> list[int]:
    quota, left, part = [0] * len(room), min(total, sum(room)), {}
    order = sorted(range(len(room)), key=lambda v: (room[v] / weight[v] if weight[v] else inf, room[v], v))
    while order:  # the first that is not filled to the brim ends it: no later one will be
        heft = sum(weight[v] for v in order)
        part = {v: left * (weight[v] / heft if heft else 1 / len(order)) for v in order}
        if part[order[0]] < room[order[0]]:
            break
        quota[order[0]] = room[order[0]]
        left -= room[order.pop(0)]
    for v in order:
        quota[v] = int(part[v])
    short = left - sum(quota[v] for v in order)
    for v in sorted(order, key=lambda v: (quota[v] - part[v], v))[:short]:
        quota[v] += 1
    return quota


def required(allocator: Allocator, budget: Tensor | None) -> Tensor:
    """Return the budget. ValueError without one: only adaptive allocators decide by themselves."""
    if budget is None:
        raise ValueError(f"{type(allocator).__name__} shares out a budget: give tokens or ratio")
    return budget


@dataclass(frozen=True)
class Even(Allocator):
    """Every view of a sample gets the same, as far as it has tokens; the first of the larger ones get the remainder."""

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        return apportion(required(self, budget), torch.ones(len(scores), dtype=torch.float32), evidence.layout)


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
        chosen[order[by_sample]] = (rank < required(self, budget).to(order.device)[owner]).long()
        return chosen.view(views, width).sum(1).cpu()


@dataclass(frozen=True)
class Entropy(Allocator):
    """By the effective number of tokens that a view's scores are spread over: exp of their Shannon entropy.

    Scores are read as shares of a view: all on one token is 1, all equal is the number of tokens. Negative ones count
    as 0 (give attention, not logits). That number is known as perplexity or Hill number (Hill, Ecology 1973); to split
    a token budget by it is no published method's.
    """

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        return apportion(required(self, budget), _effective(scores), evidence.layout)


@dataclass(frozen=True)
class EffectiveRank(Allocator):
    """By the effective rank of a view's tokens: exp of the entropy of their normalised singular values.

    Roy and Vetterli, EUSIPCO 2007, of the tokens as the language model would read them, not centred: a view of equal
    tokens has 1. To split a token budget by it is no published method's. Costs a decomposition a view.
    """

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        tokens = evidence.tokens.float().masked_fill(~layout.valid[..., None], 0)
        return apportion(required(self, budget), _effective(torch.linalg.svdvals(tokens)), layout)


def _effective(parts: Tensor) -> Tensor:
    """[V, N] -> [V]: exp of the entropy of the positive parts of a whole; 1 where there are none."""
    share = torch.nn.functional.normalize(parts.clamp(min=0), p=1, dim=1)
    return torch.special.entr(share).sum(1).exp()


def overview(layout: Layout) -> Tensor:
    """[V] the view that shows all of the picture that a view is a part of, -1 where there is no other; on the CPU.

    That is the first whose box is the whole picture. The stitched map of LLaVA-OneVision is a part too.
    """
    whole = ((layout.box - torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float32)).abs() < 1e-6).all(1)
    picture = torch.stack([layout.sample, layout.image, layout.frame], 1)
    same = (picture[:, None] == picture).all(-1) & whole
    index = torch.arange(len(whole))
    first = same.long().argmax(1) if len(whole) else index
    return first.masked_fill(~same.any(1) | (first == index), -1)


def within(values: Tensor, layout: Layout) -> Tensor:
    """[V, N] -> [V] on the CPU: what of the overview's values lies in a view's box; 0 where it has no overview."""
    whole = overview(layout)
    part = (whole >= 0).nonzero()[:, 0]
    source = whole[part].to(values.device)
    at, box = layout.centre[source], layout.box[part].to(values.device)[:, None]
    inside = ((at >= box[..., :2]) & (at < box[..., 2:])).all(-1) & layout.valid[source]
    total = torch.zeros(len(whole), dtype=torch.float32)
    total[part] = values[source].masked_fill(~inside, 0).sum(1).float().cpu()
    return total


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
    query: Stand = "cls"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is the overview's share of the budget and must lie in [0, 1], got {self.alpha}")
        if self.query not in get_args(Stand):
            raise ValueError(f"query must be one of {', '.join(map(repr, get_args(Stand)))}, got {self.query!r}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Rows(self.query, (self.layer,)),)

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        mass = within(evidence[self.needs[0]].float().mean((0, 2)), layout).double()
        if not mass.isfinite().all():
            samples = layout.sample[~mass.isfinite()].unique().tolist()
            raise ValueError(f"{self}: the attention in block {self.layer} of samples {samples} is not finite")
        whole = overview(layout)
        part = whole >= 0
        head = whole.where(part, torch.arange(len(whole)))  # a view's overview, or itself
        crops = torch.bincount(head[part], minlength=len(whole)).double()
        total = torch.zeros_like(mass).index_add_(0, head, mass)[head]
        share = torch.where(total > 0, mass / total, 1 / crops[head])  # seen nowhere: evenly
        own = torch.where(crops > 0, self.alpha * (1 + crops), 1)
        return apportion(
            required(self, budget), torch.where(part, (1 - self.alpha) * (1 + crops[head]) * share, own), layout
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
        whole, total = overview(layout), within(scores, layout).double() / self.tau
        same = (whole == whole[:, None]) & (whole >= 0)
        softmax = total.expand(len(total), -1).masked_fill(~same, -inf).softmax(1).diagonal()
        return torch.where(whole >= 0, 1 + softmax - 1 / same.sum(1), 1)

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        return apportion(required(self, budget), self.density(scores, layout) * layout.count, layout)


def outliers(scores: Tensor, layout: Layout) -> Tensor:
    """[V, N] bool: scores above Q3 + 1.5 IQR of their row, quartiles interpolated linearly; at least the highest."""
    real = scores.masked_fill(~layout.valid, torch.nan)
    q1, q3 = real.nanquantile(
        torch.tensor([0.25, 0.75], device=scores.device, dtype=torch.float32), dim=1, keepdim=True
    )
    above = layout.valid & (scores > q3 + 1.5 * (q3 - q1))
    first = scores.argmax(1, keepdim=True) == torch.arange(scores.shape[1], device=scores.device)
    return above | (layout.valid & first & ~above.any(1, keepdim=True))


@dataclass(frozen=True)
class Outliers(Allocator):
    """Adaptive: as many as stand out, above Q3 + 1.5 IQR of their view, at least one; a budget is split by that number.

    PruMerge (arXiv 2403.15388). Its code finds one number for a whole batch and loses a token to rounding at some
    sizes (never at 576).
    """

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        count = outliers(scores, evidence.layout).sum(1).cpu()
        return count if budget is None else apportion(budget, count, evidence.layout)
