"""PruneVid (arXiv 2412.16117): merging of static patches and clusters, and pruning by the question."""

from dataclasses import dataclass
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
from vtcframe.ops.density_peaks import density_peaks, nearest_peak
from vtcframe.ops.similarity import unit_vectors
from vtcframe.ops.views import first_frames


@dataclass(frozen=True)
class PruneVidOuter(StaticPatchMerging):
    """Outer stage of PruneVid (arXiv 2412.16117): still places once a segment, everything clustered.

    Frames are clustered by density peaks of their mean tokens, into `clusters` of their number; segments are frames of
    one cluster in a row, a lone frame joining the segment before it (that this is the code's way of refining is only
    known of one recorded case). A place is still if the mean cosine of its tokens in all pairs of frames exceeds `tau`.
    Still places, and the others of every frame, become the means of clusters around density peaks. A lone frame has no
    still places; the code divides by zero there. The code leaves sets of 14 tokens or less alone; here all are
    clustered, to meet the budget. Left out: the stage inside the language model.
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
        """Frames' means [V, D], where videos begin [V] -> where segments begin [V] on the CPU."""
        runs = segment_bounds(begins)
        longest = max((end - start for start, end in runs), default=1)
        start = torch.tensor([start for start, _ in runs], dtype=torch.long)[:, None]
        count = torch.tensor([end - start for start, end in runs], dtype=torch.long)
        real = torch.arange(longest) < count[:, None]
        at = (start + torch.arange(longest)).clamp(max=max(len(frame) - 1, 0)).to(frame.device)
        clusters = (count.double() * self.clusters).long().clamp(min=1)
        label = nearest_peak(*density_peaks(frame[at], real.to(frame.device), clusters.clamp(max=7)), clusters).cpu()
        cut = begins.clone()
        for row, (first, end) in zip(label.tolist(), runs, strict=True):
            changes = [v for v in range(first + 1, end) if row[v - first] != row[v - first - 1]]
            for v, after in pairwise([*changes, end]):
                cut[v] = after - v > 1 and v - first > 1  # a lone frame at the start joins what follows
        return cut

    def merge_cluster(self, centre: Tensor, others: Tensor, count: Tensor) -> Tensor:
        return (centre + others) / (1 + count)

    def select_changing(self, x: Tensor, among: Tensor, quota: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return self.merge_clusters(x, among, quota)


@dataclass(frozen=True)
class PruneVid(Method):
    """PruneVid (arXiv 2412.16117): what frames share is merged; then `alpha` of each stays, by the question.

    PruneVidOuter, and before layer `layer` of the language model those of each frame to which any text token behind
    the pictures pays most in any head of the layer before, rounded down. The others leave the caches of all layers
    before, too, unless `forget` says no, as models with caches of sliding windows demand. A budget is what the outer
    stage leaves; inside stays `alpha` of that, and at least one token of a sample.

    The code keeps `alpha` of a segment's still places and of each frame's changing ones by themselves. Here a frame is
    one set: a segment's still places stand in its first frame, and nothing tells them from the others there. The last
    layer that reads all is the code's selected_layer=10, so `layer` is 11. Positions are the original ones; in the
    code those of the caches are numbered anew.
    """

    card = MethodCard(
        paper="arXiv 2412.16117",
        signal="attention of any text token in any head",
        selector="density peaks, then top-k in each frame",
        dropped="averaged in, then discarded",
        parity="differs: a segment's first frame ranks still and changing places together; exact given the code's sets",
        site="projector, llm",
        text=True,
    )
    layer: int = 11
    alpha: float = 0.4
    tau: float = 0.8
    clusters: float = 0.25
    forget: bool = True

    def __post_init__(self) -> None:
        check_ratio("alpha", self.alpha)

    def stages(self, budget: Budget | None) -> tuple[Stage, ...]:
        scorer = TextAttention(-1, "text", heads="max", reduce="max")
        ranked = Pipeline((scorer,), Mean(), KeepRatio(self.alpha), TopK())
        return (
            Stage("projector", PruneVidOuter(self.tau, self.clusters), budget),
            Stage(f"llm:{self.layer}", ranked, forget=0 if self.forget else None),
        )
