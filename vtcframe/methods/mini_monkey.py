"""Methods that act twice, before the language model and inside it; and one that asks it before it reads.

What acts inside ranks what is left by text that the model itself has read.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vtcframe.allocators import Even, Joint, apportion, overview
from vtcframe.core import Budget, Evidence, Layout, Pruned
from vtcframe.ensemblers import Mean
from vtcframe.mergers import compact, cosine, places, real, sums, take
from vtcframe.methods.diversity import VScanEncoder
from vtcframe.methods.video import HoliTomOuter, PruneVidOuter
from vtcframe.needs import Stand
from vtcframe.pipeline import Allocator, Facts, Merger, Method, Pipeline, Positions, Stage
from vtcframe.scorers import TextAttention
from vtcframe.selectors import TopK


@dataclass(frozen=True)
class Share(Allocator):
    """Adaptive: every row keeps `ratio` of the tokens that it has now; a budget is split by these numbers.

    Budget(ratio) counts from what there was at first; a stage behind another one may want a part of what is left.
    Parts of a token are rounded "down" or to the "nearest", halves to even. A sample left with none at all keeps the
    one token with the highest score.
    """

    ratio: float = 0.5
    rounded: Literal["down", "nearest"] = "down"

    def __post_init__(self) -> None:
        _check_ratio("ratio", self.ratio)
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


@dataclass(frozen=True)
class Crops(Allocator):
    """Adaptive: the crops of a picture keep `ratio` of their tokens, ranked together; its overview keeps all.

    A picture without crops is its own crop. Parts of a token are rounded down. Of a budget overviews take what they
    hold, and all crops of a sample share the rest by their number of tokens; a budget too small for the overviews is
    shared among these in the same way, and the crops are gone. Scores must compare across the crops of a picture.
    """

    ratio: float = 0.5

    def __post_init__(self) -> None:
        _check_ratio("ratio", self.ratio)

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        index, count = torch.arange(len(layout.sample)), layout.count
        spared = torch.isin(index, overview(layout))
        picture = [layout.sample, layout.image, layout.frame, torch.where(spared, index, -1)]
        group = torch.stack(picture, 1).unique(dim=0, return_inverse=True)[1]
        if budget is None:
            size = torch.zeros_like(index).index_add_(0, group, count)
            total = (size.double() * self.ratio).long()
            total[group[spared]] = count[spared]
        else:
            first = layout.total(count * spared).minimum(budget)
            quota = apportion(first, count * spared, layout) + apportion(budget - first, count * ~spared, layout)
            total = torch.zeros_like(index).index_add_(0, group, quota)
        return Joint()(scores, total, replace(evidence, layout=replace(layout, sample=group, key=index)))


@dataclass(frozen=True)
class PairwiseMean(Merger):
    """Every dropped token joins the kept one that it is most alike, by cosine, one after the other in reading order.

    As HoliTom (arXiv 2505.21334) merges hidden states: each time the kept one becomes the mean of itself and the
    newcomer, so that of n the i-th weighs 1 / 2^(n - i + 1) in the end, the last one half. All are compared before any
    is changed; of equals the first.
    """

    def __call__(self, kept: Tensor, slots: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
        layout, place, tokens = evidence.layout, places(kept), real(evidence.tokens, evidence.layout)
        alike = cosine(tokens, take(tokens, place)).masked_fill((place < 0)[:, None], -torch.inf)
        to, joins = alike.argmax(2), layout.valid & ~kept
        weight = torch.exp2(-1.0 - _later(to.masked_fill(~joins, place.shape[1])))
        total, joined = sums(tokens * weight[..., None], to, joins, place.shape[1])
        merged = take(tokens, place) * torch.exp2(-joined.float()) + total
        return compact([(merged.to(evidence.tokens.dtype), place)], scores, layout)


def _later(group: Tensor) -> Tensor:
    """[V, N] -> [V, N]: how many behind it in the row are of the same group."""
    ordered, order = group.sort(dim=1, stable=True)
    end = torch.searchsorted(ordered, ordered, right=True)
    return torch.empty_like(end).scatter_(1, order, end - 1 - torch.arange(group.shape[1], device=group.device))


def _check_ratio(name: str, ratio: float) -> None:
    if not 0 < ratio <= 1:
        raise ValueError(f"{name} is the fraction of tokens kept and must lie in (0, 1], got {ratio}")


@dataclass(frozen=True)
class Late(Budget):
    """What makes `tokens` the mean of a model whose first half reads half as many again, or all there are."""

    def total(self, layout: Layout) -> Tensor:
        early = Budget(round(1.5 * (self.tokens or 0)), per=self.per).total(layout)
        return (2 * super().total(layout) - early).clamp(min=1).minimum(early)


@dataclass(frozen=True)
class VScan(Method):
    """VScan (arXiv 2505.22654): shallow and deep attention of the encoder, then the last text token's, amidst the LLM.

    VScanEncoder before the language model, and before its layer `layer` the tokens to which the last one of the prompt
    pays most, by that layer's own weights, as PyramidDrop does. A budget is the mean over a model of which `layer` is
    the middle: three halves of it stay before, half of it behind. So 64 is 96 and 32, 11.1 % is 16.7 % and 5.6 %;
    halves of a token go to even, and where three halves are more than all, that is made up for behind.

    Its code for LLaVA numbers positions anew in both stages; that is "compact". Here they are "original", which works
    with every backbone, as in its code for Qwen2.5-VL, which ranks before layer 14, by queries and keys without their
    rotary positions (ours have them), and takes the options that VScanEncoder names.
    """

    facts = Facts(
        "arXiv 2505.22654",
        "[CLS] attention, then the last text token's",
        "top-k in windows, then of all, then again",
        "averaged in, then gone",
        "exact before the LLM; inside it as PyramidDrop",
        "projector, llm",
        True,
    )
    layer: int = 16
    window: int = 6
    share: float = 0.5
    shallow: int = 5
    query: Stand = "cls"
    each: Literal["floor", "ceil"] = "floor"
    positions: Positions = "original"

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        if budget is None:
            raise ValueError("VScan shares out a budget, the mean over the model's layers: give tokens or ratio")
        if (ratio := budget.ratio) is not None:
            early, late = (replace(budget, ratio=x) for x in (min(1.5 * ratio, 1), max(ratio / 2, 2 * ratio - 1)))
        else:
            early, late = replace(budget, tokens=round(1.5 * (budget.tokens or 0))), Late(budget.tokens, per=budget.per)
        encoder = VScanEncoder(self.window, self.share, self.shallow, self.query, self.each)
        asked = Pipeline((TextAttention(self.layer),), Mean(), Even(), TopK(), across="sample")
        return (
            Stage("projector", encoder, early, self.positions),
            Stage(f"llm:{self.layer}", asked, late, self.positions),
        )


@dataclass(frozen=True)
class PruneVid(Method):
    """PruneVid (arXiv 2412.16117): what frames share is merged; then `alpha` of each stays, by the question.

    PruneVidOuter, and before layer `layer` of the language model those of each frame to which any text token behind
    the pictures pays most in any head of the layer before, rounded down. The others leave the caches of all layers
    before, too, unless `forget` says no, as models with caches of sliding windows demand. A budget is what the outer
    stage leaves; inside stays `alpha` of that, and at least one token of a sample.

    The code keeps `alpha` of a segment's still places and of each frame's changing ones by themselves. Here a frame is
    one set: a segment's still places stand in its first frame, and nothing tells them from the others there. The last
    layer that reads all is the code's selected_layer=10, so `layer` is 11. Positions are the original ones; in the
    code those of the caches are numbered anew.
    """

    facts = Facts(
        "arXiv 2412.16117",
        "attention of any text token in any head",
        "density peaks, then top-k in each frame",
        "averaged in, then gone",
        "differs: a segment's first frame ranks still and changing places together; exact given the code's sets",
        "projector, llm",
        True,
    )
    layer: int = 11
    alpha: float = 0.4
    tau: float = 0.8
    clusters: float = 0.25
    forget: bool = True

    def __post_init__(self) -> None:
        _check_ratio("alpha", self.alpha)

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        scorer = TextAttention(-1, "text", "max", "max")
        asked = Pipeline((scorer,), Mean(), Share(self.alpha), TopK())
        return (
            Stage("projector", PruneVidOuter(self.tau, self.clusters), budget),
            Stage(f"llm:{self.layer}", asked, forget=0 if self.forget else None),
        )


@dataclass(frozen=True)
class HoliTom(Method):
    """HoliTom (arXiv 2505.21334): still places once a window; then the `ratio` that the last text token looks at.

    HoliTomOuter, and before layer `layer` of the language model the tokens of a sample to which the last one of the
    prompt pays most in the layer before, as FastV ranks, halves of a token to even. The others are averaged into these
    (see PairwiseMean). A budget is what the outer stage leaves; inside stays `ratio` of that. (Its code calls the part
    that goes r, which at a half is the same.)
    """

    facts = Facts(
        "arXiv 2505.21334",
        "attention received, then the last text token's",
        "top-k and density peaks, then top-k",
        "still places averaged, then averaged in one by one",
        "differs: meets its budget before the LLM, where the code rounds in every frame",
        "projector, llm",
        True,
    )
    layer: int = 18
    ratio: float = 0.5
    tau: float = 0.8
    beta: float = 0.6
    query: Stand = "received"

    def __post_init__(self) -> None:
        _check_ratio("ratio", self.ratio)

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        asked = Pipeline(
            (TextAttention(-1),), Mean(), Share(self.ratio, "nearest"), TopK(), PairwiseMean(), across="sample"
        )
        return (
            Stage("projector", HoliTomOuter(self.tau, self.beta, self.query), budget),
            Stage(f"llm:{self.layer}", asked),
        )


@dataclass(frozen=True)
class MiniMonkeyScm(Method):
    """Scale compression of Mini-Monkey (arXiv 2408.02034): of a picture's crops stays what is asked for after them.

    The first layers of the language model up to `layer` read everything once, and what they made is thrown away. Of
    the crops of a picture those `ratio` tokens stay, rounded down, to which the prompt behind pays most, mean over
    queries and heads; its overview stays whole, and a picture without crops is treated as one crop. With a budget,
    overviews stay whole and the crops share what it leaves for them (see Crops).

    The code drops the token behind the crops, too, by a slip; here it stays. It numbers positions anew, which is
    positions="compact" of a Stage. Its crops of a second, coarser scale stay; here there is one scale.
    """

    facts = Facts(
        "arXiv 2408.02034",
        "attention of all that follows, in an early layer of the LLM",
        "top-k of a picture's crops",
        "gone",
        "exact; differs: the code loses one token more",
        text=True,
    )
    ratio: float = 0.5
    layer: int = 1

    def pipeline(self) -> Pipeline:
        return Pipeline((TextAttention(self.layer, "after"),), Mean(), Crops(self.ratio), TopK())
