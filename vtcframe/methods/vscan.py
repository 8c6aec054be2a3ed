"""VScan (arXiv 2505.22654): shallow and deep attention of the encoder, then attention of the last text token."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean
from vtcframe.components.mergers import Nearest
from vtcframe.components.scorers import ClsAttention, TextAttention
from vtcframe.components.selectors import LocalGlobal, TopK
from vtcframe.core.budget import Budget
from vtcframe.core.layout import Layout
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.needs import ClsProxy
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.stages import Positions, Stage


@dataclass(frozen=True)
class SecondHalf(Budget):
    """What makes `tokens` the mean of a model whose first half reads half as many again, or all there are."""

    def total(self, layout: Layout) -> Tensor:
        early = Budget(round(1.5 * (self.tokens or 0)), per=self.per).total(layout)
        return (2 * super().total(layout) - early).clamp(min=1).minimum(early)


@dataclass(frozen=True)
class VScan(Method):
    """VScan (arXiv 2505.22654): shallow and deep attention of the encoder, then the last text token's, amidst the LLM.

    VScanEncoder before the language model, and before its layer `layer` the tokens to which the last one of the prompt
    pays most, by that layer's own weights, as PyramidDrop does. A budget is the mean over a model of which `layer` is
    the middle: three halves of it stay before, half of it behind. So 64 is 96 and 32, 11.1 % is 16.7 % and 5.6 %;
    halves of a token go to even, and where three halves are more than all, that is made up for behind.

    Its code for LLaVA numbers positions anew in both stages; that is "compact". Here they are "original", which works
    with every backbone, as in its code for Qwen2.5-VL, which ranks before layer 14, by queries and keys without their
    rotary positions (ours have them), and takes the options that VScanEncoder names.
    """

    card = MethodCard(
        paper="arXiv 2505.22654",
        signal="[CLS] attention, then the last text token's",
        selector="top-k in windows, then of all, then again",
        dropped="averaged in, then discarded",
        parity="exact before the LLM; inside it as PyramidDrop",
        site="projector, llm",
        text=True,
    )
    layer: int = 16
    window: int = 6
    share: float = 0.5
    shallow: int = 5
    query: ClsProxy = "cls"
    each: Literal["floor", "ceil"] = "floor"
    positions: Positions = "original"

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        if budget is None:
            raise ValueError("VScan shares out a budget, the mean over the model's layers: give tokens or ratio")
        if (ratio := budget.ratio) is not None:
            early, late = (replace(budget, ratio=x) for x in (min(1.5 * ratio, 1), max(ratio / 2, 2 * ratio - 1)))
        else:
            early, late = (
                replace(budget, tokens=round(1.5 * (budget.tokens or 0))),
                SecondHalf(budget.tokens, per=budget.per),
            )
        encoder = VScanEncoder(self.window, self.share, self.shallow, self.query, self.each)
        ranked = Pipeline((TextAttention(self.layer),), Mean(), Even(), TopK(), across="sample")
        return (
            Stage("projector", encoder, early, positions=self.positions),
            Stage(f"llm:{self.layer}", ranked, late, positions=self.positions),
        )


@dataclass(frozen=True)
class VScanEncoder(Method):
    """First stage of VScan (arXiv 2505.22654): half by shallow attention in windows, half by deep attention.

    Every dropped token is averaged into the kept one that is most like it. The second stage, inside the language model,
    is not part of it. Its code leaves part of a budget unused that windows do not divide (here it goes by deep
    attention), and for Qwen2.5-VL takes window=4, layer=0, query="received", each="ceil" (see LocalGlobal).
    """

    card = MethodCard(
        paper="arXiv 2505.22654",
        signal="[CLS] attention, shallow and deep",
        selector="top-k in windows, then of all",
        dropped="averaged in",
        parity="exact",
    )
    window: int = 6
    share: float = 0.5
    layer: int = 5
    query: ClsProxy = "cls"
    each: Literal["floor", "ceil"] = "floor"

    def pipeline(self) -> Pipeline:
        selector = LocalGlobal(self.window, self.share, layer=self.layer, query=self.query, each=self.each)
        return Pipeline((ClsAttention(1, self.query),), Mean(), Even(), selector, Nearest())
