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
    """A view gets the number of tokens that Spaced, with the same `whole`, selects in it."""

    whole: Whole = None

    def __post_init__(self) -> None:
        _check_whole(self.whole)

    def __call__(self, scores: Tensor, budget: Tensor | None, evidence: Evidence) -> Tensor:
        points, group, first = _sample_points(evidence.layout, require_budget(self, budget), self.whole)
        before = pad(points.cumsum(1), (1, 0))
        return before[group, first + evidence.layout.count] - before[group, first]


@dataclass(frozen=True)
class Spaced(Selector):
    """Selects tokens that are evenly spaced over all tokens of a sample, view after view; scores are ignored.

    Of n tokens, k are selected at round(linspace(0, n - 1, k)), half to even (TS-LLaVA, arXiv 2411.11066). `whole`
    names a picture of the sample, "first" or "last", that gets its tokens before all others and keeps all of them if
    the quotas allow. If an allocator other than BySpacing assigns a view more or fewer tokens than the points in it,
    tokens are added or removed evenly.
    """

    whole: Whole = None

    def __post_init__(self) -> None:
        _check_whole(self.whole)

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        points, group, first = (x.to(scores.device) for x in _sample_points(layout, layout.total(quota), self.whole))
        nth = layout.valid.cumsum(1) - 1
        index = (first[:, None] + nth).clamp(min=0, max=points.shape[1] - 1)
        filler = (nth * 0.6180339887) % 1  # multiples of the golden ratio spread evenly at every length
        priority = points[group[:, None], index] * 2 + filler
        return highest(priority.masked_fill(~layout.valid, -torch.inf), quota)


def _check_whole(whole: object) -> None:
    if whole not in (None, "first", "last"):
        raise ValueError(f"whole must be 'first', 'last' or omitted, got {whole!r}")


def _sample_points(layout: Layout, budget: Tensor, whole: Whole) -> tuple[Tensor, Tensor, Tensor]:
    """Budget [P] -> points [2 P, n] bool, group [V] of each view, and index [V] of its first token in the group.

    A sample has two groups of views: the picture `whole`, if any, and all others. Points are the selected tokens of
    each group. All results are on the CPU.
    """
    samples = len(budget)
    image = layout.image
    is_whole = torch.zeros_like(image, dtype=torch.bool)
    if whole == "first":
        is_whole = image == 0
    elif whole == "last":
        last = torch.zeros_like(budget).scatter_reduce_(0, layout.sample, image, "amax")
        is_whole = image == last[layout.sample]
    group = layout.sample * 2 + ~is_whole
    count = torch.zeros(2 * samples, dtype=torch.long).index_add_(0, group, layout.count)
    whole_count, other_count = count.view(-1, 2).unbind(1)
    share = torch.stack(
        [budget.minimum(whole_count), (budget - whole_count).clamp(min=0).minimum(other_count)], 1
    ).flatten()
    order = group.argsort(stable=True)
    preceding = layout.count[order].cumsum(0) - layout.count[order]
    first = torch.empty_like(group).index_copy_(0, order, preceding - (count.cumsum(0) - count)[group[order]])

    points = torch.zeros(2 * samples, int(count.max()) + 1 if samples else 1, dtype=torch.bool)
    for group_points, n, k in zip(points, count.tolist(), share.tolist(), strict=True):
        group_points[_linspace(n, k)] = True
    return points, group, first


def _linspace(count: int, points: int) -> Tensor:
    """Return round(linspace(0, count - 1, points)), half to even, in float32 as in the authors' code.

    If neighbouring points collide in float32, the later point moves on, so that no index repeats.
    """
    nth = torch.arange(points)
    offset = torch.tensor(even_positions(count, points), dtype=torch.long) - nth
    return nth + offset.clamp(max=count - points).cummax(0).values


@dataclass(frozen=True)
class TsLlava(Method):
    """TS-LLaVA (arXiv 2411.11066): all tokens of a thumbnail of some frames, and evenly spaced tokens of all frames.

    The input is a video as pictures: each frame is a picture, and the thumbnail is one more. The transforms
    Thumbnail(6, beside="last") and FramesAsPictures of vtcframe.data.transforms create it; `thumbnail` is the position
    of the thumbnail. The budget covers the thumbnail and the frames: the paper's is 576 + 2880 for 50 frames of 576
    tokens. Deviations: the authors put all tokens at one placeholder; here each picture has its own placeholder, and
    the text of the chat template between pictures stays. Their variants with several thumbnails (Z, W, U) are not
    implemented.
    """

    card = MethodCard(
        paper="arXiv 2411.11066",
        signal="none",
        selector="all tokens of one picture, evenly spaced tokens of the others",
        dropped="discarded",
        parity="exact",
    )
    thumbnail: Literal["first", "last"] = "last"

    def pipeline(self) -> Pipeline:
        return Pipeline((), Mean(), BySpacing(self.thumbnail), Spaced(self.thumbnail))
