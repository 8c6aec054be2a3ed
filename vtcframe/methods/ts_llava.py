"""TS-LLaVA (arXiv 2411.11066): thumbnails (see vtcframe.data.transforms), and evenly sampled tokens."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtcframe.components.allocators import require_budget
from vtcframe.components.ensemblers import Mean
from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.method import Method, MethodCard
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.verbs import Allocator, Selector
from vtcframe.data.transforms import even_positions
from vtcframe.ops.gather import highest

Whole = Literal["first", "last"] | None


@dataclass(frozen=True)
class BySpacing(Allocator):
    """A view gets as many tokens as Spaced, with the same `whole`, finds in it."""

    whole: Whole = None

    def __post_init__(self) -> None:
        _verify(self.whole)

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        points, group, first = _points(evidence.layout, require_budget(self, budget), self.whole)
        before = pad(points.cumsum(1), (1, 0))
        return before[group, first + evidence.layout.count] - before[group, first]


@dataclass(frozen=True)
class Spaced(Selector):
    """Tokens evenly spaced through all of a sample's, one view behind the other, whatever the scores say.

    Of n tokens and k picks those at round(linspace(0, n - 1, k)), half to even (TS-LLaVA, arXiv 2411.11066). `whole`
    names a picture of the sample, "first" or "last", that is served before all others: it stays whole if the quotas
    allow. Where an allocator other than BySpacing has given a view more or fewer than the points in it, what lacks is
    filled and what is over is thinned evenly.
    """

    whole: Whole = None

    def __post_init__(self) -> None:
        _verify(self.whole)

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        points, group, first = (x.to(scores.device) for x in _points(layout, layout.total(quota), self.whole))
        nth = layout.valid.cumsum(1) - 1
        at = (first[:, None] + nth).clamp(min=0, max=points.shape[1] - 1)
        filler = (nth * 0.6180339887) % 1  # multiples of the golden ratio spread evenly at every length
        wanted = points[group[:, None], at] * 2 + filler
        return highest(wanted.masked_fill(~layout.valid, -torch.inf), quota)


def _verify(whole: object) -> None:
    if whole not in (None, "first", "last"):
        raise ValueError(f"whole must be 'first', 'last' or left out, got {whole!r}")


def _points(layout: Layout, budget: Tensor, whole: Whole) -> tuple[Tensor, Tensor, Tensor]:
    """Budget [P] -> the picks among each group's tokens [2 P, n], each view's group [V] and first token in it [V].

    A sample has two groups of views: the picture that is served first, if any, and all others. On the CPU.
    """
    samples, image = len(budget), layout.image
    served = torch.zeros_like(image, dtype=torch.bool)
    if whole == "first":
        served = image == 0
    elif whole == "last":
        last = torch.zeros_like(budget).scatter_reduce_(0, layout.sample, image, "amax")
        served = image == last[layout.sample]
    group = layout.sample * 2 + ~served
    count = torch.zeros(2 * samples, dtype=torch.long).index_add_(0, group, layout.count)
    ahead, others = count.view(-1, 2).unbind(1)
    share = torch.stack([budget.minimum(ahead), (budget - ahead).clamp(min=0).minimum(others)], 1).flatten()
    order = group.argsort(stable=True)
    behind = layout.count[order].cumsum(0) - layout.count[order]
    first = torch.empty_like(group).index_copy_(0, order, behind - (count.cumsum(0) - count)[group[order]])

    points = torch.zeros(2 * samples, int(count.max()) + 1 if samples else 1, dtype=torch.bool)
    for own, n, k in zip(points, count.tolist(), share.tolist(), strict=True):
        own[_linspace(n, k)] = True
    return points, group, first


def _linspace(count: int, wanted: int) -> Tensor:
    """round(linspace(0, count - 1, wanted)), half to even, in float32 as the authors have it.

    Where float32 is too coarse to tell neighbours apart, the later one moves on, so that none comes twice.
    """
    nth = torch.arange(wanted)
    ahead = torch.tensor(even_positions(count, wanted), dtype=torch.long) - nth
    return nth + ahead.clamp(max=count - wanted).cummax(0).values


@dataclass(frozen=True)
class TsLlava(Method):
    """TS-LLaVA (arXiv 2411.11066): a thumbnail of some frames whole, and tokens evenly spaced through all frames.

    Video as pictures: data.transforms of Thumbnail(6, beside="last") and FramesAsPictures make what it expects, each
    frame a picture and the thumbnail one more; `thumbnail` says where it stands. One budget means both: the paper's is
    576 + 2880 of 50 frames at 576. The authors put all of it at one placeholder; here each picture has its own, and
    whatever the chat template writes between pictures stays between them. Their variants of several thumbnails
    (Z, W, U) are left out.
    """

    card = MethodCard(
        paper="arXiv 2411.11066",
        signal="none",
        selector="a picture whole, the others' tokens evenly spaced",
        dropped="discarded",
        parity="exact",
    )
    thumbnail: Literal["first", "last"] = "last"

    def pipeline(self) -> Pipeline:
        return Pipeline((), Mean(), BySpacing(self.thumbnail), Spaced(self.thumbnail))
