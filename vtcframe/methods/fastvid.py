"""FastVID (arXiv 2503.11187): dynamic density pruning of video tokens."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from vtcframe.components.allocators import Even
from vtcframe.components.scorers import ClsAttention
from vtcframe.core.evidence import Evidence
from vtcframe.core.method import MethodCard
from vtcframe.core.needs import ClsProxy, HiddenStates, Need
from vtcframe.methods._frames import FrameMerging, check_shares, clean_tokens, segment_bounds, view_means
from vtcframe.ops.clustering import density_peaks
from vtcframe.ops.gather import highest
from vtcframe.ops.similarity import unit_vectors
from vtcframe.ops.views import first_frames


@dataclass(frozen=True)
class FastVid(FrameMerging):
    """FastVID (arXiv 2503.11187): the most attended tokens of each frame, and anchors that the others merge into.

    A video is cut into segments between dissimilar neighbouring frames: at the `segments` - 1 lowest cosines, and at
    cosines below `tau`. The share `context` of each frame's budget goes to the anchor frames of its segment, which are
    the last frame and every `every`-th frame before it. Anchors are density peaks (4 neighbours) among the tokens that
    attention did not select. The other tokens of the segment join the most similar anchor, which becomes `beta` times
    itself plus 1 - `beta` times the mean of its cluster. Frames are compared by the mean of their encoder features (the
    paper: their pooled [CLS], which most backbones do not expose). If an anchor frame has no room, attention selects
    the tokens. Within a frame, tokens keep raster order.
    """

    card = MethodCard(
        paper="arXiv 2503.11187",
        signal="attention of [CLS] or its proxy",
        selector="top-k and density peaks",
        dropped="averaged in",
        parity="exact, given the code's features of whole frames",
    )
    segments: int = 8
    tau: float = 0.9
    _: KW_ONLY
    context: float = 0.4
    every: int = 4
    beta: float = 0.6
    query: ClsProxy = "proxy"

    def __post_init__(self) -> None:
        check_shares(context=self.context, beta=self.beta)
        if self.segments < 1 or self.every < 1:
            raise ValueError(f"segments and every must be at least 1, got {self.segments} and {self.every}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (*ClsAttention(1, self.query).needs, HiddenStates())

    def score_tokens(self, evidence: Evidence) -> Tensor:
        return ClsAttention(1, self.query)(evidence)[0].float()

    def find_segments(self, evidence: Evidence) -> Tensor:
        """[V] bool on the CPU, True for the frames at which a segment begins."""
        layout = evidence.layout
        frame = torch.nn.functional.normalize(view_means(evidence[HiddenStates()], layout.valid), dim=1)
        similarity = torch.ones(len(frame), dtype=torch.float32)
        similarity[1:] = (frame[1:] * frame[:-1]).sum(1).cpu()
        begins = first_frames(layout)
        cut = begins | (similarity < self.tau)
        for start, end in segment_bounds(begins):
            lowest = similarity[start + 1 : end].argsort(stable=True)[: self.segments - 1]
            cut[start + 1 + lowest] = True
        return cut

    def split_budget(self, total: Tensor, cut: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Return the number of tokens of each frame that attention selects [V] and of its anchors [V], on the CPU."""
        layout = evidence.layout
        share = Even()(layout.column, total, evidence)
        context = (share.double() * self.context).long()
        attended = (share - context).tolist()
        anchors = [0] * len(share)
        room = layout.count.tolist()
        for start, end in segment_bounds(cut):
            remaining = int(context[start:end].sum())
            anchor_frames = range(end - 1, start - 1, -self.every)
            for i, v in enumerate(anchor_frames):
                anchors[v] = min(remaining // (len(anchor_frames) - i), room[v] - attended[v])
                remaining -= anchors[v]
            for v in range(start, end):
                extra = min(remaining, room[v] - attended[v] - anchors[v])
                attended[v] += extra
                remaining -= extra
        return torch.tensor(attended, dtype=torch.long), torch.tensor(anchors, dtype=torch.long)

    def merge_frames(self, scores: Tensor, total: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        valid = evidence.layout.valid
        x = clean_tokens(evidence)
        cut = self.find_segments(evidence)
        attended, anchors = self.split_budget(total, cut, evidence)
        first = highest(scores, attended)
        others = valid & ~first
        anchor = highest(density_peaks(x, others, torch.full_like(anchors, 4))[0], anchors)
        segment = cut.cumsum(0) - 1
        width = torch.zeros(len(cut), dtype=torch.long).index_add_(0, segment, anchors)
        if not width.any():
            return first, x
        segment = segment.to(x.device)
        size = int(width.max())
        index = anchor.flatten().nonzero()[:, 0]  # by frame, then raster
        anchor_segment = segment[index // valid.shape[1]]
        slot = torch.arange(len(index), device=index.device) - torch.searchsorted(anchor_segment, anchor_segment)
        centre = x.new_zeros(len(cut), size, x.shape[2])
        centre[anchor_segment, slot] = x.flatten(0, 1)[index]
        is_anchor = torch.arange(size, device=x.device) < width.to(x.device)[:, None]
        similarity = unit_vectors(x, valid) @ unit_vectors(centre, is_anchor)[segment].mT
        similarity = similarity.masked_fill(~is_anchor[segment][:, None], -torch.inf)
        target = (segment[:, None] * size + similarity.argmax(2))[others]
        mean = centre.new_zeros(centre.shape).flatten(0, 1).index_add_(0, target, x[others])
        mean = mean / torch.bincount(target, minlength=len(mean)).clamp(min=1)[:, None]
        x[anchor] = self.beta * x[anchor] + (1 - self.beta) * mean[anchor_segment * size + slot]
        return first | anchor, x
