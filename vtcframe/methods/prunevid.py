"""PruneVid (arXiv 2412.16117): merging of static patches and clusters, and pruning by the question."""

from dataclasses import KW_ONLY, dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vtcframe.components.allocators import KeepRatio, check_ratio
from vtcframe.components.ensemblers import Mean
from vtcframe.components.scorers import TextAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.budget import Budget
from vtcframe.core.layout import Layout
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.stages import Stage
from vtcframe.methods._frames import StaticPatchMerging, check_shares, segment_bounds, view_means
from vtcframe.ops.clustering import density_peaks, nearest_peak
from vtcframe.ops.similarity import unit_vectors
from vtcframe.ops.views import first_frames


@dataclass(frozen=True)
class PruneVidOuter(StaticPatchMerging):
    """Outer stage of PruneVid (arXiv 2412.16117): static patches once per segment, all tokens clustered.

    Frames are clustered by density peaks of their mean tokens; the number of clusters is the fraction `clusters` of the
    number of frames. A segment is a run of frames of the same cluster; a single frame joins the segment before it (one
    recorded case of the authors' code confirms this rule). A patch position is static if the mean cosine of its tokens
    over all pairs of frames exceeds `tau`. Static patches, and the other tokens of every frame, become the means of
    clusters around density peaks. Deviations: a segment of one frame has no static patches, where the code divides by
    zero; all sets of tokens are clustered to meet the budget, where the code skips sets of 14 tokens or fewer. Not
    implemented here: the stage inside the language model (see PruneVid).
    """

    card = MethodCard(
        paper="arXiv 2412.16117", signal="none", selector="density peaks", dropped="averaged in", parity="exact"
    )
    tau: float = 0.8
    clusters: float = 0.25

    def __post_init__(self) -> None:
        check_shares(clusters=self.clusters)

    def find_static(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        begins = self.segments(view_means(x, layout.valid), first_frames(layout))
        segment = (begins.cumsum(0) - 1).to(x.device)
        length = torch.bincount(segment)[segment][:, None]
        total = torch.zeros_like(x).index_add_(0, segment, unit_vectors(x, layout.valid))[segment]
        pairs = (total.square().sum(2) - length) / (length * (length - 1)).clamp(min=1)
        return begins, (pairs > self.tau) & (length > 1) & layout.valid

    def segments(self, frame: Tensor, begins: Tensor) -> Tensor:
        """Frame means [V, D], first frames of videos [V] bool -> first frames of segments [V] bool, on the CPU."""
        runs = segment_bounds(begins)
        longest = max((end - start for start, end in runs), default=1)
        start = torch.tensor([start for start, _ in runs], dtype=torch.long)[:, None]
        count = torch.tensor([end - start for start, end in runs], dtype=torch.long)
        is_frame = torch.arange(longest) < count[:, None]
        index = (start + torch.arange(longest)).clamp(max=max(len(frame) - 1, 0)).to(frame.device)
        clusters = (count.double() * self.clusters).long().clamp(min=1)
        label = nearest_peak(
            *density_peaks(frame[index], is_frame.to(frame.device), clusters.clamp(max=7)), clusters
        ).cpu()
        cut = begins.clone()
        for row, (first, end) in zip(label.tolist(), runs, strict=True):
            changes = [v for v in range(first + 1, end) if row[v - first] != row[v - first - 1]]
            for v, after in pairwise([*changes, end]):
                cut[v] = after - v > 1 and v - first > 1  # a single frame at the start joins the next segment
        return cut

    def merge_cluster(self, centre: Tensor, others: Tensor, count: Tensor) -> Tensor:
        return (centre + others) / (1 + count)

    def select_changing(self, x: Tensor, among: Tensor, quota: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return self.merge_clusters(x, among, quota)


@dataclass(frozen=True)
class PruneVid(Method):
    """PruneVid (arXiv 2412.16117): merges tokens that frames share, then keeps part of each frame by the question.

    The first stage is PruneVidOuter. Before layer `layer` of the language model the second stage keeps the fraction
    `alpha` of the tokens of each frame, rounded down, and at least one token of a sample: those with the highest
    attention from any text token after the pictures in any head of the layer before. The other tokens are also evicted
    from the KV caches of all earlier layers; `forget=False` keeps them there, for models whose caches have sliding
    windows. The budget is the number of tokens after the first stage.

    Deviations from the authors' code: the code keeps `alpha` of a segment's static patches and `alpha` of each frame's
    changing patches. Here each frame is one set; a segment's static patches are in its first frame and are ranked
    together with its changing patches. The code's selected_layer=10 is the last layer with all tokens, so `layer` is
    11. Positions are the original ones; the code renumbers those of the caches.
    """

    card = MethodCard(
        paper="arXiv 2412.16117",
        signal="attention of any text token in any head",
        selector="density peaks, then top-k in each frame",
        dropped="averaged in, then discarded",
        parity="differs: first frames rank static and changing patches together; exact given the code's sets",
        site="projector, llm",
        text=True,
    )
    layer: int = 11
    alpha: float = 0.4
    _: KW_ONLY
    tau: float = 0.8
    clusters: float = 0.25
    forget: bool = True

    def __post_init__(self) -> None:
        check_ratio("alpha", self.alpha)

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        scorer = TextAttention(-1, "text", heads="max", reduce="max")
        inner = Pipeline((scorer,), Mean(), KeepRatio(self.alpha), TopK())
        return (
            Stage("projector", PruneVidOuter(self.tau, self.clusters), budget),
            Stage(f"llm:{self.layer}", inner, forget=0 if self.forget else None),
        )
