"""PyramidDrop (arXiv 2410.17247): tokens are dropped in several layers of the language model."""

from dataclasses import dataclass

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
    """PyramidDrop (arXiv 2410.17247): before each of `layers` those stay that the last token is about to attend to.

    Attention of the layer that comes next, mean over heads. Without a budget `ratios` of the untouched count stay,
    rounded down, one at least. A budget is what is left in the end; the stages before come down to it by equal ratios,
    rounded down, so that ratio=0.125 gives the published counts where they are whole. Layers 8, 16 and 24 are those of
    32.

    The authors' code numbers the tokens left anew at every stage, positions="compact", which models with M-RoPE cannot
    have. It fails for grouped queries, and takes all pictures of a prompt for its first one.
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
    ratios: tuple[float, ...] = (0.5, 0.25, 0.125)  # of the untouched count, one a layer
    positions: Positions = "original"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", check_layers(self.layers))
        object.__setattr__(self, "ratios", tuple(self.ratios))
        if any(not 0 < ratio <= 1 for ratio in self.ratios) or list(self.ratios) != sorted(self.ratios, reverse=True):
            raise ValueError(
                f"ratios are fractions kept of the untouched count, (0, 1], none rising: got {self.ratios}"
            )

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        if budget is None and len(self.ratios) != len(self.layers):
            raise ValueError(f"{len(self.ratios)} ratios for {len(self.layers)} layers: give one a layer, or a budget")
        ratios = self.ratios if budget is None else [1.0] * len(self.layers)
        steps = [GeometricSchedule(ratio, i + 1, len(self.layers)) for i, ratio in enumerate(ratios)]
        return tuple(
            Stage(
                f"llm:{layer}",
                Pipeline((TextAttention(layer),), Mean(), step, TopK(), across="sample"),
                budget,
                positions=self.positions,
            )
            for layer, step in zip(self.layers, steps, strict=True)
        )


@dataclass(frozen=True)
class GeometricSchedule(Allocator):
    """The part `ratio` of each sample's untouched count; with a budget, the `step`-th of `steps` equal ratios to it.

    Rounded down; one token at least, and never more than are left. Shared evenly by the views of a sample.
    """

    ratio: float
    step: int = 1
    steps: int = 1

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        untouched = layout.untouched.double()
        if budget is None:
            want = (untouched * self.ratio).long().clamp(min=1)
        else:
            way = (budget / untouched.clamp(min=1)) ** (self.step / self.steps)
            want = (untouched * way + 1e-6).long().maximum(budget)  # 32 * (1 / 32) ** 0.4 comes out just below 8
        return Even()(scores, want.minimum(layout.total(layout.count)), evidence)
