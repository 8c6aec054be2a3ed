"""Methods inside the language model that judge by its attention: later layers run on fewer visual tokens.

They rank all visual tokens of a sample together. The text stays whole.
"""

from dataclasses import dataclass

from vtcframe.components.scorers import TextAttention
from vtcframe.core.method import MethodCard
from vtcframe.core.pipeline import Pipeline
from vtcframe.methods._base import SingleLlmStage


@dataclass(frozen=True)
class FastV(SingleLlmStage):
    """FastV (arXiv 2403.06764): before layer `layer` those stay that the last token of the prompt attends to most.

    Attention of the layer before it, mean over heads. A budget is what that layer and all later ones see: the paper's
    K=2, R=50 % is layer=2 and ratio=0.5. Tokens keep their positions, and earlier layers keep all in their caches.

    The repository has five variants. This is that of its transformers fork for LLaVA, whose round(N (1 - R)) is what a
    ratio gives. "In place" gives a number of tokens; the one for lmms-eval rounds down and runs the layer before
    `layer` twice, with its keys twice in the cache; "mask" hides tokens instead of dropping them, and ranks anew for
    every token generated; the last one hands one layer's cache to all later ones. All rank by sample 0 of a batch.
    """

    card = MethodCard(
        paper="arXiv 2403.06764",
        signal="attention of the prompt's last token",
        selector="top-k",
        dropped="discarded",
        parity="exact",
        site="llm",
        text=True,
    )
    layer: int = 2

    def pipeline(self) -> Pipeline:
        return self.rank_by(TextAttention(-1))
