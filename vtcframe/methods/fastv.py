"""FastV (arXiv 2403.06764): one stage in the language model that ranks visual tokens by its attention."""

from dataclasses import dataclass

from vtcframe.components.scorers import TextAttention
from vtcframe.core.method import MethodCard
from vtcframe.core.pipeline import Pipeline
from vtcframe.methods._base import SingleLlmStage


@dataclass(frozen=True)
class FastV(SingleLlmStage):
    """FastV (arXiv 2403.06764): before layer `layer`, keeps the tokens that the prompt's last token attends to most.

    The attention is that of the layer before, mean over heads. All visual tokens of a sample are ranked together, and
    text stays. The budget is the number of tokens in that layer and all later ones: the paper's K=2, R=50 % is layer=2
    and ratio=0.5. Tokens keep their positions, and earlier layers keep all tokens in their KV caches.

    The authors' repository has five variants. This class follows the transformers fork for LLaVA, whose
    round(N (1 - R)) is the number of tokens for a ratio. "In place" takes a number of tokens. The variant for lmms-eval
    rounds down and runs the layer before `layer` twice, with its keys twice in the cache. "Mask" hides tokens instead
    of dropping them and ranks them again for every generated token. The last variant passes one layer's cache to all
    later layers. All variants rank by sample 0 of a batch.
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
