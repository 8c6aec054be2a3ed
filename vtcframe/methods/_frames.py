"""Methods for videos: what frames have in common is kept once.

A view is a frame. Frames of a video are views of one image number whose frame numbers follow one another; any other
picture is a video of one frame.
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
from vtcframe.ops.density_peaks import cluster_by_peaks
from vtcframe.ops.quotas import apportion


class FrameMerging(Method):
    """A method that merges tokens of several frames, and so is no Pipeline of parts."""

    def pipeline(self) -> Pipeline:
        raise TypeError(f"{type(self).__name__} merges across frames: it has no parts, call it as a whole")

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    @abstractmethod
    def merged(self, scores: Tensor, total: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Scores [V, N], total [P] -> kept [V, N], and tokens [V, N, D] float32 where what is kept holds the rest."""

    def scores(self, evidence: Evidence) -> Tensor:
        """[V, N], any value at padding."""
        return torch.zeros(evidence.layout.column.shape, device=evidence.layout.column.device, dtype=torch.float32)

    @torch.no_grad()
    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        layout = evidence.layout
        if budget is None:
            raise ValueError(f"{type(self).__name__} shares out a budget: give tokens or ratio")
        total = budget.total(layout)
        scores = self.scores(evidence)
        broken = (~scores.isfinite() & layout.valid).any(1).cpu()
        if broken.any():
            raise ValueError(f"scores of samples {layout.sample[broken].unique().tolist()} are not finite: {self}")
        scores = scores.masked_fill(~layout.valid, -torch.inf)
        with torch.autocast(scores.device.type, enabled=False):
            kept, tokens = self.merged(scores, total, evidence)
        return gather(kept, kept.sum(1).cpu(), scores, replace(evidence, tokens=tokens.to(evidence.tokens.dtype)))


class StaticPlaces(FrameMerging):
    """A method that averages places which hardly change in a segment over its frames, kept in the first of them.

    The budget is shared between still places and the changing ones of every frame, in proportion to their number, so
    that it is met exactly. A sample that keeps all is left as it is; where the budget exceeds what averaging leaves,
    tokens of still places stay in later frames too.
    """

    @abstractmethod
    def still(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Tokens [V, N, D] -> where a segment begins [V] on the CPU, and which places hardly change in it [V, N]."""

    @abstractmethod
    def together(self, centre: Tensor, others: Tensor, count: Tensor) -> Tensor:
        """[..., D] a cluster's centre, the sum of its `count` [..., 1] other tokens -> [..., D] what it becomes."""

    @abstractmethod
    def changing(self, x: Tensor, among: Tensor, quota: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [V, N, D], among [V, N], quota [V] -> kept [V, N] of those, tokens [V, N, D]."""

    def gathered(self, x: Tensor, among: Tensor, quota: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the density peaks (7 neighbours) of the tokens `among`, each of them standing for its cluster."""
        kept, others, count = cluster_by_peaks(x, among, quota, 7)
        return kept, torch.where(kept[..., None], self.together(x, others, count[..., None]), x)

    def merged(self, scores: Tensor, total: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        layout, x = evidence.layout, clean_tokens(evidence)
        begins, still = self.still(x, layout)
        prunes = (total < layout.total(layout.count))[layout.sample].to(x.device)
        still, first = still & prunes[:, None], begins.to(x.device)[:, None]
        x = torch.where((still & first)[..., None], segment_means(x, begins), x)
        pools = still & first, layout.valid & ~still, still & ~first
        size = torch.stack([pool.sum(1) for pool in pools]).cpu()
        quota = proportional_quotas(total, size, layout)
        kept, x = self.gathered(x, pools[0], quota[0])
        changing, x = self.changing(x, pools[1], quota[1], scores)
        return kept | changing | first_of(pools[2], quota[2]), x


def clean_tokens(evidence: Evidence) -> Tensor:
    """[V, N, D] the tokens in float32, 0 at padding."""
    return evidence.tokens.float().masked_fill(~evidence.layout.valid[..., None], 0)


def view_means(x: Tensor, valid: Tensor) -> Tensor:
    """[V, N, C] -> [V, C] over a view's tokens."""
    return x.float().masked_fill(~valid[..., None], 0).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)


def segment_means(x: Tensor, begins: Tensor) -> Tensor:
    """[V, N, D] -> for each view the mean over the frames of its segment."""
    segment = (begins.cumsum(0) - 1).to(x.device)
    length = torch.bincount(segment, minlength=len(x)).clamp(min=1)[:, None, None]
    return (torch.zeros_like(x).index_add_(0, segment, x) / length)[segment]


def segment_bounds(begins: Tensor) -> list[tuple[int, int]]:
    """[V] bool -> the first and one behind the last view of each run."""
    starts = begins.nonzero()[:, 0].tolist()
    return list(pairwise([*starts, len(begins)]))


def proportional_quotas(total: Tensor, size: Tensor, layout: Layout) -> Tensor:
    """Total [P], size [3, V] of the pools of each view -> quota [3, V]; the last pools get what the others cannot."""
    index = torch.arange(int(size.max()) if size.numel() else 0)
    column = torch.where(index < size.reshape(-1, 1), index, -1)
    sample = layout.sample.repeat(3)
    grid = torch.zeros(*column.shape, 2, dtype=torch.long)
    pools = replace(layout, sample=sample, column=column, grid=grid, centre=grid.float())
    weight = size.clone()
    weight[2] = 0
    return apportion(total, weight.flatten(), pools).view(size.shape)


def first_of(among: Tensor, quota: Tensor) -> Tensor:
    """[V, N] bool: the first `quota` of each row."""
    return among & (among.cumsum(1) <= quota.to(among.device)[:, None])


def check_shares(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is a share and must lie in 0..1, got {value}")
