"""EViT (arXiv 2202.07800): three encoder blocks keep the tokens that [CLS] attends to most and fuse the others."""

from dataclasses import KW_ONLY, dataclass
from math import ceil

import torch
from torch import Tensor

from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean
from vtcframe.components.mergers import Fuse
from vtcframe.components.scorers import ClsAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.budget import Budget
from vtcframe.core.evidence import Evidence
from vtcframe.core.method import MethodCard
from vtcframe.core.needs import ClsProxy
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.stages import Stage
from vtcframe.core.verbs import Allocator
from vtcframe.methods._base import EncoderMethod


@dataclass(frozen=True)
class KeepRate(Allocator):
    """Keeps the fraction `keep` of each view's tokens, rounded up.

    With a budget, each of the `remaining_stages` stages, this one included, keeps the same fraction, such that the last
    one meets the budget.
    """

    keep: float
    remaining_stages: int = 1

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        count = evidence.layout.count
        if budget is None:
            return torch.tensor([ceil(self.keep * n) for n in count.tolist()], dtype=torch.long)
        final = Even()(scores, budget, evidence)
        if self.remaining_stages == 1:
            return final
        ratio = (final / count.clamp(min=1)).double() ** (1 / self.remaining_stages)
        return (count * ratio).ceil().long().clamp(final, count)


@dataclass(frozen=True, repr=False)
class EVit(EncoderMethod):
    """EViT (arXiv 2202.07800): three blocks keep the tokens that [CLS] attends to most in the same block.

    Each block keeps the fraction `keep` of the patches, rounded up. The dropped tokens become one token, their sum
    weighted by attention (equation 3), which counts as a patch from then on and takes the first free place. With a
    budget each stage keeps the same fraction, such that the last one meets the budget; the fused token counts.

    Blocks 3, 6 and 9 are those of DeiT with 12 blocks; for 24 blocks give (6, 12, 18). The paper fine-tunes its models;
    without fine-tuning, fuse=False is the safer choice. The code orders the patches by score, which an encoder ignores;
    here they stay in raster order. `query` selects a proxy for towers without [CLS]; the paper has no such option.
    """

    card = MethodCard(
        paper="arXiv 2202.07800",
        signal="[CLS] attention of the block",
        selector="top-k",
        dropped="fused, weighted by attention",
        parity="exact",
        site="encoder",
    )
    blocks: tuple[int, ...] = (3, 6, 9)
    keep: float = 0.7
    _: KW_ONLY
    fuse: bool = True
    query: ClsProxy = "cls"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is the fraction of tokens kept and must lie in (0, 1], got {self.keep}")

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        scorers = (ClsAttention(1, self.query),)
        merger = Fuse(mean=False) if self.fuse else None
        steps = [
            Pipeline(scorers, Mean(), KeepRate(self.keep, remaining), TopK(), merger)
            for remaining in self.remaining_stages
        ]
        return self.encoder_stages([*steps], budget)
