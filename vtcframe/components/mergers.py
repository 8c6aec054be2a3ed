"""Mergers merge dropped tokens into kept or additional tokens.

(kept [V, N] bool, slots [V], scores [V, N], evidence) -> Pruned. Sums are float32, with autocast off. An additional
token takes the place of a dropped token. A row without dropped tokens gets no additional token.
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
    """Every dropped token is merged into the most similar kept token, by cosine; the result is the unweighted mean.

    This is the merge of VScan (arXiv 2505.22654), on tokens as the language model would read them. Ties go to the first
    token.
    """

    def __call__(self, kept: Tensor, slots: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
        place = kept_places(kept)
        tokens = real_tokens(evidence.tokens, evidence.layout)
        similarity = cosine(tokens, gather_tokens(tokens, place)).masked_fill((place < 0)[:, None], -torch.inf)
        return _average(similarity.argmax(2), place, kept, scores, evidence)


@dataclass(frozen=True)
class CellMean(Merger):
    """Every dropped token is merged into the nearest kept token on the grid; the result is the unweighted mean.

    After the selector Grid this is average pooling, exactly so if the quota divides the grid evenly. Ties go to the
    last token, because Grid selects the later of two middle tokens. Rows must be views, because joined rows contain
    several grids.
    """

    def __call__(self, kept: Tensor, slots: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
        place = kept_places(kept)
        cell = evidence.layout.grid.float()
        target = gather_tokens(cell, place)
        distance = (cell[..., None, 0] - target[:, None, :, 0]) ** 2 + (cell[..., None, 1] - target[:, None, :, 1]) ** 2
        last = place.shape[1] - 1
        to = last - distance.masked_fill((place < 0)[:, None], torch.inf).flip(2).argmin(2)
        return _average(to, place, kept, scores, evidence)


@dataclass(frozen=True)
class Fuse(Merger):
    """All dropped tokens are fused into a single token, weighted by score.

    The fused token takes the first free place and is read last. EViT (arXiv 2202.07800) sums scores times tokens
    between a block's attention and its MLP, where a norm rescales the sum: `mean=False`. No norm follows before a
    language model, so by default the sum is divided by the sum of the weights. Negative scores then have weight 0; if
    no score is positive, all weights are equal.
    """

    mean: bool = True

    def slots(self, quota: Tensor, layout: Layout) -> Tensor:
        return slot_where_dropped(quota, layout)

    def __call__(self, kept: Tensor, slots: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
        layout = evidence.layout
        dropped = layout.valid & ~kept
        weight = scores.masked_fill(~dropped, 0)
        if self.mean:
            weight = weight.clamp(min=0)
            weight = F.normalize(torch.where((weight > 0).any(1, keepdim=True), weight, dropped.float()), p=1, dim=1)
        fused = inner_product(weight[:, None], real_tokens(evidence.tokens, layout)).to(evidence.tokens.dtype)
        place = kept_places(kept)
        free = first_tokens(dropped, slots)
        return compact([(gather_tokens(evidence.tokens, place), place), (fused, free)], scores, layout)


@dataclass(frozen=True)
class Contextual(Merger):
    """A `share` of the quota for contextual tokens: evenly spaced dropped tokens, into which the others are merged.

    VisionZip (arXiv 2412.04467). Every other dropped token joins the target with the most similar key (cosine of the
    head-mean keys of the last block that feeds the projector; ties go to the first target). As in the authors' code, a
    target becomes itself plus the mean of the tokens that join it, in features before the projector. `class_token` adds
    [CLS] as the first token; it takes the first place without a target and counts in the quota. Order: [CLS], kept
    tokens, targets, each in raster order.

    ValueError for evidence without `project`, such as loaded evidence. With `class_token` rows must be views.
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
        slots = (quota * self.share).round().long() + self.class_token
        return slots.minimum(quota).masked_fill(quota >= layout.count, 0)

    def __call__(self, kept: Tensor, slots: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
        layout = evidence.layout
        dropped = layout.valid & ~kept
        class_slots = slots.clamp(max=int(self.class_token))
        targets = (slots - class_slots).to(kept.device)[:, None]
        step = (dropped.sum(1, keepdim=True) // targets.clamp(min=1)).clamp(min=1)
        nth = dropped.cumsum(1) - 1
        is_target = dropped & (nth % step == 0) & (nth < step * targets)
        x = real_tokens(evidence[HiddenStates()], layout)
        keys = real_tokens(evidence[AttentionKeys((-1,))][0].float().mean(1), layout)
        kept_place = kept_places(kept)
        target_place = kept_places(is_target)
        similarity = cosine(keys, gather_tokens(keys, target_place))
        to = similarity.masked_fill((target_place < 0)[:, None], -torch.inf).argmax(2)
        total, members = group_sums(x, to, dropped & ~is_target & (targets > 0), target_place.shape[1])
        contexts = gather_tokens(x, target_place) + total / members.clamp(min=1)
        parts = [
            (gather_tokens(evidence.tokens, kept_place), kept_place),
            (project_features(self, contexts, evidence), target_place),
        ]
        if self.class_token:
            if ClassToken() not in evidence.readings:
                raise ValueError(f"{self} places each view's class token: use across='view', or class_token=False")
            cls = evidence[ClassToken()][:, None]
            cls = cls.repeat(1, 1, x.shape[2] // cls.shape[2])  # once for each patch of a token (InternVL)
            parts.insert(0, (project_features(self, cls, evidence), first_tokens(dropped & ~is_target, class_slots)))
        return compact(parts, scores, layout)


@dataclass(frozen=True)
class Absorb(Merger):
    """Each kept token plus the features of its `nearest` tokens, weighted by score, and a `summary` of dropped tokens.

    PruMerge (arXiv 2403.15388). Neighbours are found by the cosine of the keys, heads joined, of the tower's last
    block. They may be kept or dropped tokens, and their original features are used. Nothing is normalised, so scores
    must be shares of attention. Features are merged before the projector.

    The summary is the sum of all dropped tokens, weighted by score. It takes the first free place and counts in the
    budget. As in the authors' code, outliers (see Outliers) come first, by score, then the other tokens in raster
    order, then the summary.

    ValueError for evidence without `project`, such as loaded evidence.
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
        layout = evidence.layout
        dropped = layout.valid & ~kept
        drops_any = dropped.any(1, keepdim=True)  # a row that keeps all tokens does not change
        leads = outlier_tokens(scores, layout) & drops_any
        place = kept_places(kept, scores.masked_fill(~leads, torch.finfo(scores.dtype).min))
        x = real_tokens(evidence[HiddenStates()], layout)
        weight = scores.masked_fill(~layout.valid, 0)
        keys = real_tokens(evidence[self.needs[1]][0].movedim(1, 2).flatten(2), layout)
        similarity = cosine(gather_tokens(keys, place), keys)  # [V, M, N]
        is_self = place[..., None] == torch.arange(kept.shape[1], device=kept.device)
        near = best_match(similarity.masked_fill(is_self | ~layout.valid[:, None], -torch.inf), self.nearest)
        merged = project_features(self, gather_tokens(x, place) + inner_product(near * weight[:, None], x), evidence)
        parts = [(torch.where(drops_any[..., None], merged, gather_tokens(evidence.tokens, place)), place)]
        if self.summary:
            summary = project_features(self, inner_product((weight * dropped)[:, None], x), evidence)
            parts.append((summary, first_tokens(dropped, slots)))
        return compact(parts, scores, layout)


def slot_where_dropped(quota: Tensor, layout: Layout) -> Tensor:
    """Quota [V] -> slots [V]: 1 for each row that keeps some but not all tokens, else 0."""
    return ((quota > 0) & (quota < layout.count)).long()


def _average(to: Tensor, place: Tensor, kept: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
    """Average every dropped token into the kept token with index `to` [V, N] among those at place [V, M]."""
    layout = evidence.layout
    tokens = real_tokens(evidence.tokens, layout)
    total, members = group_sums(tokens, to, layout.valid & ~kept, place.shape[1])
    means = ((gather_tokens(tokens, place) + total) / (1 + members)).to(evidence.tokens.dtype)
    return compact([(means, place)], scores, layout)


def project_features(merger: Merger, features: Tensor, evidence: Evidence) -> Tensor:
    """Apply the model's projector: [V, M, C] -> [V, M, D]. ValueError for evidence without a projector."""
    if evidence.project is None:
        raise ValueError(
            f"{merger} merges features before the projector, and this evidence has none (loaded evidence): observe the "
            "model, or use Nearest, CellMean or Fuse, which merge tokens"
        )
    return evidence.project(features.to(evidence[HiddenStates()].dtype)).to(evidence.tokens.dtype)


def compact(parts: list[tuple[Tensor, Tensor]], scores: Tensor, layout: Layout) -> Pruned:
    """Concatenate parts (tokens [V, M, D], place [V, M]) to a Pruned, with all padding at the end."""
    tokens, place = (torch.cat(x, 1) for x in zip(*parts, strict=True))
    order = kept_places(place >= 0)
    return Pruned(
        gather_tokens(tokens, order), place.gather(1, order.clamp(min=0)).masked_fill(order < 0, -1), scores, layout
    )
