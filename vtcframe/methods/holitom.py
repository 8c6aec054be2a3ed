"""HoliTom (arXiv 2505.21334): merging of static patches, and merging inside the language model."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from vtcframe.components.allocators import KeepRatio, check_ratio
from vtcframe.components.ensemblers import Mean
from vtcframe.components.mergers import compact
from vtcframe.components.scorers import ClsAttention, TextAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.budget import Budget
from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.needs import ClsProxy, Need
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.pruned import Pruned
from vtcframe.core.stages import Stage
from vtcframe.core.verbs import Merger
from vtcframe.methods._frames import StaticPatchMerging, check_shares, segment_bounds
from vtcframe.ops.gather import gather_tokens, highest, kept_places, real_tokens
from vtcframe.ops.similarity import cosine, group_sums, unit_vectors
from vtcframe.ops.views import first_frames


@dataclass(frozen=True)
class HoliTomOuter(StaticPatchMerging):
    """Outer stage of HoliTom (arXiv 2505.21334): static patches once per window, and the most attended of the others.

    A patch position is static in a window if the cosine between its tokens in all consecutive frames exceeds `tau`. The
    windows maximise the number of tokens that this saves. Static patches are clustered around density peaks; the token
    of a cluster is `beta` times its centre plus 1 - `beta` times the mean of its other tokens. The authors' code rounds
    per frame and therefore misses its budget by a few tokens. Not implemented: the stage inside the language model (see
    HoliTom), and merging of changing tokens, which is disabled in the code and fails there.
    """

    card = MethodCard(
        paper="arXiv 2505.21334",
        signal="attention received",
        selector="top-k and density peaks",
        dropped="static patches averaged",
        parity="differs: meets its budget, where the code rounds in every frame",
    )
    tau: float = 0.8
    beta: float = 0.6
    _: KW_ONLY
    query: ClsProxy = "received"

    def __post_init__(self) -> None:
        check_shares(beta=self.beta)

    @property
    def needs(self) -> tuple[Need, ...]:
        return ClsAttention(1, self.query).needs

    def score_tokens(self, evidence: Evidence) -> Tensor:
        return ClsAttention(1, self.query)(evidence)[0].float()

    def find_static(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        videos = first_frames(layout)
        u = unit_vectors(x, layout.valid)
        same = (u[1:] * u[:-1]).sum(2) > self.tau
        same = torch.cat([same[:0].new_zeros(len(x[:1]), x.shape[1]), same]) & layout.valid  # as in the previous frame
        longest = max((end - start for start, end in segment_bounds(videos)), default=1)
        static = layout.valid
        counts = [torch.zeros(len(x), dtype=torch.long, device=x.device)]
        for length in range(1, longest):  # static[v]: static in the `length` + 1 frames that end with v
            static = same if length == 1 else same & static.roll(1, 0)
            counts.append(static.sum(1) * length)
        saved = torch.stack(counts).cpu().tolist()
        begins = torch.zeros(len(x), dtype=torch.bool)
        for start, end in segment_bounds(videos):
            best = [0]  # the tokens saved by the best windows of the first n frames
            source = []  # the first frame of the window that ends with each frame
            for last in range(start, end):
                options = [best[-1 - length] + saved[length][last] for length in range(last - start + 1)]
                best.append(max(options))
                source.append(last - options.index(best[-1]))
            last = end - 1
            while last >= start:
                begins[source[last - start]] = True
                last = source[last - start] - 1
        segment = begins.cumsum(0) - 1
        is_single = (torch.bincount(segment)[segment] == 1).to(x.device)[:, None]
        segment = segment.to(x.device)
        changes = (~same & ~begins.to(x.device)[:, None]).long()
        changes = torch.zeros_like(changes).index_add_(0, segment, changes)[segment]
        return begins, (changes == 0) & ~is_single & layout.valid

    def merge_cluster(self, centre: Tensor, others: Tensor, count: Tensor) -> Tensor:
        mixed = self.beta * centre + (1 - self.beta) * others / count.clamp(min=1)
        return torch.where(count > 0, mixed, centre)

    def select_changing(self, x: Tensor, among: Tensor, quota: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return highest(scores.masked_fill(~among, -torch.inf), quota), x


@dataclass(frozen=True)
class PairwiseMean(Merger):
    """Every dropped token joins its most similar kept token, by cosine, one after another in reading order.

    HoliTom (arXiv 2505.21334) merges hidden states in this way: with each joining token, the kept token becomes the
    mean of itself and that token. So the i-th of n joining tokens has the final weight 1 / 2^(n - i + 1), the last one
    1/2. Similarities are computed before any token changes; ties go to the first kept token.
    """

    def __call__(self, kept: Tensor, slots: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
        layout = evidence.layout
        place = kept_places(kept)
        tokens = real_tokens(evidence.tokens, layout)
        similarity = cosine(tokens, gather_tokens(tokens, place)).masked_fill((place < 0)[:, None], -torch.inf)
        target = similarity.argmax(2)
        joins = layout.valid & ~kept
        weight = torch.exp2(-1.0 - _count_later(target.masked_fill(~joins, place.shape[1])))
        total, joined = group_sums(tokens * weight[..., None], target, joins, place.shape[1])
        merged = gather_tokens(tokens, place) * torch.exp2(-joined.float()) + total
        return compact([(merged.to(evidence.tokens.dtype), place)], scores, layout)


def _count_later(group: Tensor) -> Tensor:
    """[V, N] -> [V, N]: the number of later tokens in the row that belong to the same group."""
    ordered, order = group.sort(dim=1, stable=True)
    end = torch.searchsorted(ordered, ordered, right=True)
    return torch.empty_like(end).scatter_(1, order, end - 1 - torch.arange(group.shape[1], device=group.device))


@dataclass(frozen=True)
class HoliTom(Method):
    """HoliTom (arXiv 2505.21334): static patches once per window; then a share of the tokens by text attention.

    The first stage is HoliTomOuter. Before layer `layer` of the language model the second stage keeps the fraction
    `ratio` of a sample's tokens, rounded to the nearest integer (halves to even): those that the prompt's last token
    attends to most in the layer before, as in FastV. The other tokens are averaged into them (see PairwiseMean). The
    budget is the number of tokens after the first stage. (In the authors' code r is the dropped fraction, which is the
    same at one half.)
    """

    card = MethodCard(
        paper="arXiv 2505.21334",
        signal="attention received, then the last text token's",
        selector="top-k and density peaks, then top-k",
        dropped="static patches averaged, then averaged in one by one",
        parity="differs: meets its budget before the LLM, where the code rounds in every frame",
        site="projector, llm",
        text=True,
    )
    layer: int = 18
    ratio: float = 0.5
    _: KW_ONLY
    tau: float = 0.8
    beta: float = 0.6
    query: ClsProxy = "received"

    def __post_init__(self) -> None:
        check_ratio("ratio", self.ratio)

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        inner = Pipeline(
            (TextAttention(-1),), Mean(), KeepRatio(self.ratio, "nearest"), TopK(), PairwiseMean(), across="sample"
        )
        return (
            Stage("projector", HoliTomOuter(self.tau, self.beta, query=self.query), budget),
            Stage(f"llm:{self.layer}", inner),
        )
