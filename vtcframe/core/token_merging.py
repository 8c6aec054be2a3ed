"""Token merging inside an encoder: sizes of tokens, the result of a merge, and pooling of groups."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Pruner

MergeTime = Literal["amid", "after", "before", "fused"]


Pooling = Literal["mean", "max"]


@dataclass(frozen=True)
class EncoderEvidence(Evidence):
    """Evidence inside an encoder: tokens [V, N, C] are the patches' hidden states. Class tokens always stay.

    After an earlier stage only the evidence of the remaining tokens is available. `blocks="feeding"` counts the blocks
    that have run.
    """

    size: Tensor | None = None  # [V, N] float32, number of patches that each token represents; None: one patch each
    classes: int = 0  # number of class tokens and registers before the patches

    def _regroup(self, source: Tensor, rows: Layout) -> "EncoderEvidence":
        evidence: Any = super()._regroup(source, rows)
        if self.size is None:
            return evidence
        return replace(evidence, size=self.size.flatten()[source.clamp(min=0)].masked_fill(source < 0, 1))


def token_sizes(evidence: Evidence) -> Tensor:
    """[V, N] float32, the number of patches that each token represents."""
    size = evidence.size if isinstance(evidence, EncoderEvidence) else None
    return (
        torch.ones(evidence.layout.column.shape, device=evidence.tokens.device, dtype=torch.float32)
        if size is None
        else size
    )


@dataclass(frozen=True)
class Merged(Pruned):
    """The result of a merge. Later blocks add the logarithm of a token's size to the logits of its key."""

    size: Tensor  # [V, M] float32
    group: Tensor  # [V, N] index of the output token that each token joins; -1 = dropped or padding
    share: Tensor  # [V, N] float32, weight of each token in its output token; the weights of a group sum to 1
    pooling: Pooling = "mean"


class TokenMerger(Pruner):
    """A pruner inside an encoder that merges tokens and returns `Merged`.

    `when` is the point in a block at which it acts:

    - "amid": between attention and MLP.
    - "after": after the MLP.
    - "before": before the attention, which then runs on the remaining tokens.
    - "fused": before the attention, whose weights are merged like the tokens and not computed again.
    """

    when: MergeTime = "amid"


def merge(
    evidence: Evidence,
    leader: Tensor,
    order: Tensor,
    quota: Tensor,
    weight: Tensor,
    scores: Tensor,
    *,
    gain: Tensor | None = None,
    pooling: Pooling = "mean",
) -> Merged:
    """Merge the tokens that share a leader into one token, which takes the leader's place.

    `leader` [V, N] is the index of the token that each token joins: its own index if it stays, -1 if it is dropped.
    Row v has `quota[v]` leaders, and the output contains them in ascending `order` [V, N]. `weight` [V, N] > 0 weights
    the mean. `gain` [V, N] is the size that each token adds to the merged token (default: its current size). A token
    that no other token joins does not change by a bit.
    """
    valid = evidence.layout.valid
    width = int(quota.max()) if len(quota) else 0
    index = torch.arange(leader.shape[1], device=leader.device).expand(leader.shape)
    leads = valid & (leader == index)
    place = order.masked_fill(~leads, order.shape[1] * 4).argsort(dim=1, stable=True)
    group = torch.zeros_like(place).scatter_(1, place, index).gather(1, leader.clamp(min=0))
    group = group.masked_fill(~valid | (leader < 0), -1)
    empty = torch.arange(width, device=leader.device) >= quota.to(leader.device)[:, None]
    place = place[:, :width].masked_fill(empty, -1)

    total = pool_groups(weight[:, None, :, None], group, None, width)[:, 0, :, 0]
    share = (weight / total.gather(1, group.clamp(min=0))).masked_fill(group < 0, 0) if width else weight * 0
    tokens = pool_groups(evidence.tokens[:, None].float(), group, share, width, pooling)[:, 0]
    tokens = tokens.masked_fill(empty[..., None], 0).to(evidence.tokens.dtype)
    gain = token_sizes(evidence) if gain is None else gain
    size = pool_groups(gain[:, None, :, None], group, None, width)[:, 0, :, 0].masked_fill(empty, 1)
    scores = scores.float().masked_fill(~valid, -torch.inf)
    return Merged(tokens, place, scores, evidence.layout, size, group, share, pooling)


def pool_groups(x: Tensor, group: Tensor, share: Tensor | None, width: int, pooling: Pooling = "mean") -> Tensor:
    """[V, H, N, D] -> [V, H, width, D]: the sum of each group, weighted by `share` [V, N], or its maximum."""
    index = group.masked_fill(group < 0, width)[:, None, :, None].expand(x.shape)
    out = x.new_zeros(*x.shape[:2], width + 1, x.shape[3])
    if pooling == "max":
        return out.scatter_reduce(2, index, x, "amax", include_self=False)[:, :, :width]
    return out.scatter_add(2, index, x if share is None else x * share[:, None, :, None])[:, :, :width]


def fuse_attention(weights: Tensor, merged: Merged, classes: int) -> Tensor:
    """[V, H, T, T] attention before a merge -> [V, H, T', T']: merged keys sum their weights, merged queries pool them.

    The first `classes` tokens are class tokens, which never merge.
    """
    class_index = torch.arange(classes, device=weights.device).expand(len(weights), -1)
    group = torch.cat([class_index, torch.where(merged.group < 0, -1, merged.group + classes)], 1)
    share = pad(merged.share, (classes, 0), value=1)
    width = classes + merged.place.shape[1]
    keys = pool_groups(weights.transpose(2, 3), group, None, width).transpose(2, 3)
    return pool_groups(keys, group, share, width, merged.pooling)
