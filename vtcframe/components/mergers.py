"""Mergers: (kept [V, N] bool, slots [V], scores [V, N], evidence) -> Pruned. Sums are float32, autocast off.

A token that a merger makes takes the place of a dropped one. Where nothing is dropped, nothing is made.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.needs import AttentionKeys, ClassToken, HiddenStates, Need
from vtcframe.core.pruned import Pruned
from vtcframe.core.verbs import Merger
from vtcframe.ops.gather import best_match, first_tokens, gather_tokens, kept_places, real_tokens
from vtcframe.ops.similarity import cosine, group_sums, inner_product
from vtcframe.ops.views import outlier_tokens


@dataclass(frozen=True)
class Nearest(Merger):
    """Every dropped token joins the kept one that it is most alike, by cosine; each kept one becomes the plain mean.

    As VScan merges (arXiv 2505.22654), tokens as the language model would read them. Of equals the first.
    """

    def __call__(self, kept: Tensor, slots: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
        place, tokens = kept_places(kept), real_tokens(evidence.tokens, evidence.layout)
        alike = cosine(tokens, gather_tokens(tokens, place)).masked_fill((place < 0)[:, None], -torch.inf)
        return _means(alike.argmax(2), place, kept, scores, evidence)


@dataclass(frozen=True)
class CellMean(Merger):
    """Every dropped token joins the kept one that lies nearest on the grid; each kept one becomes the plain mean.

    After the selector Grid that is average pooling, exactly where the grid divides. Of equally near ones it is the
    last, because Grid takes the later of two middles. For rows that are views: joined ones hold several grids.
    """

    def __call__(self, kept: Tensor, slots: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
        place, at = kept_places(kept), evidence.layout.grid.float()
        own = gather_tokens(at, place)
        away = (at[..., None, 0] - own[:, None, :, 0]) ** 2 + (at[..., None, 1] - own[:, None, :, 1]) ** 2
        last = place.shape[1] - 1
        to = last - away.masked_fill((place < 0)[:, None], torch.inf).flip(2).argmin(2)
        return _means(to, place, kept, scores, evidence)


@dataclass(frozen=True)
class Fuse(Merger):
    """All dropped tokens become one, weighted by score; it is read last and takes the first place that is free.

    EViT (arXiv 2202.07800) sums scores times tokens between a block's attention and its MLP, whose norm
    mends the length: `mean=False`. Before a language model nothing does, so the default divides by the sum of the
    weights. Negative scores weigh nothing there; where none is positive, all weigh the same.
    """

    mean: bool = True

    def slots(self, quota: Tensor, layout: Layout) -> Tensor:
        return slot_where_dropped(quota, layout)

    def __call__(self, kept: Tensor, slots: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
        layout, dropped = evidence.layout, evidence.layout.valid & ~kept
        weight = scores.masked_fill(~dropped, 0)
        if self.mean:
            weight = weight.clamp(min=0)
            weight = F.normalize(torch.where((weight > 0).any(1, keepdim=True), weight, dropped.float()), p=1, dim=1)
        fused = inner_product(weight[:, None], real_tokens(evidence.tokens, layout)).to(evidence.tokens.dtype)
        place = kept_places(kept)
        spare = first_tokens(dropped, slots)
        return compact([(gather_tokens(evidence.tokens, place), place), (fused, spare)], scores, layout)


@dataclass(frozen=True)
class Contextual(Merger):
    """`share` of the quota are contextual tokens: evenly spaced dropped ones, to which all others are added.

    VisionZip (arXiv 2412.04467). Every other dropped token joins the target whose key is most alike (cosine of the
    head-mean keys of the last block that feeds the projector; of equals the first). As in its code a target becomes
    itself plus the mean of what joined it, in features before the projector. `class_token` puts [CLS] first, into the
    first place that no target takes; it comes off the quota. Order: [CLS], kept, targets, each in raster order.

    Needs `evidence.project`, which evidence that was loaded lacks, and rows that are views for `class_token`.
    """

    share: float = 10 / 64
    class_token: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is the fraction of contextual tokens and must lie in [0, 1], got {self.share}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (HiddenStates(), AttentionKeys((-1,)), *([ClassToken()] if self.class_token else []))

    def slots(self, quota: Tensor, layout: Layout) -> Tensor:
        wanted = (quota * self.share).round().long() + self.class_token
        return wanted.minimum(quota).masked_fill(quota >= layout.count, 0)

    def __call__(self, kept: Tensor, slots: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
        layout, dropped = evidence.layout, evidence.layout.valid & ~kept
        head = slots.clamp(max=int(self.class_token))
        wanted = (slots - head).to(kept.device)[:, None]
        step = (dropped.sum(1, keepdim=True) // wanted.clamp(min=1)).clamp(min=1)
        nth = dropped.cumsum(1) - 1
        target = dropped & (nth % step == 0) & (nth < step * wanted)
        x, keys = (
            real_tokens(evidence[HiddenStates()], layout),
            real_tokens(evidence[AttentionKeys((-1,))][0].float().mean(1), layout),
        )
        own, at = kept_places(kept), kept_places(target)
        to = cosine(keys, gather_tokens(keys, at)).masked_fill((at < 0)[:, None], -torch.inf).argmax(2)
        total, joined = group_sums(x, to, dropped & ~target & (wanted > 0), at.shape[1])
        contexts = gather_tokens(x, at) + total / joined.clamp(min=1)
        parts = [(gather_tokens(evidence.tokens, own), own), (project_features(self, contexts, evidence), at)]
        if self.class_token:
            if ClassToken() not in evidence.readings:
                raise ValueError(f"{self} places each view's class token: use across='view', or class_token=False")
            one = evidence[ClassToken()][:, None]
            one = one.repeat(1, 1, x.shape[2] // one.shape[2])  # for each of the patches that make a token (InternVL)
            parts.insert(0, (project_features(self, one, evidence), first_tokens(dropped & ~target, head)))
        return compact(parts, scores, layout)


@dataclass(frozen=True)
class Absorb(Merger):
    """A kept token adds score times feature of the `nearest` others by key; a `summary` adds up all that are dropped.

    PruMerge (arXiv 2403.15388): cosine of the joined keys of the tower's last block, kept and dropped
    neighbours alike, all read before any is changed; nothing is normalised, so scores must be shares of attention. As
    in its code those that stand out (see Outliers) come first, by score, then the others in raster order, the summary
    last; it takes the first place that is free, and a budget includes it. Features are merged before the projector.

    Needs `evidence.project`, which evidence that was loaded lacks.
    """

    nearest: int = 32
    summary: bool = True

    def __post_init__(self) -> None:
        if self.nearest < 1:
            raise ValueError(f"nearest counts neighbours and must be at least 1, got {self.nearest}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (HiddenStates(), AttentionKeys((-1,), blocks="tower"))

    def slots(self, quota: Tensor, layout: Layout) -> Tensor:
        return slot_where_dropped(quota, layout) * self.summary

    def __call__(self, kept: Tensor, slots: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
        layout, dropped = evidence.layout, evidence.layout.valid & ~kept
        some = dropped.any(1, keepdim=True)  # a row that keeps all is left as it is
        leads = outlier_tokens(scores, layout) & some
        place = kept_places(kept, scores.masked_fill(~leads, torch.finfo(scores.dtype).min))
        x, weight = real_tokens(evidence[HiddenStates()], layout), scores.masked_fill(~layout.valid, 0)
        keys = real_tokens(evidence[self.needs[1]][0].movedim(1, 2).flatten(2), layout)
        alike = cosine(gather_tokens(keys, place), keys)  # [V, M, N]
        itself = place[..., None] == torch.arange(kept.shape[1], device=kept.device)
        near = best_match(alike.masked_fill(itself | ~layout.valid[:, None], -torch.inf), self.nearest)
        made = project_features(self, gather_tokens(x, place) + inner_product(near * weight[:, None], x), evidence)
        parts = [(torch.where(some[..., None], made, gather_tokens(evidence.tokens, place)), place)]
        if self.summary:
            summary = project_features(self, inner_product((weight * dropped)[:, None], x), evidence)
            parts.append((summary, first_tokens(dropped, slots)))
        return compact(parts, scores, layout)


def slot_where_dropped(quota: Tensor, layout: Layout) -> Tensor:
    """[V] -> [V]: one slot in each row that keeps some but not all."""
    return ((quota > 0) & (quota < layout.count)).long()


def _means(to: Tensor, place: Tensor, kept: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
    """Let every dropped token join one of the kept ones at place [V, M], the number `to` [V, N] says which."""
    layout, tokens = evidence.layout, real_tokens(evidence.tokens, evidence.layout)
    total, joined = group_sums(tokens, to, layout.valid & ~kept, place.shape[1])
    means = ((gather_tokens(tokens, place) + total) / (1 + joined)).to(evidence.tokens.dtype)
    return compact([(means, place)], scores, layout)


def project_features(merger: Merger, features: Tensor, evidence: Evidence) -> Tensor:
    """[V, M, C] -> [V, M, D] by the model's projector. ValueError for evidence that has none."""
    if evidence.project is None:
        raise ValueError(
            f"{merger} merges features before the projector, and this evidence has none (loaded evidence): observe the "
            "model, or use Nearest, CellMean or Fuse, which merge tokens"
        )
    return evidence.project(features.to(evidence[HiddenStates()].dtype)).to(evidence.tokens.dtype)


def compact(parts: list[tuple[Tensor, Tensor]], scores: Tensor, layout: Layout) -> Pruned:
    """Put (tokens [V, M, D], place [V, M]) behind one another, padding at the end."""
    tokens, place = (torch.cat(x, 1) for x in zip(*parts, strict=True))
    order = kept_places(place >= 0)
    return Pruned(
        gather_tokens(tokens, order), place.gather(1, order.clamp(min=0)).masked_fill(order < 0, -1), scores, layout
    )
