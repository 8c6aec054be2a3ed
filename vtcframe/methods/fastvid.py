"""FastVID (arXiv 2503.11187): dynamic density pruning of video tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtcframe.components.allocators import Even
from vtcframe.components.scorers import ClsAttention
from vtcframe.core.evidence import Evidence
from vtcframe.core.method import MethodCard
from vtcframe.core.needs import ClsProxy, HiddenStates, Need
from vtcframe.methods._frames import FrameMerging, check_shares, clean_tokens, segment_bounds, view_means
from vtcframe.ops.density_peaks import density_peaks
from vtcframe.ops.gather import highest
from vtcframe.ops.similarity import unit_vectors
from vtcframe.ops.views import first_frames


@dataclass(frozen=True)
class FastVid(FrameMerging):
    """FastVID (arXiv 2503.11187): the most attended tokens of each frame, and anchors that the others merge into.

    A video is cut into segments between dissimilar neighbouring frames: at the `segments` - 1 lowest cosines, and at
    cosines below `tau`. The share `context` of each frame's budget goes to the anchor frames of its segment, which are
    the last frame and every `every`th before it. Anchors are density peaks (4 neighbours) among the tokens that
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

    def cuts(self, evidence: Evidence) -> Tensor:
        """[V] bool on the CPU: where a segment begins."""
        layout = evidence.layout
        frame = torch.nn.functional.normalize(view_means(evidence[HiddenStates()], layout.valid), dim=1)
        alike = torch.ones(len(frame), dtype=torch.float32)
        alike[1:] = (frame[1:] * frame[:-1]).sum(1).cpu()
        begins = first_frames(layout)
        cut = begins | (alike < self.tau)
        for start, end in segment_bounds(begins):
            cut[start + 1 + alike[start + 1 : end].argsort(stable=True)[: self.segments - 1]] = True
        return cut

    def plan(self, total: Tensor, cut: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Return [V] each, on the CPU: how many tokens stay by attention, how many are anchors."""
        layout = evidence.layout
        share = Even()(layout.column, total, evidence)
        context = (share.double() * self.context).long()
        attended, anchors, room = (share - context).tolist(), [0] * len(share), layout.count.tolist()
        for start, end in segment_bounds(cut):
            remaining, hosts = int(context[start:end].sum()), range(end - 1, start - 1, -self.every)
            for i, v in enumerate(hosts):
                anchors[v] = min(remaining // (len(hosts) - i), room[v] - attended[v])
                remaining -= anchors[v]
            for v in range(start, end):
                extra = min(remaining, room[v] - attended[v] - anchors[v])
                attended[v] += extra
                remaining -= extra
        return torch.tensor(attended, dtype=torch.long), torch.tensor(anchors, dtype=torch.long)

    def merge_frames(self, scores: Tensor, total: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
        valid, x, cut = evidence.layout.valid, clean_tokens(evidence), self.cuts(evidence)
        attended, anchors = self.plan(total, cut, evidence)
        first = highest(scores, attended)
        others = valid & ~first
        anchor = highest(density_peaks(x, others, torch.full_like(anchors, 4))[0], anchors)
        segment = cut.cumsum(0) - 1
        width = torch.zeros(len(cut), dtype=torch.long).index_add_(0, segment, anchors)
        if not width.any():
            return first, x
        segment, size = segment.to(x.device), int(width.max())
        at = anchor.flatten().nonzero()[:, 0]  # by frame, then raster
        host = segment[at // valid.shape[1]]
        slot = torch.arange(len(at), device=at.device) - torch.searchsorted(host, host)
        centre = x.new_zeros(len(cut), size, x.shape[2])
        centre[host, slot] = x.flatten(0, 1)[at]
        real = torch.arange(size, device=x.device) < width.to(x.device)[:, None]
        alike = unit_vectors(x, valid) @ unit_vectors(centre, real)[segment].mT
        alike = alike.masked_fill(~real[segment][:, None], -torch.inf)
        to = (segment[:, None] * size + alike.argmax(2))[others]
        mean = centre.new_zeros(centre.shape).flatten(0, 1).index_add_(0, to, x[others])
        mean = mean / torch.bincount(to, minlength=len(mean)).clamp(min=1)[:, None]
        x[anchor] = self.beta * x[anchor] + (1 - self.beta) * mean[host * size + slot]
        return first | anchor, x
