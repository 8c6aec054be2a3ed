"""PyramidDrop (arXiv 2410.17247): tokens are dropped in several layers of the language model."""

from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean
from vtcframe.components.scorers import TextAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.budget import Budget
from vtcframe.core.evidence import Evidence
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.stages import Positions, Stage
from vtcframe.core.verbs import Allocator
from vtcframe.methods._base import check_layers


@dataclass(frozen=True)
class PyramidDrop(Method):
    """PyramidDrop (arXiv 2410.17247): before each of `layers`, keeps the tokens that the last token attends to most.

    The attention is that of the next layer, mean over heads. Without a budget, `ratios` are the fractions of the
    original number of tokens that stay after each stage, rounded down, at least one token. A budget is the number of
    tokens after the last stage. Earlier stages approach it by equal ratios, rounded down, so that ratio=0.125 gives the
    published numbers if they are integers. Layers 8, 16 and 24 are for models of 32 layers.

    Deviations from the authors' code: the code renumbers the remaining tokens at every stage, which is
    positions="compact" and impossible for models with M-RoPE. It fails for grouped-query attention, and it treats all
    pictures of a prompt as the first one.
    """

    card = MethodCard(
        paper="arXiv 2410.17247",
        signal="attention of the prompt's last token in the next layer",
        selector="top-k at several layers",
        dropped="discarded",
        parity="exact; whole model within 2e-4",
        site="llm",
        text=True,
    )
    layers: tuple[int, ...] = (8, 16, 24)
    ratios: tuple[float, ...] = (0.5, 0.25, 0.125)  # of the original number of tokens, one for each layer
    _: KW_ONLY
    positions: Positions = "original"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", check_layers(self.layers))
        object.__setattr__(self, "ratios", tuple(self.ratios))
        if any(not 0 < ratio <= 1 for ratio in self.ratios) or list(self.ratios) != sorted(self.ratios, reverse=True):
            raise ValueError(
                f"ratios are the fractions of the tokens kept, each in (0, 1], and must not rise: got {self.ratios}"
            )

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        if budget is None and len(self.ratios) != len(self.layers):
            raise ValueError(
                f"{len(self.ratios)} ratios for {len(self.layers)} layers: give one for each layer, or a budget"
            )
        ratios = self.ratios if budget is None else [1.0] * len(self.layers)
        schedules = [GeometricSchedule(ratio, step=i + 1, steps=len(self.layers)) for i, ratio in enumerate(ratios)]
        return tuple(
            Stage(
                f"llm:{layer}",
                Pipeline((TextAttention(layer),), Mean(), schedule, TopK(), across="sample"),
                budget,
                positions=self.positions,
            )
            for layer, schedule in zip(self.layers, schedules, strict=True)
        )


@dataclass(frozen=True)
class GeometricSchedule(Allocator):
    """Keeps the fraction `ratio` of each sample's original tokens; with a budget, step `step` of `steps` towards it.

    The steps towards a budget have equal ratios. Numbers are rounded down, are at least 1 and never exceed the
    remaining tokens. The views of a sample share its number evenly.
    """

    ratio: float
    _: KW_ONLY
    step: int = 1
    steps: int = 1

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        untouched = layout.untouched.double()
        if budget is None:
            total = (untouched * self.ratio).long().clamp(min=1)
        else:
            ratio = (budget / untouched.clamp(min=1)) ** (self.step / self.steps)
            total = (
                (untouched * ratio + 1e-6).long().maximum(budget)
            )  # 32 * (1 / 32) ** 0.4 is slightly below 8 in float64
        return Even()(scores, total.minimum(layout.total(layout.count)), evidence)
