"""HoliTom (arXiv 2505.21334): merging of static patches, and merging inside the language model."""

from dataclasses import dataclass

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
    """Outer stage of HoliTom (arXiv 2505.21334): still places once a window, of the others the most attended.

    A place is still in a window if the cosine of its tokens in all successive frames exceeds `tau`. Windows maximise
    the number of tokens that this saves. Still places become clusters around density peaks, each `beta` of its centre
    and the rest the mean of its others. Its code rounds per frame, so that it misses its budget by a few. Left out: the
    stage inside the language model, and the branch that merges changing tokens too, which fails in the code and is off.
    """

    card = MethodCard(
        paper="arXiv 2505.21334",
        signal="attention received",
        selector="top-k and density peaks",
        dropped="still places averaged",
        parity="differs: meets its budget, where the code rounds in every frame",
    )
    tau: float = 0.8
    beta: float = 0.6
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
        same = torch.cat([same[:0].new_zeros(len(x[:1]), x.shape[1]), same]) & layout.valid  # as in the frame before
        longest = max((end - start for start, end in segment_bounds(videos)), default=1)
        alive, counts = layout.valid, [torch.zeros(len(x), dtype=torch.long, device=x.device)]
        for length in range(1, longest):  # alive[v]: still in the `length` + 1 frames that end with v
            alive = same if length == 1 else same & alive.roll(1, 0)
            counts.append(alive.sum(1) * length)
        saved = torch.stack(counts).cpu().tolist()
        begins = torch.zeros(len(x), dtype=torch.bool)
        for start, end in segment_bounds(videos):
            best, source = [0], []
            for last in range(start, end):
                options = [best[-1 - length] + saved[length][last] for length in range(last - start + 1)]
                best.append(max(options))
                source.append(last - options.index(best[-1]))
            last = end - 1
            while last >= start:
                begins[source[last - start]] = True
                last = source[last - start] - 1
        segment = begins.cumsum(0) - 1
        alone = (torch.bincount(segment)[segment] == 1).to(x.device)[:, None]
        segment, changes = segment.to(x.device), (~same & ~begins.to(x.device)[:, None]).long()
        changes = torch.zeros_like(changes).index_add_(0, segment, changes)[segment]
        return begins, (changes == 0) & ~alone & layout.valid

    def merge_cluster(self, centre: Tensor, others: Tensor, count: Tensor) -> Tensor:
        mixed = self.beta * centre + (1 - self.beta) * others / count.clamp(min=1)
        return torch.where(count > 0, mixed, centre)

    def select_changing(self, x: Tensor, among: Tensor, quota: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return highest(scores.masked_fill(~among, -torch.inf), quota), x


@dataclass(frozen=True)
class PairwiseMean(Merger):
    """Every dropped token joins the kept one that it is most alike, by cosine, one after the other in reading order.

    As HoliTom (arXiv 2505.21334) merges hidden states: each time the kept one becomes the mean of itself and the
    newcomer, so that of n the i-th weighs 1 / 2^(n - i + 1) in the end, the last one half. All are compared before any
    is changed; of equals the first.
    """

    def __call__(self, kept: Tensor, slots: Tensor, scores: Tensor, evidence: Evidence) -> Pruned:
        layout, place, tokens = evidence.layout, kept_places(kept), real_tokens(evidence.tokens, evidence.layout)
        alike = cosine(tokens, gather_tokens(tokens, place)).masked_fill((place < 0)[:, None], -torch.inf)
        to, joins = alike.argmax(2), layout.valid & ~kept
        weight = torch.exp2(-1.0 - _later(to.masked_fill(~joins, place.shape[1])))
        total, joined = group_sums(tokens * weight[..., None], to, joins, place.shape[1])
        merged = gather_tokens(tokens, place) * torch.exp2(-joined.float()) + total
        return compact([(merged.to(evidence.tokens.dtype), place)], scores, layout)


def _later(group: Tensor) -> Tensor:
    """[V, N] -> [V, N]: how many behind it in the row are of the same group."""
    ordered, order = group.sort(dim=1, stable=True)
    end = torch.searchsorted(ordered, ordered, right=True)
    return torch.empty_like(end).scatter_(1, order, end - 1 - torch.arange(group.shape[1], device=group.device))


@dataclass(frozen=True)
class HoliTom(Method):
    """HoliTom (arXiv 2505.21334): still places once a window; then the `ratio` that the last text token looks at.

    HoliTomOuter, and before layer `layer` of the language model the tokens of a sample to which the last one of the
    prompt pays most in the layer before, as FastV ranks, halves of a token to even. The others are averaged into these
    (see PairwiseMean). A budget is what the outer stage leaves; inside stays `ratio` of that. (Its code calls the part
    that goes r, which at a half is the same.)
    """

    card = MethodCard(
        paper="arXiv 2505.21334",
        signal="attention received, then the last text token's",
        selector="top-k and density peaks, then top-k",
        dropped="still places averaged, then averaged in one by one",
        parity="differs: meets its budget before the LLM, where the code rounds in every frame",
        site="projector, llm",
        text=True,
    )
    layer: int = 18
    ratio: float = 0.5
    tau: float = 0.8
    beta: float = 0.6
    query: ClsProxy = "received"

    def __post_init__(self) -> None:
        check_ratio("ratio", self.ratio)

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        ranked = Pipeline(
            (TextAttention(-1),), Mean(), KeepRatio(self.ratio, "nearest"), TopK(), PairwiseMean(), across="sample"
        )
        return (
            Stage("projector", HoliTomOuter(self.tau, self.beta, self.query), budget),
            Stage(f"llm:{self.layer}", ranked),
        )
