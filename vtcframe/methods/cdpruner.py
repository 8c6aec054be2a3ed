"""CDPruner (arXiv 2506.10967): tokens chosen by a determinantal point process conditioned on the question."""

from dataclasses import dataclass

from vtcframe.components.allocators import Even
from vtcframe.components.diverse_selectors import Dpp
from vtcframe.components.ensemblers import Weighted
from vtcframe.components.scorers import QuestionSimilarity
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.pipeline import Pipeline


@dataclass(frozen=True)
class CdPruner(Method):
    """CDPruner (arXiv 2506.10967): diverse tokens by a determinantal point process, weighted by the question.

    As in the authors' code, a token weighs the more the *less* similar CLIP finds it to the question. Relevance is
    scaled over the views of a sample, where the code scales over its batch. Each view gets the same number of tokens.
    `model` selects the model whose similarity is used (see Similarity).
    """

    card = MethodCard(
        paper="arXiv 2506.10967",
        signal="dissimilarity to the question",
        selector="DPP, greedy",
        dropped="discarded",
        parity="exact",
        text=True,
    )
    model: str = "clip"

    def pipeline(self) -> Pipeline:
        return Pipeline((QuestionSimilarity(self.model),), Weighted((-1.0,)), Even(), Dpp())
