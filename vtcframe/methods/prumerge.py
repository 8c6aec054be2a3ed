"""PruMerge and PruMerge+ (arXiv 2403.15388): outliers of [CLS] attention."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtcframe.components.allocators import Outliers
from vtcframe.components.ensemblers import Mean
from vtcframe.components.mergers import Absorb
from vtcframe.components.scorers import ClsAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.method import MethodCard
from vtcframe.core.needs import ClsProxy
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.verbs import Allocator, Selector
from vtcframe.methods._base import ClsScored
from vtcframe.ops.gather import highest
from vtcframe.ops.quotas import apportion
from vtcframe.ops.views import outlier_tokens


def _of_tower(query: ClsProxy) -> ClsAttention:
    return ClsAttention(1, query, blocks="tower", heads="joined")


@dataclass(frozen=True, repr=False)
class PruMerge(ClsScored):
    """PruMerge (arXiv 2403.15388): tokens whose [CLS] attention stands out, each absorbing its nearest by key.

    Attention of the tower's last block with all heads as one. Without a budget it is adaptive, the summary token on
    top; with one, budgets are split by the number of those that stand out. Its code finds one ratio for a whole batch;
    here every view has its own. `query` names what stands in for a missing [CLS] (see ClsAttention).
    """

    card = MethodCard(
        paper="arXiv 2403.15388",
        signal="[CLS] attention of the last block, heads joined",
        selector="outliers",
        dropped="absorbed by the nearest, and one summary token",
        parity="within 2e-5; differs: adaptive per view, not per batch",
    )
    nearest: int = 32
    query: ClsProxy = "cls"

    def pipeline(self) -> Pipeline:
        return Pipeline((_of_tower(self.query),), Mean(), Outliers(), TopK(), Absorb(self.nearest))


@dataclass(frozen=True, repr=False)
class PruMergePlus(ClsScored):
    """PruMerge+ (arXiv 2403.15388): PruMerge, and tokens sampled evenly among the others, about three for each outlier.

    Without a budget it is adaptive, as in its code, whose steps are made safe: where a sixth of the tokens or more
    stand out its step is 1 and nothing is dropped, from a third on it is 0, which is an error, as are no outliers. With
    a budget a quarter is chosen by score, the rest evenly (its code has no budget).
    """

    card = MethodCard(
        paper="arXiv 2403.15388",
        signal="[CLS] attention of the last block, heads joined",
        selector="outliers and an even sample",
        dropped="absorbed by the nearest, and one summary token",
        parity="within 2e-5; differs: steps of 0 and 1 become 2, and adaptive per view",
    )
    nearest: int = 32
    query: ClsProxy = "cls"

    def pipeline(self) -> Pipeline:
        parts = OutliersAndSample(), TopAndSample()
        return Pipeline((_of_tower(self.query),), Mean(), *parts, Absorb(self.nearest))


def outliers_and_sample(scores: Tensor, layout: Layout) -> Tensor:
    """[V, N] bool: the n outliers, and every N // 3n-th token, at least every other, from the first on.

    The last token is no sample, as in PruMerge+'s code, which samples up to 575 of 576.
    """
    above, count = outlier_tokens(scores, layout), layout.valid.sum(1, keepdim=True)
    step = (count // (3 * above.sum(1, keepdim=True)).clamp(min=1)).clamp(min=2)
    nth = layout.valid.cumsum(1) - 1
    return above | (layout.valid & (nth % step == 0) & (nth < count - 1))


@dataclass(frozen=True)
class OutliersAndSample(Allocator):
    """Adaptive: as many as PruMerge+ keeps, outliers and an even sample; a budget is split by that number."""

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        count = outliers_and_sample(scores, evidence.layout).sum(1).cpu()
        return count if budget is None else apportion(budget, count, evidence.layout)


@dataclass(frozen=True)
class TopAndSample(Selector):
    """Outliers and an even sample where they fill the quota exactly; else `top` of it by score, the rest evenly."""

    top: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.top <= 1:
            raise ValueError(f"top is the fraction of the quota chosen by score and must lie in [0, 1], got {self.top}")

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        valid, natural = evidence.layout.valid, outliers_and_sample(scores, evidence.layout)
        best = highest(scores, (quota * self.top).ceil().long()) & valid
        rest = valid & ~best
        quota = quota.to(scores.device)[:, None]
        left, among = quota - best.sum(1, keepdim=True), rest.sum(1, keepdim=True).clamp(min=1)
        nth = rest.cumsum(1)
        sample = rest & (nth * left // among > (nth - 1) * left // among)
        return torch.where(natural.sum(1, keepdim=True) == quota, natural, best | sample)
