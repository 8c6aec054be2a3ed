"""VidCom2 (arXiv 2505.14454): budgets of frames follow their uniqueness."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtcframe.components.allocators import require_budget
from vtcframe.components.ensemblers import Mean
from vtcframe.components.scorers import Uniqueness
from vtcframe.components.selectors import TopK
from vtcframe.core.evidence import Evidence
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.verbs import Allocator
from vtcframe.ops.quotas import apportion


@dataclass(frozen=True)
class ByUniqueness(Allocator):
    """Assigns more tokens to frames that differ from the rest of their video: VidCom2 (arXiv 2505.14454).

    For a budget that is the fraction r of all tokens, a frame keeps the fraction r (1 + p - mean p) of its tokens. p is
    the softmax over a sample's frames of the mean Uniqueness of their tokens in the video divided by `temperature`. The
    authors' code rounds each frame; here the quotas sum to the budget.
    """

    temperature: float = 0.01

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        uniqueness = Uniqueness()(evidence)[0].masked_fill(~layout.valid, 0).sum(1).cpu() / layout.count.clamp(min=1)
        same = layout.sample == layout.sample[:, None]
        share = (uniqueness / self.temperature).expand(same.shape).masked_fill(~same, -torch.inf).softmax(1).diagonal()
        return apportion(require_budget(self, budget), (1 + share - 1 / same.float().sum(1)) * layout.count, layout)


@dataclass(frozen=True)
class VidCom2(Method):
    """VidCom2 (arXiv 2505.14454): keeps tokens unlike the means of video and frame, and more tokens of unlike frames.

    The authors' code disables itself for batches; here the frames of each sample are compared with each other only.
    """

    card = MethodCard(
        paper="arXiv 2505.14454",
        signal="distance to the means of video and frame",
        selector="top-k",
        dropped="discarded",
        parity="exact",
    )

    def pipeline(self) -> Pipeline:
        return Pipeline((Uniqueness(),), Mean(), ByUniqueness(), TopK())
