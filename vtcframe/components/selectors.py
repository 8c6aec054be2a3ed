"""Selectors choose the tokens to keep.

(scores [V, N], quota [V], evidence) -> kept [V, N] bool, with quota[v] values True in row v.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor

from vtcframe.components.scorers import Random
from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.needs import AttentionKeys, AttentionRows, ClsProxy, Need
from vtcframe.core.verbs import Selector
from vtcframe.ops.gather import highest, rank_within
from vtcframe.ops.quotas import check_share, share_of_quota
from vtcframe.ops.similarity import unit_vectors
from vtcframe.ops.views import outlier_tokens


@dataclass(frozen=True)
class TopK(Selector):
    """The tokens with the highest scores; ties go to the lower index."""

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        return highest(scores, quota)


@dataclass(frozen=True)
class Grid(Selector):
    """An even spatial grid of exactly the quota, independent of the scores.

    A view of R x C tokens gets about sqrt(quota R / C) evenly spaced rows. Each row gets its share of the quota, evenly
    spaced too. If the available tokens do not fill a rectangle, the tokens that the grid lacks are chosen evenly in
    raster order.
    """

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        nth = layout.valid.cumsum(1) - 1
        filler = (nth * 0.6180339887) % 1  # multiples of the golden ratio spread evenly at every length
        priority = _lattice(layout, quota.to(layout.column.device)) * 2 + filler
        return highest(priority.masked_fill(~layout.valid, -torch.inf), quota)


@dataclass(frozen=True)
class WholeRows(Selector):
    """The complete grid rows with the highest mean scores; from the last row only its best tokens. FoPru's "row".

    In evidence joined over views, rows with the same number form a single row.
    """

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        row = layout.grid[..., 0] + 1  # tokens that show no part of a picture form a separate row
        count = layout.valid.float()
        total = torch.zeros(len(row), int(row.max()) + 1 if row.numel() else 1, device=row.device, dtype=torch.float32)
        mean = total.scatter_add(1, row, scores.masked_fill(~layout.valid, 0))
        mean = mean / total.scatter_add(1, row, count).clamp(min=1)
        rank = mean.argsort(dim=1, descending=True, stable=True).argsort(1).gather(1, row)
        within = scores.argsort(dim=1, descending=True, stable=True).argsort(1)
        priority = -(rank * scores.shape[1] + within)
        return highest(priority.masked_fill(~layout.valid, torch.iinfo(priority.dtype).min), quota)


@dataclass(frozen=True)
class LocalGlobal(Selector):
    """A `share` of the quota by shallow attention, evenly over windows of the grid, the rest by score.

    VScan (arXiv 2505.22654). A view has as many windows of `window` x `window` tokens as fit; the last window of a row
    or column includes the remaining tokens. `layer` is the block of the shallow attention; it counts the blocks that
    feed the projector, from 0. Values of `each`, the rounding of the quota per window:

    - "floor": every window gets the same number, and the rest of the share is selected by score (the authors' code for
      LLaVA leaves it unused).
    - "ceil": every window offers up to that number, and the best tokens of all windows are selected (the authors' code
      for Qwen2.5-VL).
    """

    window: int = 6
    share: float = 0.5
    _: KW_ONLY
    layer: int = 5
    query: ClsProxy = "cls"
    each: Literal["floor", "ceil"] = "floor"

    def __post_init__(self) -> None:
        check_share("share", self.share)
        if self.window < 1:
            raise ValueError(f"window counts tokens along a side and must be at least 1, got {self.window}")
        if self.each not in ("floor", "ceil"):
            raise ValueError(f"each must be 'floor' or 'ceil', got {self.each!r}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (AttentionRows(self.query, (self.layer,)),)

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        valid = layout.valid
        size = (layout.grid.masked_fill(~valid[..., None], 0).amax(1, keepdim=True) + 1) // self.window
        size = size.clamp(min=1)
        cell = (layout.grid.clamp(min=0) // self.window).minimum(size - 1)
        cell = cell[..., 0] * size[..., 1] + cell[..., 1]
        shallow = evidence[self.needs[0]].mean((0, 2)).masked_fill(~valid, -torch.inf)
        local = share_of_quota(quota, self.share).to(scores.device)[:, None]
        windows = size.prod(2)
        most = local // windows if self.each == "floor" else -(-local // windows)
        among = (rank_within(cell, shallow) < most) & valid
        kept = highest(shallow.masked_fill(~among, -torch.inf), among.sum(1).minimum(local[:, 0]))
        return kept | highest(scores.masked_fill(kept, -torch.inf), quota.to(scores.device) - kept.sum(1))


@dataclass(frozen=True)
class OutliersThenDraw(Selector):
    """Tokens with outlier scores, then tokens sampled by shallow [CLS] attention, redundant tokens last.

    After the token-level correlation of arXiv 2407.14439, which has no public code: the block, the threshold and the
    sampling are choices of vtcframe and unverified. Outliers have scores above Q3 + 1.5 IQR of their view; the highest
    come first. A token is redundant if its keys in block `layer` have a cosine above `alike` to the keys of an earlier
    token. Sampling is without replacement, with the hash of `Random`.
    """

    layer: int = 5
    _: KW_ONLY
    alike: float = 0.9
    seed: int = 0

    @property
    def needs(self) -> tuple[Need, ...]:
        return (AttentionRows("cls", (self.layer,)), AttentionKeys((self.layer,)))

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        valid = evidence.layout.valid
        rows, keys = self.needs
        shallow = evidence[rows].mean((0, 2)).float().masked_fill(~valid, 0).clamp(min=1e-12)
        draw = Random(self.seed)(evidence)[0].clamp(min=1e-7).log() / shallow  # Efraimidis and Spirakis, 2006
        with torch.autocast(scores.device.type, enabled=False):
            x = unit_vectors(evidence[keys][0].transpose(1, 2).flatten(2), valid)
            redundant = ((x @ x.mT) > self.alike).tril(-1).any(2)
        is_outlier = outlier_tokens(scores, evidence.layout)
        tier = torch.where(is_outlier, 2, (~redundant).long())
        order = torch.where(is_outlier, scores, draw).masked_fill(~valid, -torch.inf)
        priority = tier * scores.shape[1] - rank_within(tier, order)
        return highest(priority.masked_fill(~valid, -scores.shape[1]), quota)


def _lattice(layout: Layout, quota: Tensor) -> Tensor:
    """[V, N] bool: `quota` points, evenly spaced over the rectangle that a view's tokens span."""
    valid = layout.valid[..., None]
    low = layout.grid.masked_fill(~valid, torch.iinfo(layout.grid.dtype).max).amin(1, keepdim=True)
    at = layout.grid - low
    high, wide = (at.masked_fill(~valid, 0).amax(1) + 1).unbind(-1)
    rows = (quota * high / wide).sqrt().round().long()
    rows = rows.maximum((quota + wide - 1) // wide).minimum(high).minimum(quota).clamp(min=1)[:, None]
    quota, high, wide = quota[:, None], high[:, None], wide[:, None]

    row, on_row = _spread(at[..., 0], rows, high)
    each = (row + 1) * quota // rows - row * quota // rows
    _, on_column = _spread(at[..., 1], each, wide)
    return on_row & on_column & layout.valid


def _spread(index: Tensor, count: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Place `count` picks in the middles of `count` equal spans of `size` cells.

    Return the number of the last pick up to cell `index`, and whether that cell is a pick. The picks are distinct if
    count <= size.
    """
    upto = (2 * count * (index + 1) + size - 1) // (2 * size)
    return upto - 1, upto > (2 * count * index + size - 1) // (2 * size)
