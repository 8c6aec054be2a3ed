"""VScan (arXiv 2505.22654): prunes by shallow and deep encoder attention, then inside the LLM by text attention."""

from dataclasses import KW_ONLY, dataclass, replace
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
    """The budget of the second half of a model whose first half keeps 1.5 times `tokens`, so that `tokens` is the mean.

    If a sample has fewer than 1.5 times `tokens` tokens, the second half makes up for the difference.
    """

    def total(self, layout: Layout) -> Tensor:
        early = Budget(round(1.5 * (self.tokens or 0)), per=self.per).total(layout)
        return (2 * super().total(layout) - early).clamp(min=1).minimum(early)


@dataclass(frozen=True)
class VScan(Method):
    """VScan (arXiv 2505.22654): shallow and deep attention of the encoder, then text attention inside the LLM.

    The first stage is VScanEncoder. Before layer `layer` of the language model the second stage keeps the tokens that
    the prompt's last token attends to most, by the weights of that layer, as in PyramidDrop. The budget is the mean
    over the layers of a model whose middle is `layer`: 1.5 times the budget stays before it, half of the budget after
    it. So 64 becomes 96 and 32, and 11.1 % becomes 16.7 % and 5.6 %. Numbers are rounded half to even. If 1.5 times the
    budget exceeds all tokens, the second stage makes up for the difference.

    Deviations: the authors' code for LLaVA renumbers positions in both stages ("compact"). Here positions are
    "original", which works with every backbone, as in their code for Qwen2.5-VL. That code ranks before layer 14, by
    queries and keys without rotary positions (here with them), and uses the options that VScanEncoder lists.
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
    _: KW_ONLY
    share: float = 0.5
    shallow: int = 5
    query: ClsProxy = "cls"
    each: Literal["floor", "ceil"] = "floor"
    positions: Positions = "original"

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        if budget is None:
            raise ValueError("VScan shares out a budget, the mean over the layers of the model: give tokens or ratio")
        if (ratio := budget.ratio) is not None:
            early = replace(budget, ratio=min(1.5 * ratio, 1))
            late = replace(budget, ratio=max(ratio / 2, 2 * ratio - 1))
        else:
            early = replace(budget, tokens=round(1.5 * (budget.tokens or 0)))
            late = SecondHalf(budget.tokens, per=budget.per)
        encoder = VScanEncoder(self.window, self.share, layer=self.shallow, query=self.query, each=self.each)
        inner = Pipeline((TextAttention(self.layer),), Mean(), Even(), TopK(), across="sample")
        return (
            Stage("projector", encoder, early, positions=self.positions),
            Stage(f"llm:{self.layer}", inner, late, positions=self.positions),
        )


@dataclass(frozen=True)
class VScanEncoder(Method):
    """First stage of VScan (arXiv 2505.22654): half by shallow attention in windows, half by deep attention.

    Every dropped token is averaged into its most similar kept token. The second stage, inside the language model, is
    not part of this class (see VScan). Deviation: the authors' code leaves the part of a budget unused that the windows
    do not divide; here deep attention selects these tokens. Their code for Qwen2.5-VL uses window=4, layer=0,
    query="received", each="ceil" (see LocalGlobal).
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
    _: KW_ONLY
    layer: int = 5
    query: ClsProxy = "cls"
    each: Literal["floor", "ceil"] = "floor"

    def pipeline(self) -> Pipeline:
        selector = LocalGlobal(self.window, self.share, layer=self.layer, query=self.query, each=self.each)
        return Pipeline((ClsAttention(1, self.query),), Mean(), Even(), selector, Nearest())
