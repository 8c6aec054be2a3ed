"""Methods inside the encoder: tokens leave its blocks, or become one there, so that later blocks run on fewer.

Without a budget each keeps its published schedule, whatever that leaves. With one, the stages come down to it step by
step and leave exactly that many in the end.
"""

from dataclasses import dataclass, fields
from math import ceil
from typing import Literal

import torch
from torch import Tensor

from vtcframe.allocators import Even
from vtcframe.core import Budget, Evidence
from vtcframe.encoder_stage import Attended, Merged, Midway, Pooling, TokenMerger, When, merge, sizes
from vtcframe.ensemblers import Mean
from vtcframe.mergers import Fuse, cosine, take
from vtcframe.needs import Keys, Need, Rows, Stand
from vtcframe.pipeline import Allocator, Facts, Method, Pipeline, Pruner, Stage
from vtcframe.scorers import ClsAttention
from vtcframe.selectors import TopK


class _Inside(Method):
    """A method with a stage in each of `blocks`, which count from 0."""

    blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        blocks = tuple(self.blocks)
        object.__setattr__(self, "blocks", blocks)
        if not blocks or list(blocks) != sorted(set(blocks)) or blocks[0] < 0:
            raise ValueError(f"blocks counts from 0 and ascends, one at least: got {blocks}")

    def __repr__(self) -> str:
        told = {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]
        first, last = self.blocks[0], self.blocks[-1]
        if last - first + 1 == len(self.blocks) > 3:
            told["blocks"] = f"{first}-{last}"
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in told.items())})"

    def at(self, steps: list[Pruner], budget: Budget | None) -> tuple[Stage, ...]:
        """Return a stage for each block."""
        return tuple(Stage(f"encoder:{k}", step, budget) for k, step in zip(self.blocks, steps, strict=True))

    @property
    def left(self) -> range:
        """How many stages are to come at each block, itself counted."""
        return range(len(self.blocks), 0, -1)


@dataclass(frozen=True)
class KeepRate(Allocator):
    """The part `keep` of each view's tokens, rounded up; towards a budget by equal ratios, with `left` steps to go."""

    keep: float
    left: int = 1

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        count = evidence.layout.count
        if budget is None:
            return torch.tensor([ceil(self.keep * n) for n in count.tolist()], dtype=torch.long)
        final = Even()(scores, budget, evidence)
        if self.left == 1:
            return final
        ratio = (final / count.clamp(min=1)).double() ** (1 / self.left)
        return (count * ratio).ceil().long().clamp(final, count)


@dataclass(frozen=True, repr=False)
class EVit(_Inside):
    """EViT (arXiv 2202.07800): in three blocks the most attended by [CLS] of the same block stay.

    The part `keep` of the patches stays in each, rounded up. What goes becomes one token, the sum weighted by
    attention (equation 3), which counts as a patch from then on and takes the first place that is free. With a budget
    each of the stages keeps the same part, such that the budget is left in the end; the fused token is of it.

    Blocks 3, 6 and 9 are those of DeiT's 12: on 24 blocks give (6, 12, 18). The paper fine-tunes its models; without,
    fuse=False is the safer choice. The order of patches, by score in the code, means nothing to an encoder; they are
    read in raster order here. `query` names what stands in for a missing [CLS]; that is no part of the paper.
    """

    facts = Facts(
        "arXiv 2202.07800", "[CLS] attention of the block", "top-k", "fused, weighted by attention", "exact", "encoder"
    )
    blocks: tuple[int, ...] = (3, 6, 9)
    keep: float = 0.7
    fuse: bool = True
    query: Stand = "cls"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is the part that stays and must lie in (0, 1], got {self.keep}")

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        scorers, merger = (ClsAttention(1, self.query),), Fuse(mean=False) if self.fuse else None
        steps = [Pipeline(scorers, Mean(), KeepRate(self.keep, left), TopK(), merger) for left in self.left]
        return self.at([*steps], budget)


@dataclass(frozen=True, repr=False)
class ToMe(_Inside):
    """ToMe (arXiv 2210.09461): in each block `r` tokens merge into those whose keys are most alike.

    Every other token is a source, which merges into the most alike of the others: the r nearest do, as means weighted
    by size (bipartite soft matching). Sizes are added to later blocks' logits as their logarithm (proportional
    attention). At most half the tokens go in a block. `inflect` from -1 (r falls to 0 over the blocks, from 2r) to 1
    (it rises). With a budget each block merges the same number instead, up to half of what it has; a budget that this
    cannot reach is an error. A merged token takes the place of the one it was merged into.

    `blocks` are the 23 that feed LLaVA-1.5's projector; an encoder of another depth needs others.
    """

    facts = Facts(
        "arXiv 2210.09461",
        "similarity of keys",
        "bipartite matching in every block",
        "merged, weighted by size",
        "exact",
        "encoder",
    )
    r: int = 16
    inflect: float = 0.0
    blocks: tuple[int, ...] = tuple(range(23))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r < 0 or not -1 <= self.inflect <= 1:
            raise ValueError(f"r must not be negative and inflect lie in [-1, 1], got {self.r} and {self.inflect}")

    def rates(self) -> list[int]:
        """Return how many tokens merge in each block: a line from r (1 - inflect) to r (1 + inflect), cut to whole."""
        low = int(self.r * (1 - self.inflect))
        step = 2 * (self.r - low) / max(1, len(self.blocks) - 1)
        return [int(low + step * i) for i in range(len(self.blocks))]

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        return self.at([ToMeStep(r, left) for r, left in zip(self.rates(), self.left, strict=True)], budget)


@dataclass(frozen=True)
class ToMeStep(TokenMerger):
    """What ToMe does in one block: `r` tokens merge, or towards a budget those due with `left` steps to go."""

    r: int = 0
    left: int = 1

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Keys((-1,)),)

    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Merged:
        keys = evidence[self.needs[0]][0].mean(1)
        _verify(self, keys, evidence)
        gone = _due(self, evidence, budget, self.left, self.r)
        even, odd, classes = *_halves(evidence), _classes(evidence)
        pairs = cosine(take(keys, even.at), take(keys, odd.at)).masked_fill(~even.to(odd), -torch.inf)
        best, partner = pairs.max(2).values, pairs.argmax(2)
        rank = even.rank(best)
        joins = rank < gone.to(rank.device)[:, None]
        leader = even.put(_index(evidence), torch.where(joins, odd.at.gather(1, partner), even.at))
        order = odd.put(_index(evidence), _index(evidence).shape[1] + odd.at)
        if not classes:  # the order in which the published code leaves them; the next block's halves depend on it
            order = even.put(order, rank)
        scores = even.put(torch.ones_like(keys[..., 0]), torch.where(even.there, -best, 0))
        order = _still(order, gone, evidence)
        return merge(evidence, leader, order, evidence.layout.count - gone, sizes(evidence), scores)


@dataclass(frozen=True, repr=False)
class Mctf(_Inside):
    """MCTF (arXiv 2403.10030): pairs merge that are alike, little attended to, and small.

    A pair's score is the product of the three criteria, each to the power of 1 / temperature (0: the criterion is
    off): (1 + cosine) / 2 of hidden states, inverse attention received (mean over heads and all queries), inverse
    size. Of r tokens half merge from the even ones into the odd ones, the rest the other way (`two_way`).
    `pooling` of a group: "attention" received times size as weights, "size", "max" or "mean". `when`: "fused", before a
    block's attention, judged by that attention, whose map is merged along (one-step-ahead attention); "before", where
    it is computed anew; or "after" the MLP. At least 10 tokens stay, and half of them; r below 1 is a part.
    With a budget each block merges the same number instead, up to half of what it has. A merged token takes the place
    of the one it was merged into; several have no single place.

    Blocks 1 to 22 are ours for the 23 that feed LLaVA-1.5's projector, those released 1 to 11 of 12; fast: r=0.35 in
    (3, 6, 9). Where the code differs from this, here it does not fail: few tokens (it takes r below 0), cosines a
    rounding below -1 (it makes NaN), and several class tokens, of which it protects the wrong ones.
    The whole attention matrix is made in the blocks of "fused", so it saves the less the larger the picture.
    """

    facts = Facts(
        "arXiv 2403.10030",
        "similarity, attention received and size",
        "bipartite matching in both directions",
        "merged, weighted by attention received",
        "exact",
        "encoder",
    )
    r: float = 16.0
    blocks: tuple[int, ...] = tuple(range(1, 23))
    temperatures: tuple[float, float, float] = (1.0, 20.0, 40.0)  # of similarity, attention, size
    two_way: bool = True
    pooling: Literal["attention", "size", "max", "mean"] = "attention"
    when: Literal["fused", "before", "after"] = "fused"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "temperatures", tuple(self.temperatures))
        if self.r < 0 or (self.r >= 1 and self.r != int(self.r)):
            raise ValueError(f"r is a number of tokens, or below 1 the part of them that goes: got {self.r}")
        if len(self.temperatures) != 3 or min(self.temperatures) < 0:
            raise ValueError(f"temperatures are three, none negative, 0 for off: got {self.temperatures}")
        if self.pooling not in ("attention", "size", "max", "mean"):
            raise ValueError(f"pooling must be 'attention', 'size', 'max' or 'mean', got {self.pooling!r}")
        if self.when not in ("fused", "before", "after"):
            raise ValueError(f"when must be 'fused', 'before' or 'after', got {self.when!r}")

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        options = self.temperatures, self.two_way, self.pooling, self.when
        return self.at([MctfStep(self.r, left, *options) for left in self.left], budget)


@dataclass(frozen=True)
class MctfStep(TokenMerger):
    """What MCTF does in one block; `left` steps are to go towards a budget."""

    r: float = 0.0
    left: int = 1
    temperatures: tuple[float, float, float] = (1.0, 20.0, 40.0)
    two_way: bool = True
    pooling: Literal["attention", "size", "max", "mean"] = "attention"
    when: When = "fused"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Attended(),)  # pyright: ignore[reportReturnType] (a need of encoder stages alone)

    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Merged:
        attended, size = evidence[self.needs[0]], sizes(evidence)
        _verify(self, attended, evidence)
        gone = _due(self, evidence, budget, self.left, self.published(evidence))
        forth = gone // 2 if self.two_way else gone
        even, odd, index = *_halves(evidence), _index(evidence)
        pairs = self.pairs(evidence, even, odd).masked_fill(~even.to(odd), -torch.inf)
        best, partner = pairs.max(2).values, pairs.argmax(2)
        rank = even.rank(best)
        joins = rank < forth.to(rank.device)[:, None]
        leader = even.put(index, torch.where(joins, odd.at.gather(1, partner), even.at))
        order = odd.put(index if _classes(evidence) else even.put(index, rank), index.shape[1] + odd.at)
        scores = even.put(torch.zeros_like(attended), torch.where(even.there, -best, 0))
        if self.two_way:  # by the scores as they were: those that have merged are out of it
            back = pairs.masked_fill(joins[..., None], -torch.inf)
            best, partner = back.max(1).values, back.argmax(1)
            rank = odd.rank(best)
            joins = rank < (gone - forth).to(rank.device)[:, None]
            leader = odd.put(index, torch.where(joins, even.at.gather(1, partner), odd.at)).gather(1, leader)
            order = odd.put(order, index.shape[1] + rank)
            scores = odd.put(scores, torch.where(odd.there & best.isfinite(), -best, 0))
        weight = {"attention": attended.clamp(min=_TINY) * size, "size": size}.get(self.pooling, torch.ones_like(size))
        order = _still(order, gone, evidence)
        pooling: Pooling = "max" if self.pooling == "max" else "mean"
        return merge(evidence, leader, order, evidence.layout.count - gone, weight, scores, pooling=pooling)

    def pairs(self, evidence: Evidence, even: "_Half", odd: "_Half") -> Tensor:
        """[V, E, O] the logarithm of each pair's score, up to a constant of its view."""
        tokens, (similarity, attention, mass) = evidence.tokens.float(), self.temperatures
        score = torch.zeros(*even.at.shape, odd.at.shape[1], device=tokens.device, dtype=torch.float32)
        if similarity:
            alike = (1 + cosine(take(tokens, even.at), take(tokens, odd.at))) / 2
            score = alike.clamp(min=_TINY).log() / similarity
        for values, temperature in ((evidence[self.needs[0]], attention), (sizes(evidence), mass)):
            if temperature:
                log = values.clamp(min=_TINY).log() / temperature
                score = score - log.gather(1, even.at)[:, :, None] - log.gather(1, odd.at)[:, None]
        return score

    def published(self, evidence: Evidence) -> Tensor:
        """[V] how many tokens go without a budget: never so many that fewer than 10, class tokens counted, are left."""
        count = evidence.layout.count
        if self.r < 1:
            return (count * self.r).long()
        return (count + _classes(evidence) - 10).clamp(min=0, max=int(self.r))


@dataclass(frozen=True, repr=False)
class DiffRate(_Inside):
    """DiffRate (arXiv 2305.17997) at given rates: in each block first the least attended by [CLS] go, then some merge.

    Of the tokens in descending [CLS] attention of the block, the first `prune` stay, and of them the first `merge`;
    those between join the most alike of the latter, by cosine of hidden states, as plain means. Sizes grow by the size
    of what joins times its similarity. Both are numbers of tokens with the class tokens, one a block, as released. The
    code sorts the tokens in every block, which means nothing to an encoder: here they stay in raster order.

    The rates are what the paper learns, with labels, for ImageNet models of 197 or 257 tokens: there are none for
    towers of multimodal models. With a budget, and then without rates, each block removes the same number, half of it
    by pruning: that is ours. Where the code's sizes fall below 1 by negative similarities, here those count as 0.
    `query` names what stands in for a missing [CLS]. A merged token takes the place of the one that others joined.
    """

    facts = Facts(
        "arXiv 2305.17997",
        "[CLS] attention of the block, similarity",
        "top-k in every block, at given rates",
        "part gone, part merged into the most alike",
        "exact; differs: negative similarities add nothing to sizes, as in training",
        "encoder",
    )
    prune: tuple[int, ...] = ()
    merge: tuple[int, ...] = ()
    blocks: tuple[int, ...] = tuple(range(1, 23))
    query: Stand = "cls"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prune", "merge"):
            rates = tuple(getattr(self, name))
            object.__setattr__(self, name, rates)
            if rates and (len(rates) != len(self.blocks) or min(rates) < 2):
                raise ValueError(f"{name} has {rates} for {len(self.blocks)} blocks: give one a block, each at least 2")
        if bool(self.prune) != bool(self.merge):
            raise ValueError("give prune and merge, or neither and a budget: they are the rates of one schedule")

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        if (budget is None) != bool(self.prune):
            raise ValueError("DiffRate takes a budget or rates: give tokens or ratio, or prune and merge, but not both")
        rates = zip(self.prune, self.merge, strict=True) if self.prune else [(None, None)] * len(self.blocks)
        steps = [
            DiffRateStep(prune, merge, left, self.query) for (prune, merge), left in zip(rates, self.left, strict=True)
        ]
        return self.at([*steps], budget)


@dataclass(frozen=True)
class DiffRateStep(TokenMerger):
    """What DiffRate does in one block; `left` steps are to go towards a budget."""

    prune: int | None = None
    merge: int | None = None
    left: int = 1
    query: Stand = "cls"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Rows(self.query, (-1,)),)

    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Merged:
        scores = evidence[self.needs[0]][0].mean(1)
        _verify(self, scores, evidence)
        layout, index = evidence.layout, _index(evidence)
        scores = scores.masked_fill(~layout.valid, -torch.inf)
        if budget is None:
            if self.prune is None or self.merge is None:
                raise ValueError("DiffRate has neither rates nor a budget: give prune and merge, or tokens or ratio")
            stay = layout.count.clamp(max=self.prune - _classes(evidence))
            quota = stay.clamp(max=self.merge - _classes(evidence))
        else:
            final = Even()(scores, budget.total(layout), evidence)
            gone = (layout.count - final + self.left - 1) // self.left
            quota, stay = layout.count - gone, layout.count - gone // 2
            stay = torch.where(quota > 0, stay, 0)  # nothing is left to join
        by_rank = scores.argsort(dim=1, descending=True, stable=True)
        rank = by_rank.argsort(1)
        width = max(1, int(quota.max())) if len(quota) else 1
        heads = torch.arange(width, device=rank.device) < quota.to(rank.device)[:, None]
        tokens = evidence.tokens.float()
        alike = cosine(tokens, take(tokens, by_rank[:, :width])).masked_fill(~heads[:, None], -torch.inf)
        best, partner = alike.max(2).values, alike.argmax(2)
        kept = rank < quota.to(rank.device)[:, None]
        cut = rank >= stay.to(rank.device)[:, None]
        leader = torch.where(kept, index, by_rank.gather(1, partner)).masked_fill(cut, -1)
        gain = sizes(evidence) * torch.where(kept, 1, best.clamp(min=0))
        return merge(evidence, leader, index, quota, torch.ones_like(gain), scores, gain)


_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class _Half:
    """Every other token of each view."""

    at: Tensor  # [V, E] which tokens; behind them, any others
    there: Tensor  # [V, E] bool

    def to(self, other: "_Half") -> Tensor:
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


def _halves(evidence: Evidence) -> tuple[_Half, _Half]:
    """Even and odd ones of a view's tokens, the class tokens in front counted."""
    valid = evidence.layout.valid
    even = (valid.cumsum(1) - 1 + _classes(evidence)) % 2 == 0
    width = (valid.shape[1] + 1) // 2

    def half(mask: Tensor) -> _Half:
        at = (~mask).long().argsort(dim=1, stable=True)[:, :width]
        return _Half(at, mask.gather(1, at))

    return half(valid & even), half(valid & ~even)


def _classes(evidence: Evidence) -> int:
    return evidence.classes if isinstance(evidence, Midway) else 0


def _index(evidence: Evidence) -> Tensor:
    column = evidence.layout.column
    return torch.arange(column.shape[1], device=column.device).expand(column.shape)


def _still(order: Tensor, gone: Tensor, evidence: Evidence) -> Tensor:
    """[V, N] the order of views in which nothing merges is that in which their tokens are."""
    return torch.where(gone.to(order.device)[:, None] > 0, order, _index(evidence))


def _due(step: Pruner, evidence: Evidence, budget: Budget | None, left: int, published: int | Tensor) -> Tensor:
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


def _verify(step: Pruner, signal: Tensor, evidence: Evidence) -> None:
    """ValueError where what tokens are judged by, [V, N] or [V, N, C], is not finite, naming the samples."""
    finite = signal.isfinite() if signal.ndim == 2 else signal.isfinite().all(-1)
    broken = (~finite & evidence.layout.valid).any(1).cpu()
    if broken.any():
        samples = evidence.layout.sample[broken].unique().tolist()
        raise ValueError(f"what {step} judges samples {samples} by is not finite")
