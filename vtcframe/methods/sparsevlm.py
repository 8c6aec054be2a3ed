"""SparseVLM: the text that is most like the picture rates its tokens, in three layers of the language model."""

from dataclasses import dataclass
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
from vtcframe.ops.density_peaks import density_peaks
from vtcframe.ops.gather import gather_tokens, highest, kept_places, real_tokens
from vtcframe.ops.similarity import group_sums

PICTURE = 576  # tokens of the pictures that the published numbers are for
KEEPS = {  # the tokens that stay at each of the stages, by the budget they are published for
    1.5: {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    2: {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}


@dataclass(frozen=True)
class RaterAttention(AttentionNeed):
    """Attention from text raters to each token in a layer of the language model: mean over the raters.

    SparseVLM (arXiv 2410.04417): raters are the text tokens after the picture that are most like it as they enter the
    language model (see `rate_text`); where no token stands out, the prompt's last token. Layers count as in
    AttentionRows, and so does `divide_by_rope_prior`; `heads="mean"` averages the heads first.
    """

    layers: tuple[int, ...]
    heads: Literal["split", "mean"] = "split"
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
    candidate, text_count = prompts.candidate, length - prompts.text_start
    count = candidate.sum(1)
    index = (~candidate).long().argsort(dim=1, stable=True)[:, : int(count.max())]
    is_visual = torch.arange(index.shape[1]) < count[:, None]
    visual = embeddings.gather(1, index.to(device)[..., None].expand(-1, -1, embeddings.shape[2]))
    width = max(1, int(text_count.max()))
    is_text = torch.arange(length - width, length) >= prompts.text_start[:, None]
    raters = rate_text(visual, is_visual.to(device), embeddings[:, -width:], is_text.to(device))
    raters[:, -1] |= ~raters.any(1)  # where no token stands out, the last one rates
    return torch.nn.functional.pad(raters, (length - width, 0))


def rate_text(visual: Tensor, is_visual: Tensor, text: Tensor, is_text: Tensor) -> Tensor:
    """[P, T] bool: the text tokens that SparseVLM (arXiv 2410.04417) lets rate the visual ones.

    `visual` [P, N, D], `is_visual` [P, N] bool, `text` [P, T, D], `is_text` [P, T] bool, all embeddings as they enter
    the language model. A visual token's softmax over the text of their products, mean over the visual tokens; text
    tokens above the mean of the text rate.
    """
    similarity = visual.float() @ text.float().transpose(1, 2)  # [P, N, T]
    similarity = similarity.masked_fill(~is_text[:, None], -torch.inf).softmax(-1).nan_to_num(0)
    share = similarity.masked_fill(~is_visual[..., None], 0).sum(1) / is_visual.sum(1).clamp(min=1)[:, None]
    mean = share.masked_fill(~is_text, 0).sum(1) / is_text.sum(1).clamp(min=1)
    return is_text & (share > mean[:, None])


@dataclass(frozen=True)
class TextRaters(Scorer):
    """[1, V, N]: the RaterAttention of each token in a layer of the language model.

    `layer` counts as in TextAttention. `heads` averages all heads, or only that many of them, those with most attention
    to a sample's visual tokens (SparseVLM 2). `divide_by_rope_prior` divides by the attention that an all-ones query
    and key would get from RoPE alone.
    """

    layer: int = -1
    heads: Literal["mean"] | int = "mean"
    divide_by_rope_prior: bool = False

    def __post_init__(self) -> None:
        count = isinstance(self.heads, int) and not isinstance(self.heads, bool) and self.heads >= 1
        if self.heads != "mean" and not count:
            raise ValueError(f"heads must be 'mean' or how many of them, got {self.heads!r}")

    @property
    def needs(self) -> tuple[Need, ...]:
        heads = "mean" if self.heads == "mean" else "split"
        return (RaterAttention((self.layer,), heads, self.divide_by_rope_prior),)

    def __call__(self, evidence: Evidence) -> Tensor:
        weights = evidence[self.needs[0]]  # [1, V, H, N]
        if self.heads == "mean":
            return weights.mean(2)
        if self.heads > weights.shape[2]:
            raise ValueError(f"{self}: the layer has {weights.shape[2]} heads only")
        return mean_of_top_heads(weights, self.heads, evidence.layout)


@dataclass(frozen=True)
class Recycle(Merger):
    """Merges the best of the dropped tokens in clusters: SparseVLM (arXiv 2410.04417).

    Of d dropped tokens the int(share d) + 1 = m with the highest scores are gathered around int(m / 10) + 1 density
    peaks, and each cluster becomes its mean (in the code 1e-6 shorter). A peak's density counts as many neighbours as
    there are clusters. The code adds noise of up to 1e-6 to the density; here there is none. New tokens are read
    after the kept ones, the highest peak first, in the places of the row's last dropped tokens.
    """

    share: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is the fraction that is recycled and must lie in 0..1, got {self.share}")

    def gathered_count(self, dropped: Tensor) -> Tensor:
        """Return how many of this number of dropped tokens are gathered in clusters."""
        return ((dropped.double() * self.share).long() + 1).minimum(dropped)

    def cluster_count(self, dropped: Tensor) -> Tensor:
        """Return how many clusters, which are new tokens, this number of dropped tokens becomes."""
        return (self.gathered_count(dropped) // 10 + 1).minimum(dropped)

    def slots(self, quota: Tensor, layout: Layout) -> Tensor:
        return self.cluster_count(layout.count - quota).minimum(quota)

    def __call__(self, kept: Tensor, slots: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
        place = kept_places(kept)
        parts = [(gather_tokens(evidence.tokens, place), place)]
        if slots.any():
            dropped, tokens = evidence.layout.valid & ~kept, real_tokens(evidence.tokens, evidence.layout)
            slot_count = slots.to(kept.device)[:, None]
            gathered = self.gathered_count(dropped.sum(1)).maximum(slot_count[:, 0])
            pool = kept_places(highest(scores.masked_fill(~dropped, -torch.inf), gathered))
            clusters = self._means(gather_tokens(tokens, pool), pool >= 0, slots).to(evidence.tokens.dtype)
            later = dropped.sum(1, keepdim=True) - dropped.cumsum(1)  # dropped tokens after each
            parts.append((clusters, kept_places(dropped & (later < slot_count))))
        return compact(parts, scores, evidence.layout)

    def _means(self, x: Tensor, among: Tensor, count: Tensor) -> Tensor:
        """[V, M, D], [V, M], count [V] -> [V, C, D] the means around each row's `count` highest peaks, in their order.

        Every token joins the peak nearest to it.
        """
        with torch.autocast(x.device.type, enabled=False):
            score, away = density_peaks(x, among, count)
        centre = kept_places(highest(score, count), score)
        away.diagonal(dim1=1, dim2=2).fill_(-1)  # a peak is its own, whatever else lies at the same point
        to = gather_tokens(away, centre).masked_fill((centre < 0)[..., None], torch.inf).argmin(1)
        total, joined = group_sums(x, to, among, centre.shape[1])
        return total / joined.clamp(min=1)


@dataclass(frozen=True)
class PlusRecycled(Pruner):
    """Adds a merger's clusters of the tokens that a pipeline drops on top of the budget, as SparseVLM counts."""

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
    """SparseVLM (arXiv 2410.04417): before each of three layers the visual tokens least attended to by raters go.

    Raters are the text tokens after the picture that are most like it (see `RaterAttention`); their attention in the
    layer before is averaged over heads and raters. Version 1.5 gathers the best of the dropped tokens in new ones (see
    Recycle, whose share is `recycle`, 0 = none), which come on top and are read after the others; its authors number
    positions anew at every stage, positions="compact". Version 2 (SparseVLM+) drops them, averages only the `heads`
    with most attention to the picture, and divides by the attention that RoPE alone would give.

    Budgets are the four that the code has numbers for: 192, 128, 96 and 64 tokens, meant for pictures of 576, or the
    ratios 1/3, 2/9, 1/6 and 1/9, which scale these numbers to each sample's untouched count (rounded half to even). A
    budget is the authors' average over 32 layers: at 192, version 1.5 keeps 300, 200, then 110 tokens, which are 309,
    204 and 113 with the recycled ones; the layers really process 206.5 on average (145 at 128, 82 at 64).

    All pictures of a sample are ranked together. A stage whose number a sample does not exceed leaves it as it is; the
    code would drop one. "After layer 2, 6, 15" in the code is before 3, 7, 16 of `layers` here.
    """

    card = MethodCard(
        paper="arXiv 2410.04417",
        signal="attention of text tokens like the picture",
        selector="top-k in three layers",
        dropped="the best of it in clusters, read last (1.5)",
        parity="within 2e-5; differs: no noise on densities, and a stage that need drop nothing drops nothing",
        site="llm",
        text=True,
    )
    layers: tuple[int, ...] = (3, 7, 16)
    version: float = 1.5
    recycle: float = 0.3
    heads: int = 14
    positions: Positions = "original"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))  # YAML gives lists
        if len(self.layers) != 3:
            raise ValueError(f"layers must be three, one for each number of the tables, got {self.layers}")
        if self.version not in KEEPS:
            raise ValueError(f"version must be one of {', '.join(map(str, KEEPS))}, got {self.version!r}")
        _ = Recycle(self.recycle), TextRaters(heads=self.heads)  # they raise for options that make no sense

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        first = self.version == 1.5
        raters = TextRaters(heads="mean" if first else self.heads, divide_by_rope_prior=not first)
        pruner: Pruner = Pipeline((raters,), Mean(), Even(), TopK(), across="sample")
        if first and self.recycle:
            pruner = PlusRecycled(pruner, Recycle(self.recycle))
        return tuple(
            Stage(f"llm:{layer}", pruner, keeps, positions=self.positions)
            for layer, keeps in zip(self.layers, self._keeps(budget), strict=True)
        )

    def _keeps(self, budget: Budget | None) -> list[Budget]:
        """Return what stays at each stage. ValueError for a budget that has no numbers."""
        keeps, tokens = KEEPS[self.version], None
        if budget is not None and budget.ratio is not None:
            tokens = round(budget.ratio * PICTURE)
        elif budget is not None and budget.per == "sample":
            tokens = budget.tokens
        if budget is None or tokens not in keeps:
            choices = ", ".join(f"{tokens} (ratio {tokens / PICTURE:.3f})" for tokens in keeps)
            raise ValueError(f"SparseVlm has numbers for {choices} tokens in a sample only, got {budget}")
        return [Budget(count) if budget.ratio is None else Budget(ratio=count / PICTURE) for count in keeps[tokens]]
