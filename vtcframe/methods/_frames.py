"""Base classes and helpers of video methods, which merge tokens that repeat from frame to frame.

A view is a frame. The frames of a video are views with the same image number and consecutive frame numbers. Any other
picture counts as a video of one frame.
"""

from abc import abstractmethod
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from vtcframe.core.budget import Budget
from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.method import Method
from vtcframe.core.needs import Need
from vtcframe.core.pipeline import Pipeline, gather
from vtcframe.core.pruned import Pruned
from vtcframe.ops.clustering import cluster_by_peaks
from vtcframe.ops.quotas import apportion


class FrameMerging(Method):
    """A method that merges tokens of several frames and therefore cannot be written as a Pipeline of components."""

    def pipeline(self) -> Pipeline:
        raise TypeError(
            f"{type(self).__name__} merges tokens across frames and has no pipeline: call the method itself"
        )

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    @abstractmethod
    def merge_frames(self, scores: Tensor, total: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Scores [V, N], total [P] -> kept [V, N] bool, tokens [V, N, D] float32 with dropped tokens merged in."""

    def score_tokens(self, evidence: Evidence) -> Tensor:
        """[V, N] scores; values at padding are ignored."""
        return torch.zeros(evidence.layout.column.shape, device=evidence.layout.column.device, dtype=torch.float32)

    @torch.no_grad()
    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        layout = evidence.layout
        if budget is None:
            raise ValueError(f"{type(self).__name__} shares out a budget: give tokens or ratio")
        total = budget.total(layout)
        scores = self.score_tokens(evidence)
        non_finite = (~scores.isfinite() & layout.valid).any(1).cpu()
        if non_finite.any():
            raise ValueError(f"scores of samples {layout.sample[non_finite].unique().tolist()} are not finite: {self}")
        scores = scores.masked_fill(~layout.valid, -torch.inf)
        with torch.autocast(scores.device.type, enabled=False):
            kept, tokens = self.merge_frames(scores, total, evidence)
        return gather(kept, kept.sum(1).cpu(), scores, replace(evidence, tokens=tokens.to(evidence.tokens.dtype)))


class StaticPatchMerging(FrameMerging):
    """A method that averages static patches over the frames of a segment and keeps the mean in the first frame.

    A patch position is static if its tokens hardly change within the segment. The budget is split between the static
    patches and the changing patches of every frame in proportion to their number, so that it is met exactly. A sample
    that keeps all its tokens is not changed. Where the budget exceeds the tokens that remain after averaging, tokens
    of static patches also stay in later frames.
    """

    @abstractmethod
    def find_static(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Tokens [V, N, D] -> the frames at which a segment begins [V] bool on the CPU, static patches [V, N] bool."""

    @abstractmethod
    def merge_cluster(self, centre: Tensor, others: Tensor, count: Tensor) -> Tensor:
        """Return the tokens [..., D] of clusters.

        `centre` [..., D] is the centre of each cluster, and `others` [..., D] the sum of its `count` [..., 1] others.
        """

    @abstractmethod
    def select_changing(self, x: Tensor, among: Tensor, quota: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [V, N, D], candidates `among` [V, N] bool, quota [V] -> kept candidates [V, N], tokens [V, N, D]."""

    def merge_clusters(self, x: Tensor, among: Tensor, quota: Tensor) -> tuple[Tensor, Tensor]:
        """Cluster the tokens `among` around density peaks (7 neighbours); keep each peak as its cluster's token."""
        kept, others, count = cluster_by_peaks(x, among, quota, 7)
        return kept, torch.where(kept[..., None], self.merge_cluster(x, others, count[..., None]), x)

    def merge_frames(self, scores: Tensor, total: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        layout = evidence.layout
        x = clean_tokens(evidence)
        begins, static = self.find_static(x, layout)
        is_pruned = (total < layout.total(layout.count))[layout.sample].to(x.device)
        static = static & is_pruned[:, None]
        first = begins.to(x.device)[:, None]
        x = torch.where((static & first)[..., None], segment_means(x, begins), x)
        pools = static & first, layout.valid & ~static, static & ~first
        size = torch.stack([pool.sum(1) for pool in pools]).cpu()
        quota = proportional_quotas(total, size, layout)
        kept, x = self.merge_clusters(x, pools[0], quota[0])
        changing, x = self.select_changing(x, pools[1], quota[1], scores)
        return kept | changing | take_first(pools[2], quota[2]), x


def clean_tokens(evidence: Evidence) -> Tensor:
    """[V, N, D] the tokens in float32, 0 at padding."""
    return evidence.tokens.float().masked_fill(~evidence.layout.valid[..., None], 0)


def view_means(x: Tensor, valid: Tensor) -> Tensor:
    """[V, N, C] -> [V, C], the mean over the tokens of each view."""
    return x.float().masked_fill(~valid[..., None], 0).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)


def segment_means(x: Tensor, begins: Tensor) -> Tensor:
    """[V, N, D] -> [V, N, D]: for each frame the mean over the frames of its segment."""
    segment = (begins.cumsum(0) - 1).to(x.device)
    length = torch.bincount(segment, minlength=len(x)).clamp(min=1)[:, None, None]
    return (torch.zeros_like(x).index_add_(0, segment, x) / length)[segment]


def segment_bounds(begins: Tensor) -> list[tuple[int, int]]:
    """[V] bool -> (first view, last view + 1) of each segment."""
    starts = begins.nonzero()[:, 0].tolist()
    return list(pairwise([*starts, len(begins)]))


def proportional_quotas(total: Tensor, size: Tensor, layout: Layout) -> Tensor:
    """Total [P], sizes [3, V] of the three pools of each view -> quota [3, V].

    The first two pools share the budget in proportion to their sizes; the third gets what they cannot take.
    """
    index = torch.arange(int(size.max()) if size.numel() else 0)
    column = torch.where(index < size.reshape(-1, 1), index, -1)
    sample = layout.sample.repeat(3)
    grid = torch.zeros(*column.shape, 2, dtype=torch.long)
    pools = replace(layout, sample=sample, column=column, grid=grid, centre=grid.float())
    weight = size.clone()
    weight[2] = 0
    return apportion(total, weight.flatten(), pools).view(size.shape)


def take_first(among: Tensor, quota: Tensor) -> Tensor:
    """[V, N] bool: the first `quota` [V] tokens of each row of `among` [V, N] bool."""
    return among & (among.cumsum(1) <= quota.to(among.device)[:, None])


def check_shares(**shares: float) -> None:
    """Raise ValueError, naming the option, unless every share lies in 0..1."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is a share and must lie in 0..1, got {value}")
