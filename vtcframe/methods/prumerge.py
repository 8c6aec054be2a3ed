"""PruMerge and PruMerge+ (arXiv 2403.15388): keep outliers of the [CLS] attention and merge the other tokens."""

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


def _tower_attention(query: ClsProxy) -> ClsAttention:
    return ClsAttention(1, query, blocks="tower", heads="joined")


@dataclass(frozen=True, repr=False)
class PruMerge(ClsScored):
    """PruMerge (arXiv 2403.15388): keeps outliers of the [CLS] attention, which absorb their nearest tokens by key.

    The attention is that of the tower's last block with all heads joined as one. Without a budget the number of tokens
    is the number of outliers, plus one summary token; a budget is split by the number of outliers. The authors' code
    computes one ratio for a whole batch; here every view has its own. `query` selects a proxy for towers without [CLS]
    (see ClsAttention).
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
        return Pipeline((_tower_attention(self.query),), Mean(), Outliers(), TopK(), Absorb(self.nearest))


@dataclass(frozen=True, repr=False)
class PruMergePlus(ClsScored):
    """PruMerge+ (arXiv 2403.15388): PruMerge, and tokens sampled evenly among the others, about three for each outlier.

    Without a budget the number of tokens is adaptive, as in the authors' code. Deviation: the sampling step is at least
    2 here. In the code, if a sixth or more of the tokens are outliers, the step is 1 and nothing is dropped; from a
    third on the step is 0, which raises an error, as does a view without outliers. With a budget, a quarter of the
    tokens is selected by score and the rest is sampled evenly (the code has no budget).
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
        scorers = (_tower_attention(self.query),)
        return Pipeline(scorers, Mean(), OutliersAndSample(), TopAndSample(), Absorb(self.nearest))


def outliers_and_sample(scores: Tensor, layout: Layout) -> Tensor:
    """[V, N] bool: the n outliers of N tokens, and every (N // 3n)-th token from the first on, at most every second.

    The last token is never sampled, as in PruMerge+'s code, which samples up to 575 of 576.
    """
    outliers = outlier_tokens(scores, layout)
    count = layout.valid.sum(1, keepdim=True)
    step = (count // (3 * outliers.sum(1, keepdim=True)).clamp(min=1)).clamp(min=2)
    nth = layout.valid.cumsum(1) - 1
    return outliers | (layout.valid & (nth % step == 0) & (nth < count - 1))


@dataclass(frozen=True)
class OutliersAndSample(Allocator):
    """Adaptive: the number of tokens that PruMerge+ keeps, outliers and an even sample; a budget is split by it."""

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        count = outliers_and_sample(scores, evidence.layout).sum(1).cpu()
        return count if budget is None else apportion(budget, count, evidence.layout)


@dataclass(frozen=True)
class TopAndSample(Selector):
    """Outliers and an even sample if they match the quota; else the fraction `top` of it by score, the rest evenly."""

    top: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.top <= 1:
            raise ValueError(f"top is the fraction of the quota chosen by score and must lie in [0, 1], got {self.top}")

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        valid = evidence.layout.valid
        adaptive = outliers_and_sample(scores, evidence.layout)
        best = highest(scores, (quota * self.top).ceil().long()) & valid
        rest = valid & ~best
        quota = quota.to(scores.device)[:, None]
        remaining = quota - best.sum(1, keepdim=True)
        candidates = rest.sum(1, keepdim=True).clamp(min=1)
        nth = rest.cumsum(1)
        sample = rest & (nth * remaining // candidates > (nth - 1) * remaining // candidates)
        return torch.where(adaptive.sum(1, keepdim=True) == quota, adaptive, best | sample)
