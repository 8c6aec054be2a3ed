"""TODO: vtcframe/methods/cdpruner.py."""

from dataclasses import dataclass

from vtcframe.components.allocators import Even
from vtcframe.components.diverse_selectors import Dpp
from vtcframe.components.ensemblers import Weighted
from vtcframe.components.scorers import QuestionSimilarity
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.pipeline import Pipeline


@dataclass(frozen=True)
class CdPruner(Method):
    """CDPruner (arXiv 2506.10967): diverse tokens by a determinantal point process, weighed by the question.

    A token weighs the more the *less* CLIP finds it like the question, as in the authors' code. Relevance is scaled
    over the views of a sample, where the code scales over its batch; each view gets the same number of tokens. `model`
    says whose similarity is read (see Similarity).
    """

    card = MethodCard(
        paper="arXiv 2506.10967",
        signal="dissimilarity to the question",
        selector="DPP, greedy",
        dropped="gone",
        parity="exact",
        text=True,
    )
    model: str = "clip"

    def pipeline(self) -> Pipeline:
        return Pipeline((QuestionSimilarity(self.model),), Weighted((-1.0,)), Even(), Dpp())
