"""Methods that keep tokens unlike one another, or judge them by the question."""

from dataclasses import dataclass
from typing import Literal

from vtcframe.allocators import Even
from vtcframe.ensemblers import Mean, Weighted
from vtcframe.mergers import Nearest
from vtcframe.needs import Stand
from vtcframe.pipeline import Facts, Method, Pipeline
from vtcframe.scorers import ClsAttention, QuestionSimilarity
from vtcframe.selectors import Deduplicate, Dpp, LocalGlobal, MaxMin, OutliersThenDraw, TopK, WholeRows


@dataclass(frozen=True)
class DivPrune(Method):
    """DivPrune (arXiv 2503.02175): of all tokens of a sample, those farthest apart, greedily.

    Its code takes the newlines of LLaVA-NeXT for candidates; here they stay with their rows.
    """

    facts = Facts("arXiv 2503.02175", "none", "max-min distance of tokens", "gone", "exact")

    def pipeline(self) -> Pipeline:
        return Pipeline((), Mean(), Even(), MaxMin(), across="sample")


@dataclass(frozen=True)
class CdPruner(Method):
    """CDPruner (arXiv 2506.10967): diverse tokens by a determinantal point process, weighed by the question.

    A token weighs the more the *less* CLIP finds it like the question, as in the authors' code. Relevance is scaled
    over the views of a sample, where the code scales over its batch; each view gets the same number of tokens. `model`
    says whose similarity is read (see Similarity).
    """

    facts = Facts("arXiv 2506.10967", "dissimilarity to the question", "DPP, greedy", "gone", "exact", text=True)
    model: str = "clip"

    def pipeline(self) -> Pipeline:
        return Pipeline((QuestionSimilarity(self.model),), Weighted((-1.0,)), Even(), Dpp())


@dataclass(frozen=True)
class VisPruner(Method):
    """VisPruner (arXiv 2412.01818): the most attended by [CLS], then the others without their duplicates.

    The paper counts tokens for each crop: Budget(tokens, per="view"). Its code fails where the others are odd in
    number; see Deduplicate. For towers without [CLS] it takes query="received".
    """

    facts = Facts("arXiv 2412.01818", "[CLS] attention of one block", "top-k, then de-duplication", "gone", "exact")
    important: float = 0.5
    query: Stand = "cls"

    def pipeline(self) -> Pipeline:
        return Pipeline((ClsAttention(1, self.query),), Mean(), Even(), Deduplicate(self.important))


@dataclass(frozen=True)
class VScanEncoder(Method):
    """First stage of VScan (arXiv 2505.22654): half by shallow attention in windows, half by deep attention.

    Every dropped token is averaged into the kept one that is most like it. The second stage, inside the language model,
    is not part of it. Its code leaves part of a budget unused that windows do not divide (here it goes by deep
    attention), and for Qwen2.5-VL takes window=4, layer=0, query="received", each="ceil" (see LocalGlobal).
    """

    facts = Facts(
        "arXiv 2505.22654", "[CLS] attention, shallow and deep", "top-k in windows, then of all", "averaged in", "exact"
    )
    window: int = 6
    share: float = 0.5
    layer: int = 5
    query: Stand = "cls"
    each: Literal["floor", "ceil"] = "floor"

    def pipeline(self) -> Pipeline:
        selector = LocalGlobal(self.window, self.share, self.layer, self.query, self.each)
        return Pipeline((ClsAttention(1, self.query),), Mean(), Even(), selector, Nearest())


@dataclass(frozen=True)
class FoPru(Method):
    """FoPru (arXiv 2411.14164): the most attended in the vision encoder, single tokens ("rank") or whole rows ("row").

    Inspired by the paper, unverified: there is no public code, and block, queries and what becomes of a partial row are
    ours (the last block that feeds the projector, all patches' queries, its best tokens).
    """

    facts = Facts("arXiv 2411.14164", "attention received", "top-k or whole rows", "gone", "no public code")
    keep: Literal["rank", "row"] = "rank"
    query: Stand = "received"

    def __post_init__(self) -> None:
        if self.keep not in ("rank", "row"):
            raise ValueError(f"keep must be 'rank' (single tokens) or 'row' (whole rows), got {self.keep!r}")

    def pipeline(self) -> Pipeline:
        selector = TopK() if self.keep == "rank" else WholeRows()
        return Pipeline((ClsAttention(1, self.query),), Mean(), Even(), selector)


@dataclass(frozen=True)
class TokenCorrelation(Method):
    """Token-level correlation-guided compression (arXiv 2407.14439): outliers of deep [CLS] attention and a draw.

    Inspired by the paper, unverified: there is no public code; what is ours is said in OutliersThenDraw. The paper
    finds the number of tokens by itself; here it is budgeted.
    """

    facts = Facts(
        "arXiv 2407.14439", "[CLS] attention, keys", "outliers, then drawn at random", "gone", "no public code"
    )
    layer: int = 5
    alike: float = 0.9
    seed: int = 0

    def pipeline(self) -> Pipeline:
        return Pipeline((ClsAttention(1),), Mean(), Even(), OutliersThenDraw(self.layer, self.alike, self.seed))


@dataclass(frozen=True)
class DamroOutliers(Method):
    """The outliers of DAMRO (arXiv 2410.04514): most attended by [CLS], all heads read as one of full width.

    The paper decodes in contrast to a picture of these alone (10 of LLaVA's 576); this keeps them, in raster order
    where the code has them by score. The contrast itself is decoding and not part of it.
    """

    facts = Facts("arXiv 2410.04514", "[CLS] attention, heads joined", "top-k", "gone", "exact")

    def pipeline(self) -> Pipeline:
        return Pipeline((ClsAttention(1, heads="joined"),), Mean(), Even(), TopK())
