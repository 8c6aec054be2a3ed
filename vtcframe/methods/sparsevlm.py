"""SparseVLM (arXiv 2410.04417): text tokens similar to the picture rate visual tokens in three layers of the LLM."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor

from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean
from vtcframe.components.mergers import compact
from vtcframe.components.scorers import mean_of_top_heads
from vtcframe.components.selectors import TopK
from vtcframe.core.budget import Budget
from vtcframe.core.evidence import Evidence
from vtcframe.core.kernel_call import KernelCall
from vtcframe.core.layout import Layout
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.need_bases import AttentionNeed, Need, Preparation
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Positions, Pruner, Stage
from vtcframe.core.text_readers import PromptTokens, query_starts, text_rows
from vtcframe.core.verbs import Merger, Scorer
from vtcframe.ops.clustering import density_peaks
from vtcframe.ops.gather import gather_tokens, highest, kept_places, real_tokens
from vtcframe.ops.similarity import group_sums

PICTURE_TOKENS = 576  # tokens of the pictures for which numbers are published
STAGE_TOKENS = {  # version -> budget -> the published number of tokens that each stage keeps
    1.5: {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    2: {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}


@dataclass(frozen=True)
class RaterAttention(AttentionNeed):
    """Attention from text raters to each token in a layer of the language model: mean over the raters.

    SparseVLM (arXiv 2410.04417): raters are the text tokens after the picture whose embeddings are most similar to it
    at entry to the language model (see `rate_text`). If no text token qualifies, the prompt's last token is the rater.
    `layers` and `divide_by_rope_prior` are those of AttentionRows; `heads="mean"` averages the heads first.
    """

    layers: tuple[int, ...]
    heads: Literal["split", "mean"] = "split"
    _: KW_ONLY
    divide_by_rope_prior: bool = False
    tower = "llm"

    @property
    def preparation(self) -> Preparation | None:
        """The raters of the prompts: [P, L] bool."""
        return find_raters

    def read_llm(self, call: KernelCall, prompts: PromptTokens) -> Tensor:
        """[P, H, L] float32, or [P, 1, L] with heads="mean"."""
        return text_rows(
            call,
            prompts,
            query_starts("text", prompts, call.query.shape[2]),
            heads=self.heads,
            divide_by_rope_prior=self.divide_by_rope_prior,
            is_query=prompts.prepared,
        )


def find_raters(embeddings: Tensor, prompts: PromptTokens) -> Tensor:
    """[P, L] bool: the slots of the text raters, from the embeddings [P, L, D] that enter the language model."""
    device, length = embeddings.device, embeddings.shape[1]
    candidate = prompts.candidate
    text_count = length - prompts.text_start
    count = candidate.sum(1)
    index = (~candidate).long().argsort(dim=1, stable=True)[:, : int(count.max())]
    is_visual = torch.arange(index.shape[1]) < count[:, None]
    visual = embeddings.gather(1, index.to(device)[..., None].expand(-1, -1, embeddings.shape[2]))
    width = max(1, int(text_count.max()))
    is_text = torch.arange(length - width, length) >= prompts.text_start[:, None]
    raters = rate_text(visual, is_visual.to(device), embeddings[:, -width:], is_text.to(device))
    raters[:, -1] |= ~raters.any(1)  # if no text token qualifies, the last token is the rater
    return torch.nn.functional.pad(raters, (length - width, 0))


def rate_text(visual: Tensor, is_visual: Tensor, text: Tensor, is_text: Tensor) -> Tensor:
    """[P, T] bool: the text tokens that serve as raters in SparseVLM (arXiv 2410.04417).

    `visual` [P, N, D] and `text` [P, T, D] are embeddings at entry to the language model; `is_visual` [P, N] and
    `is_text` [P, T] are bool masks. The inner products of a visual token with all text tokens go through a softmax over
    the text; the results are averaged over the visual tokens. Text tokens above the mean over the text are raters.
    """
    similarity = visual.float() @ text.float().transpose(1, 2)  # [P, N, T]
    similarity = similarity.masked_fill(~is_text[:, None], -torch.inf).softmax(-1).nan_to_num(0)
    share = similarity.masked_fill(~is_visual[..., None], 0).sum(1) / is_visual.sum(1).clamp(min=1)[:, None]
    mean = share.masked_fill(~is_text, 0).sum(1) / is_text.sum(1).clamp(min=1)
    return is_text & (share > mean[:, None])


@dataclass(frozen=True)
class TextRaters(Scorer):
    """[1, V, N]: the RaterAttention of each token in a layer of the language model.

    `layer` counts as in TextAttention. `heads` is "mean", the average over all heads, or the number of heads to
    average, those with the most attention to a sample's visual tokens (SparseVLM 2). `divide_by_rope_prior` divides by
    the attention that an all-ones query and key would get from RoPE alone.
    """

    layer: int = -1
    heads: Literal["mean"] | int = "mean"
    _: KW_ONLY
    divide_by_rope_prior: bool = False

    def __post_init__(self) -> None:
        is_count = isinstance(self.heads, int) and not isinstance(self.heads, bool) and self.heads >= 1
        if self.heads != "mean" and not is_count:
            raise ValueError(f"heads must be 'mean' or a number of heads, got {self.heads!r}")

    @property
    def needs(self) -> tuple[Need, ...]:
        heads = "mean" if self.heads == "mean" else "split"
        return (RaterAttention((self.layer,), heads, divide_by_rope_prior=self.divide_by_rope_prior),)

    def __call__(self, evidence: Evidence) -> Tensor:
        weights = evidence[self.needs[0]]  # [1, V, H, N]
        if self.heads == "mean":
            return weights.mean(2)
        if self.heads > weights.shape[2]:
            raise ValueError(f"{self}: the layer has {weights.shape[2]} heads")
        return mean_of_top_heads(weights, self.heads, evidence.layout)


@dataclass(frozen=True)
class Recycle(Merger):
    """Merges the best of the dropped tokens in clusters: SparseVLM (arXiv 2410.04417).

    Of d dropped tokens, the m = int(share d) + 1 with the highest scores are clustered around int(m / 10) + 1 density
    peaks, and each cluster becomes its mean (in the authors' code 1e-6 shorter). The density is computed over as many
    neighbours as there are clusters. The code adds noise of up to 1e-6 to the density; here there is none. The new
    tokens come after the kept tokens, the highest peak first, in the places of the row's last dropped tokens.
    """

    share: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is the fraction that is recycled and must lie in 0..1, got {self.share}")

    def clustered_count(self, dropped: Tensor) -> Tensor:
        """Return the number of tokens that are clustered, by the number of dropped tokens."""
        return ((dropped.double() * self.share).long() + 1).minimum(dropped)

    def cluster_count(self, dropped: Tensor) -> Tensor:
        """Return the number of clusters, each of them a new token, by the number of dropped tokens."""
        return (self.clustered_count(dropped) // 10 + 1).minimum(dropped)

    def slots(self, quota: Tensor, layout: Layout) -> Tensor:
        return self.cluster_count(layout.count - quota).minimum(quota)

    def __call__(self, kept: Tensor, slots: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
        place = kept_places(kept)
        parts = [(gather_tokens(evidence.tokens, place), place)]
        if slots.any():
            dropped = evidence.layout.valid & ~kept
            tokens = real_tokens(evidence.tokens, evidence.layout)
            slot_count = slots.to(kept.device)[:, None]
            clustered = self.clustered_count(dropped.sum(1)).maximum(slot_count[:, 0])
            pool = kept_places(highest(scores.masked_fill(~dropped, -torch.inf), clustered))
            clusters = self._cluster_means(gather_tokens(tokens, pool), pool >= 0, slots).to(evidence.tokens.dtype)
            later = dropped.sum(1, keepdim=True) - dropped.cumsum(1)  # dropped tokens after each
            parts.append((clusters, kept_places(dropped & (later < slot_count))))
        return compact(parts, scores, evidence.layout)

    def _cluster_means(self, x: Tensor, among: Tensor, count: Tensor) -> Tensor:
        """Tokens [V, M, D], `among` [V, M] bool, count [V] -> [V, C, D] the means around each row's highest peaks.

        Clusters come in the order of their peaks. Every token joins the nearest peak.
        """
        with torch.autocast(x.device.type, enabled=False):
            score, away = density_peaks(x, among, count)
        centre = kept_places(highest(score, count), score)
        away.diagonal(dim1=1, dim2=2).fill_(-1)  # a peak joins itself, even if other tokens lie at the same point
        target = gather_tokens(away, centre).masked_fill((centre < 0)[..., None], torch.inf).argmin(1)
        total, joined = group_sums(x, target, among, centre.shape[1])
        return total / joined.clamp(min=1)


@dataclass(frozen=True)
class PlusRecycled(Pruner):
    """Runs a pipeline and adds a merger's clusters of the dropped tokens on top of the budget, as SparseVLM counts."""

    pipeline: Pipeline
    merger: Recycle

    @property
    def needs(self) -> tuple[Need, ...]:
        return self.pipeline.needs

    @torch.no_grad()
    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        pruned = self.pipeline(evidence, budget)
        slots = self.merger.cluster_count(pruned.layout.count - (pruned.place >= 0).sum(1).cpu())
        rows = evidence.join_views() if self.pipeline.across == "sample" else evidence
        return self.merger(pruned.kept, slots, pruned.scores, rows)


@dataclass(frozen=True)
class SparseVlm(Method):
    """SparseVLM (arXiv 2410.04417): before each of three layers, drops the visual tokens that raters attend to least.

    Raters are the text tokens after the picture that are most similar to it (see RaterAttention). Their attention in
    the layer before is averaged over heads and raters. Version 1.5 merges the best of the dropped tokens in clusters
    (see Recycle; `recycle` is its share, 0 disables it); these come on top of the budget and after the kept tokens. The
    authors renumber positions at every stage, positions="compact". Version 2 (SparseVLM+) merges nothing, averages only
    the `heads` heads with the most attention to the picture, and divides by the attention that RoPE alone would give.

    Budgets are those with published numbers: 192, 128, 96 and 64 tokens, for pictures of 576 tokens, or the ratios 1/3,
    2/9, 1/6 and 1/9, which scale these numbers to each sample's original number of tokens (rounded half to even). A
    budget is the authors' average over 32 layers. At 192, version 1.5 keeps 300, 200, then 110 tokens, or 309, 204 and
    113 with the recycled tokens; the actual average over the layers is 206.5 (145 at 128, 82 at 64).

    All pictures of a sample are ranked together. Deviation: a stage does not change a sample that has no more tokens
    than the stage keeps; the code would drop one token. "After layer 2, 6, 15" in the code corresponds to `layers` 3,
    7, 16 here.
    """

    card = MethodCard(
        paper="arXiv 2410.04417",
        signal="attention of text tokens similar to the picture",
        selector="top-k in three layers",
        dropped="discarded; in version 1.5 the best are clustered and come last",
        parity="within 2e-5; differs: no noise on densities; a stage with nothing to drop drops nothing",
        site="llm",
        text=True,
    )
    layers: tuple[int, ...] = (3, 7, 16)
    version: float = 1.5
    _: KW_ONLY
    recycle: float = 0.3
    heads: int = 14
    positions: Positions = "original"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))  # YAML gives lists
        if len(self.layers) != 3:
            raise ValueError(f"layers must be three, one for each published number, got {self.layers}")
        if self.version not in STAGE_TOKENS:
            raise ValueError(f"version must be one of {', '.join(map(str, STAGE_TOKENS))}, got {self.version!r}")
        Recycle(self.recycle)  # raises for an invalid share
        TextRaters(heads=self.heads)  # raises for an invalid number of heads

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        is_first = self.version == 1.5
        raters = TextRaters(heads="mean" if is_first else self.heads, divide_by_rope_prior=not is_first)
        pruner: Pruner = Pipeline((raters,), Mean(), Even(), TopK(), across="sample")
        if is_first and self.recycle:
            pruner = PlusRecycled(pruner, Recycle(self.recycle))
        return tuple(
            Stage(f"llm:{layer}", pruner, stage_budget, positions=self.positions)
            for layer, stage_budget in zip(self.layers, self._stage_budgets(budget), strict=True)
        )

    def _stage_budgets(self, budget: Budget | None) -> list[Budget]:
        """Return the budget of each stage. ValueError for a budget without published numbers."""
        published = STAGE_TOKENS[self.version]
        tokens = None
        if budget is not None and budget.ratio is not None:
            tokens = round(budget.ratio * PICTURE_TOKENS)
        elif budget is not None and budget.per == "sample":
            tokens = budget.tokens
        if budget is None or tokens not in published:
            choices = ", ".join(f"{tokens} (ratio {tokens / PICTURE_TOKENS:.3f})" for tokens in published)
            raise ValueError(f"SparseVlm has published numbers only for {choices} tokens in a sample, got {budget}")
        return [
            Budget(count) if budget.ratio is None else Budget(ratio=count / PICTURE_TOKENS)
            for count in published[tokens]
        ]
