"""DART (arXiv 2502.11494): drops tokens that duplicate a few pivots; it reads no attention weights."""

from dataclasses import KW_ONLY, dataclass

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

KEYS = AttentionKeys((-1,), "llm")  # of the layer before the stage
STATES = HiddenStates(-1, "llm")  # of the layer before the stage


@dataclass(frozen=True)
class PivotDissimilarity(Selector):
    """The tokens with the highest scores, and the tokens least similar to them or to text: DART (arXiv 2502.11494).

    Pivots are the `image_pivots` tokens with the highest scores, which stay, and the `text_pivots` tokens of the text
    after the pictures whose keys have the largest L1 norm over all heads. Each pivot in turn selects, among the tokens
    not selected yet, those with the lowest cosine to it. Cosines are between the hidden states before the stage, after
    the model's final norm; ties go to the first token. Image pivots select first, by falling score, then text pivots,
    by falling norm. They share the rest of the quota evenly; the first pivots select one token more. A quota below
    `image_pivots` goes to image pivots only; where there is less text, its share goes to the other pivots. For a stage
    at "llm:K" and rows that are samples, as in DART.
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
        kept, pivots, is_pivot = self.find_pivots(scores, quota, evidence)
        return self.select_around(kept, pivots, is_pivot, quota, evidence)

    def find_pivots(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor, Tensor]:
        """Return the image pivots [V, N] bool, and states [V, K, C] and mask [V, K] of all pivots.

        Pivots come in the order in which they select. The mask is False at the padding of rows with fewer than K
        pivots.
        """
        kept = highest(scores, quota.clamp(max=self.image_pivots))
        image = kept_places(kept, scores)
        sample = evidence.layout.sample.to(scores.device)
        length = evidence[TextTokens(KEYS)].float().abs().sum(2)[sample]
        is_text = ~length.isnan()
        length = length.masked_fill(~is_text, -torch.inf)
        text = kept_places(highest(length, is_text.sum(1).clamp(max=self.text_pivots)), length)
        image_states = gather_tokens(evidence[STATES], image)
        text_states = gather_tokens(evidence[TextTokens(STATES)][sample], text)
        return kept, torch.cat([image_states, text_states], 1), torch.cat([image, text], 1) >= 0

    def select_around(
        self, kept: Tensor, pivots: Tensor, is_pivot: Tensor, quota: Tensor, evidence: Evidence
    ) -> Tensor:
        """Add the tokens that the pivots select to `kept` [V, N], up to the quota [V].

        `pivots` [V, K, C] are hidden states, `is_pivot` [V, K] bool their mask. Returns [V, N] bool.
        """
        rest = quota.to(kept.device)[:, None] - kept.sum(1, keepdim=True)
        pivot_index = is_pivot.cumsum(1) - 1
        pivot_count = is_pivot.sum(1, keepdim=True).clamp(min=1)
        share = (rest // pivot_count + (pivot_index < rest % pivot_count)).masked_fill(~is_pivot, 0)
        valid = evidence.layout.valid
        with torch.autocast(kept.device.type, enabled=False):
            dissimilarity = -unit_vectors(evidence[STATES], valid) @ unit_vectors(pivots, is_pivot).mT
        for k in range(pivots.shape[1]):
            kept = kept | highest(dissimilarity[..., k].masked_fill(kept | ~valid, -torch.inf), share[:, k])
        return kept


@dataclass(frozen=True)
class Dart(Method):
    """DART (arXiv 2502.11494): a few pivots, and the tokens least similar to them, before layer 2 of the LLM.

    Visual and text pivots are the tokens with the longest keys in the layer before (see PivotDissimilarity). All visual
    tokens of a sample are ranked together; text stays, and tokens keep their positions.

    Deviations from the authors' code: a budget is met exactly, where the code rounds the number of tokens per pivot
    (132 tokens for "128" in LLaVA). The code's pivots select in the order of a Python set; here they select by the
    length of their keys, visual pivots first. Batches are supported.
    """

    card = MethodCard(
        paper="arXiv 2502.11494",
        signal="length of the LLM's keys, cosine of its hidden states",
        selector="least similar to the pivots",
        dropped="discarded",
        parity="exact, given the order of the pivots; differs: that order, and budgets are met exactly",
        site="llm",
        text=True,
    )
    layer: int = 2
    _: KW_ONLY
    image_pivots: int = 4
    text_pivots: int = 4

    def pipeline(self) -> Pipeline:
        selector = PivotDissimilarity(self.image_pivots, self.text_pivots)
        return Pipeline((KeyNorm(tower="llm"),), Mean(), Even(), selector, across="sample")

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        if budget is None:
            raise ValueError("Dart fills a budget with the tokens least similar to its pivots: give tokens or ratio")
        return (Stage(f"llm:{self.layer}", self, budget),)
