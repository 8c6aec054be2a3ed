"""SparseVLM: text that looks at the picture rates its tokens, in three layers of the language model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean
from vtcframe.components.mergers import compact
from vtcframe.components.scorers import TextAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.budget import Budget
from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.needs import Need
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Positions, Pruner, Stage
from vtcframe.core.verbs import Merger
from vtcframe.ops.density_peaks import density_peaks
from vtcframe.ops.gather import gather_tokens, highest, kept_places, real_tokens
from vtcframe.ops.similarity import group_sums

PICTURE = 576  # tokens of the pictures that the published numbers are for
KEEPS = {  # the tokens that stay at each of the stages, by the budget they are published for
    1.5: {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    2: {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}


@dataclass(frozen=True)
class Recycle(Merger):
    """The best of what is dropped, in clusters: SparseVLM (arXiv 2410.04417).

    Of d dropped tokens the int(share d) + 1 = m with the highest scores are gathered around int(m / 10) + 1 density
    peaks, and each cluster becomes its mean (in the code 1e-6 shorter). A peak's density counts as many neighbours as
    there are clusters. The code adds noise of up to 1e-6 to the density; here there is none. New tokens are read
    behind the kept ones, the highest peak first, in the places of the row's last dropped tokens.
    """

    share: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is the fraction that is recycled and must lie in 0..1, got {self.share}")

    def taken(self, dropped: Tensor) -> Tensor:
        """Return how many of so many dropped tokens are recycled."""
        return ((dropped.double() * self.share).long() + 1).minimum(dropped)

    def made(self, dropped: Tensor) -> Tensor:
        """Return how many tokens are made of so many dropped ones."""
        return (self.taken(dropped) // 10 + 1).minimum(dropped)

    def slots(self, quota: Tensor, layout: Layout) -> Tensor:
        return self.made(layout.count - quota).minimum(quota)

    def __call__(self, kept: Tensor, slots: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
        own = kept_places(kept)
        parts = [(gather_tokens(evidence.tokens, own), own)]
        if slots.any():
            dropped, tokens = evidence.layout.valid & ~kept, real_tokens(evidence.tokens, evidence.layout)
            wanted = slots.to(kept.device)[:, None]
            taken = self.taken(dropped.sum(1)).maximum(wanted[:, 0])
            pool = kept_places(highest(scores.masked_fill(~dropped, -torch.inf), taken))
            made = self._means(gather_tokens(tokens, pool), pool >= 0, slots).to(evidence.tokens.dtype)
            left = dropped.sum(1, keepdim=True) - dropped.cumsum(1)  # dropped tokens behind each
            parts.append((made, kept_places(dropped & (left < wanted))))
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
    """What a merger makes of the tokens that a pipeline drops comes on top of the budget, as SparseVLM counts."""

    pipeline: Pipeline
    merger: Recycle

    @property
    def needs(self) -> tuple[Need, ...]:
        return self.pipeline.needs

    @torch.no_grad()
    def __call__(self, evidence: Evidence, budget: Budget | None = None) -> Pruned:
        pruned = self.pipeline(evidence, budget)
        slots = self.merger.made(pruned.layout.count - (pruned.place >= 0).sum(1).cpu())
        rows = evidence.joined() if self.pipeline.across == "sample" else evidence
        return self.merger(pruned.kept, slots, pruned.scores, rows)


@dataclass(frozen=True)
class SparseVlm(Method):
    """SparseVLM (arXiv 2410.04417): before each of three layers the visual tokens least attended to by raters go.

    Raters are the text tokens behind the picture that are most like it (see `Rows`); what they pay in the layer before
    is averaged over heads and raters. Version 1.5 gathers the best of what goes in new tokens (see Recycle, whose
    share is `recycle`, 0 = none), which come on top and are read behind the others; its authors number positions anew
    at every stage, positions="compact". Version 2 (SparseVLM+) lets it go, averages only the `heads` that look at the
    picture most, and divides attention by what rotary positions alone would pay.

    Budgets are the four that the code has numbers for: 192, 128, 96 and 64 tokens, meant for pictures of 576, or the
    ratios 1/3, 2/9, 1/6 and 1/9, which scale these numbers to each sample's untouched count (rounded half to even). A
    budget is the authors' average over 32 layers: at 192, version 1.5 keeps 300, 200, then 110 tokens, which are 309,
    204 and 113 with the recycled ones; the layers really process 206.5 on average (145 at 128, 82 at 64).

    All pictures of a sample are judged together. A stage whose number a sample does not exceed leaves it as it is; the
    code would drop one. "After layer 2, 6, 15" in the code is before 3, 7, 16 of `layers` here.
    """

    card = MethodCard(
        "arXiv 2410.04417",
        "attention of text tokens like the picture",
        "top-k in three layers",
        "the best of it in clusters, read last (1.5)",
        "within 2e-5; differs: no noise on densities, and a stage that need drop nothing drops nothing",
        "llm",
        True,
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
        _ = Recycle(self.recycle), TextAttention(heads=self.heads)  # these tell of options that make no sense

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        first = self.version == 1.5
        rated = TextAttention(-1, "rated", "mean" if first else self.heads, divide_by_rope_prior=not first)
        pruner: Pruner = Pipeline((rated,), Mean(), Even(), TopK(), across="sample")
        if first and self.recycle:
            pruner = PlusRecycled(pruner, Recycle(self.recycle))
        return tuple(
            Stage(f"llm:{layer}", pruner, keeps, self.positions)
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
