"""DART: what repeats the pivots goes, without a look at any attention."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean
from vtcframe.components.scorers import KeyNorm
from vtcframe.core.budget import Budget
from vtcframe.core.evidence import Evidence
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.needs import AttentionKeys, HiddenStates, Need, TextTokens
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.stages import Stage
from vtcframe.core.verbs import Selector
from vtcframe.ops.gather import gather_tokens, highest, kept_places
from vtcframe.ops.similarity import unit_vectors

KEYS, STATES = AttentionKeys((-1,), "llm"), HiddenStates(-1, "llm")  # of the layer before the stage


@dataclass(frozen=True)
class PivotDissimilarity(Selector):
    """The highest scores, and of the others those least like them or like text: DART (arXiv 2502.11494).

    Pivots are the `image_pivots` highest scores, which stay, and the `text_pivots` tokens of text behind the pictures
    whose keys are longest (L1, all heads). Each pivot in turn takes those of what is left that have the lowest cosine
    to it, of the hidden states before the stage behind the model's last norm; of equals the first. They choose in
    falling order of scores, then of the text's keys, and share the rest of the quota evenly, the first take one more.
    A quota below `image_pivots` is theirs alone; where there is less text, its share goes to the others. For a stage at
    "llm:K", and rows that are samples, as DART has it.
    """

    image_pivots: int = 4
    text_pivots: int = 4

    def __post_init__(self) -> None:
        if self.image_pivots < 1 or self.text_pivots < 0:
            raise ValueError(
                "image_pivots must be at least 1 and text_pivots at least 0, "
                f"got {self.image_pivots} and {self.text_pivots}"
            )

    @property
    def needs(self) -> tuple[Need, ...]:
        return STATES, TextTokens(KEYS), TextTokens(STATES)

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        kept, pivots, there = self.pivots(scores, quota, evidence)
        return self.around(kept, pivots, there, quota, evidence)

    def pivots(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor, Tensor]:
        """Return which tokens are pivots [V, N], and of all pivots, as they choose, states [V, K, C] and where [V, K].

        Rows with fewer than K pivots have some that are not there.
        """
        own = highest(scores, quota.clamp(max=self.image_pivots))
        image = kept_places(own, scores)
        sample = evidence.layout.sample.to(scores.device)
        length = evidence[TextTokens(KEYS)].float().abs().sum(2)[sample]
        said = ~length.isnan()
        length = length.masked_fill(~said, -torch.inf)
        text = kept_places(highest(length, said.sum(1).clamp(max=self.text_pivots)), length)
        states = gather_tokens(evidence[STATES], image), gather_tokens(evidence[TextTokens(STATES)][sample], text)
        return own, torch.cat(states, 1), torch.cat([image, text], 1) >= 0

    def around(self, kept: Tensor, pivots: Tensor, there: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        """Kept [V, N], pivots [V, K, C] that are there [V, K] -> [V, N]: what they choose too, up to the quota."""
        rest, chooser = quota.to(kept.device)[:, None] - kept.sum(1, keepdim=True), there.cumsum(1) - 1
        choosers = there.sum(1, keepdim=True).clamp(min=1)
        share = (rest // choosers + (chooser < rest % choosers)).masked_fill(~there, 0)
        valid = evidence.layout.valid
        with torch.autocast(kept.device.type, enabled=False):
            unlike = -unit_vectors(evidence[STATES], valid) @ unit_vectors(pivots, there).mT
        for k in range(pivots.shape[1]):
            kept = kept | highest(unlike[..., k].masked_fill(kept | ~valid, -torch.inf), share[:, k])
        return kept


@dataclass(frozen=True)
class Dart(Method):
    """DART (arXiv 2502.11494): a few pivots, and the tokens that are least like them, before layer 2 of the LLM.

    Visual and textual pivots are the tokens with the longest keys in the layer before; see PivotDissimilarity. All visual tokens
    of a sample are judged together, text stays, positions are kept. Deviations from the authors' code: a budget is met
    exactly, where theirs rounds the number that each pivot takes (132 tokens for "128" in LLaVA); their pivots choose
    in the order of a Python set, ours by the length of their keys, visual ones first; batches work.
    """

    card = MethodCard(
        paper="arXiv 2502.11494",
        signal="length of the LLM's keys, cosine of its states",
        selector="least like the pivots",
        dropped="gone",
        parity="exact, given the order of the pivots; differs: that order, and budgets are met exactly",
        site="llm",
        text=True,
    )
    layer: int = 2
    image_pivots: int = 4
    text_pivots: int = 4

    def pipeline(self) -> Pipeline:
        selector = PivotDissimilarity(self.image_pivots, self.text_pivots)
        return Pipeline((KeyNorm(tower="llm"),), Mean(), Even(), selector, across="sample")

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        if budget is None:
            raise ValueError("Dart fills a budget with what is least like its pivots: give tokens or ratio")
        return (Stage(f"llm:{self.layer}", self, budget),)
