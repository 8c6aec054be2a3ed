"""Selectors: (scores [V, N], quota [V], evidence) -> kept [V, N] bool with quota[v] True in row v."""

from abc import abstractmethod
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtcframe.allocators import outliers
from vtcframe.core import Evidence, Layout
from vtcframe.needs import Features, Keys, Need, Rows, Stand
from vtcframe.pipeline import Selector
from vtcframe.scorers import Random

CHUNK = 2**24  # similarities held at once where not all are needed


def highest(scores: Tensor, quota: Tensor) -> Tensor:
    """[V, N], [V] -> [V, N] bool: the quota highest of each row; ties go to the lower index."""
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return rank < quota.to(scores.device)[:, None]


@dataclass(frozen=True)
class TopK(Selector):
    """The highest scores; ties go to the lower index."""

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        return highest(scores, quota)


@dataclass(frozen=True)
class Grid(Selector):
    """An even spatial grid of exactly the quota, whatever the scores say.

    A view of R x C tokens gets about sqrt(quota R / C) rows, evenly spaced, and each of them its share of the quota,
    evenly spaced too. Where the tokens left are no full rectangle, what the grid misses is filled evenly in raster
    order.
    """

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        nth = layout.valid.cumsum(1) - 1
        filler = (nth * 0.6180339887) % 1  # multiples of the golden ratio spread evenly at every length
        wanted = _lattice(layout, quota.to(layout.column.device)) * 2 + filler
        return highest(wanted.masked_fill(~layout.valid, -torch.inf), quota)


@dataclass(frozen=True)
class WholeRows(Selector):
    """The grid rows with the highest mean score; the last of them gives its best tokens. FoPru's "row".

    In evidence joined over views, rows of the same number count as one.
    """

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        row = layout.grid[..., 0] + 1  # tokens of no picture are a row of their own
        count = layout.valid.float()
        total = torch.zeros(len(row), int(row.max()) + 1 if row.numel() else 1, device=row.device, dtype=torch.float32)
        mean = total.scatter_add(1, row, scores.masked_fill(~layout.valid, 0))
        mean = mean / total.scatter_add(1, row, count).clamp(min=1)
        rank = mean.argsort(dim=1, descending=True, stable=True).argsort(1).gather(1, row)
        within = scores.argsort(dim=1, descending=True, stable=True).argsort(1)
        worth = -(rank * scores.shape[1] + within)
        return highest(worth.masked_fill(~layout.valid, torch.iinfo(worth.dtype).min), quota)


Worth = Generator[Tensor, Tensor, None]  # yields how much each token [V, N] adds, is sent the picks [V]


class Greedy(Selector):
    """Picks token after token, in all rows at once, and can go on from what is kept already.

    The number of picks is known on the CPU, so that none waits for the device. Rows that have enough pick on in vain.
    """

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        return self.grow(torch.zeros_like(evidence.layout.valid), quota, scores, evidence)

    @abstractmethod
    def worth(self, kept: Tensor, picks: int, scores: Tensor, evidence: Evidence) -> Worth:
        """Judge tokens by what is kept [V, N], then by each of the picks too."""

    def grow(self, kept: Tensor, more: Tensor, scores: Tensor, evidence: Evidence) -> Tensor:
        """Kept [V, N], more [V] on the CPU -> kept and more[v] others in row v."""
        picks, rows = int(more.max()) if len(more) else 0, torch.arange(len(kept), device=kept.device)
        with torch.autocast(kept.device.type, enabled=False):
            judge = self.worth(kept, picks, scores, evidence)
            worth, kept, free = next(judge), kept.clone(), evidence.layout.valid & ~kept
            for due in (torch.arange(picks)[:, None] < more).to(kept.device):
                pick = worth.masked_fill(~free, -torch.inf).argmax(1)
                kept[rows, pick] |= due
                free[rows, pick] = False
                worth = judge.send(pick)
        return kept


@dataclass(frozen=True)
class MaxMin(Greedy):
    """Farthest point after farthest point, whatever the scores say: DivPrune (arXiv 2503.02175).

    The distance is 1 - cosine of tokens as the language model would read them. The first pick is the token farthest
    from its nearest neighbour, each other one the farthest from all picked. O(N D) a pick.
    """

    def worth(self, kept: Tensor, picks: int, scores: Tensor, evidence: Evidence) -> Worth:
        valid, rows = evidence.layout.valid, torch.arange(len(kept), device=kept.device)
        x, begun = unit(evidence.tokens, valid), kept.any(1, keepdim=True)
        nearest = _closest(x, torch.where(begun, kept, valid))
        pick = yield -nearest
        nearest = nearest.masked_fill(~begun, -torch.inf)  # of those that are not kept it was but the first choice
        while True:
            nearest = nearest.maximum((x[rows, pick][:, None] @ x.mT)[:, 0])
            pick = yield -nearest


@dataclass(frozen=True)
class Coverage(Greedy):
    """Facility location, greedily: each pick adds most to the sum, over all tokens, of the cosine to the nearest pick.

    Greedy picks reach 1 - 1/e of the optimum (Nemhauser et al., Math. Programming 14, 1978). Scores do not matter. Of
    two tokens nearest to each other, which add the same, rounding decides. All N x N cosines of a row are held, and
    read at every pick.
    """

    def worth(self, kept: Tensor, picks: int, scores: Tensor, evidence: Evidence) -> Worth:
        valid, rows = evidence.layout.valid, torch.arange(len(kept), device=kept.device)
        x = unit(evidence.tokens, valid)
        alike = (x @ x.mT).masked_fill(~valid[:, None], -1)  # [V, pick, token]: padding is covered by nobody
        covered = alike.masked_fill(~kept[..., None], -1).amax(1, keepdim=True)
        while True:
            pick = yield (alike - covered).clamp_(min=0).sum(2)
            covered = covered.maximum(alike[rows, pick][:, None])


@dataclass(frozen=True)
class Dpp(Greedy):
    """Greedy MAP of a determinantal point process: CDPruner (arXiv 2506.10967), after Chen et al. (NeurIPS 2018).

    The kernel is q_i cos(i, j) q_j, of tokens as the language model would read them, with q the scores scaled to 0..1
    over all views of a sample (the code: over the whole batch). Once nothing is left that the picks do not span, the
    rest is filled by q; the code repeats picks there. O((K + D) N) a pick, K picks so far.
    """

    spanned: ClassVar[float] = 1e-5  # what a token adds beyond the picks, of at most 1, is float32's noise

    def worth(self, kept: Tensor, picks: int, scores: Tensor, evidence: Evidence) -> Worth:
        rows, given = torch.arange(len(kept), device=kept.device), kept.sum(1)
        q = _scaled(scores, evidence.layout)
        x = unit(evidence.tokens, evidence.layout.valid) * q[..., None]
        gain = x.square().sum(-1)
        begun = int(given.max()) if kept.numel() else 0
        factor = x.new_zeros(len(x), begun + picks, x.shape[1])  # Cholesky's, one row a pick
        for i in range(begun + picks):
            if i < begun:
                pick, counts = gain.masked_fill(~kept, -torch.inf).argmax(1), i < given  # the largest first: pivots
            else:
                spent = gain.amax(1, keepdim=True) <= self.spanned
                pick, counts = (yield torch.where(spent, q, gain)), torch.ones_like(given, dtype=torch.bool)
            own = gain[rows, pick]
            known = (factor[rows, :i, pick][:, None] @ factor[:, :i])[:, 0]
            rest = ((x[rows, pick][:, None] @ x.mT)[:, 0] - known) / own.clamp(min=self.spanned).sqrt()[:, None]
            factor[:, i] = rest.masked_fill(~(counts & (own > self.spanned))[:, None], 0)
            gain = gain - factor[:, i].square()
        yield q


@dataclass(frozen=True)
class Mixed(Selector):
    """`important` of the quota by score, the rest by another selector, which goes on from these if it is Greedy."""

    rest: Selector
    important: float = 0.5

    def __post_init__(self) -> None:
        _check_share("important", self.important)

    @property
    def needs(self) -> tuple[Need, ...]:
        return self.rest.needs

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        first = _part(quota, self.important)
        kept = highest(scores, first)
        if isinstance(self.rest, Greedy):
            return self.rest.grow(kept, quota - first, scores, evidence)
        layout = replace(evidence.layout, column=evidence.layout.column.masked_fill(kept, -1))
        others = replace(evidence, layout=layout)
        return kept | self.rest(scores.masked_fill(kept, -torch.inf), quota - first, others)


@dataclass(frozen=True)
class Deduplicate(Selector):
    """`important` of the quota by score, the rest by weeding out duplicates: VisPruner (arXiv 2412.01818).

    The others, the best first, are split into even and odd places; of the even ones the `pace` that are most like an
    odd one (cosine of encoder features) go; what stays of them, the most alike first, is put in front of the odd ones,
    round after round. The authors' code fails on odd counts; here the even places are one more. All N x N cosines of a
    row are held.
    """

    important: float = 0.5
    pace: ClassVar[int] = 8

    def __post_init__(self) -> None:
        _check_share("important", self.important)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Features(),)

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        layout, device = evidence.layout, scores.device
        first = _part(quota, self.important)
        left, want = layout.count - first, quota - first
        with torch.autocast(device.type, enabled=False):
            x = unit(evidence[Features()], layout.valid)
            alike = x @ x.mT
        rows = torch.arange(len(scores), device=device)[:, None, None]
        place = torch.arange(scores.shape[1], device=device)
        order = scores.argsort(dim=1, descending=True, stable=True)
        rest = order.gather(1, (place + first.to(device)[:, None]) % max(len(place), 1))
        while ((left > want) & (want > 0)).any():  # on the CPU
            cut = (left - want).clamp(max=self.pace).minimum((left + 1) // 2) * (want > 0)
            even, odd = rest[:, ::2], rest[:, 1::2]
            real_even, real_odd = ((left + 1) // 2).to(device)[:, None], (left // 2).to(device)[:, None]
            near = alike[rows, even[:, :, None], odd[:, None]]
            near = near.masked_fill((place[: odd.shape[1]] >= real_odd)[:, None], -torch.inf).amax(2)
            near = near.masked_fill(place[: even.shape[1]] >= real_even, -torch.inf)
            even = even.gather(1, near.argsort(dim=1, descending=True, stable=True))
            stays = place[: even.shape[1]]
            stays = (stays >= cut.to(device)[:, None]) & (stays < real_even)
            stays = torch.cat([stays, place[: odd.shape[1]] < real_odd], 1)
            left = left - cut
            rest = torch.cat([even, odd], 1).gather(1, (~stays).long().argsort(dim=1, stable=True))
            rest = rest[:, : int(left.max())]
        diverse = torch.zeros_like(layout.valid)
        diverse.scatter_(1, rest, place[: rest.shape[1]] < want.to(device)[:, None])
        return highest(scores, first) | diverse


@dataclass(frozen=True)
class LocalGlobal(Selector):
    """`share` of the quota by a shallow map, evenly over windows of the grid, the rest by score: VScan (2505.22654).

    A view has as many windows of `window` x `window` tokens as fit; the last of a row or column takes what is over.
    each="floor": every window gives the same number, and what that leaves of the quota goes by score too (the authors'
    code for LLaVA leaves it unused). each="ceil": every window may give one more, and the best of those are taken
    (their code for Qwen2.5-VL). `layer` counts the blocks that feed the projector, from 0.
    """

    window: int = 6
    share: float = 0.5
    layer: int = 5
    query: Stand = "cls"
    each: Literal["floor", "ceil"] = "floor"

    def __post_init__(self) -> None:
        _check_share("share", self.share)
        if self.window < 1:
            raise ValueError(f"window counts tokens along a side and must be at least 1, got {self.window}")
        if self.each not in ("floor", "ceil"):
            raise ValueError(f"each must be 'floor' or 'ceil', got {self.each!r}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Rows(self.query, (self.layer,)),)

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        valid = layout.valid
        size = (layout.grid.masked_fill(~valid[..., None], 0).amax(1, keepdim=True) + 1) // self.window
        size = size.clamp(min=1)
        cell = (layout.grid.clamp(min=0) // self.window).minimum(size - 1)
        cell = cell[..., 0] * size[..., 1] + cell[..., 1]
        shallow = evidence[self.needs[0]].mean((0, 2)).masked_fill(~valid, -torch.inf)
        local = _part(quota, self.share).to(scores.device)[:, None]
        windows = size.prod(2)
        most = local // windows if self.each == "floor" else -(-local // windows)
        among = (_rank_within(cell, shallow) < most) & valid
        kept = highest(shallow.masked_fill(~among, -torch.inf), among.sum(1).minimum(local[:, 0]))
        return kept | highest(scores.masked_fill(kept, -torch.inf), quota.to(scores.device) - kept.sum(1))


@dataclass(frozen=True)
class OutliersThenDraw(Selector):
    """Tokens whose score stands out, then tokens drawn by shallow [CLS] attention, redundant ones last.

    After the token-level correlation of arXiv 2407.14439, which has no public code: block, threshold, and how tokens
    are drawn are ours and unverified. Outliers lie above Q3 + 1.5 IQR of their view, the highest first. A token is
    redundant if its keys in block `layer` have a cosine of more than `alike` to an earlier token's. The draw is without
    replacement, by the hash of Random.
    """

    layer: int = 5
    alike: float = 0.9
    seed: int = 0

    @property
    def needs(self) -> tuple[Need, ...]:
        return (Rows("cls", (self.layer,)), Keys((self.layer,)))

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        valid, (rows, keys) = evidence.layout.valid, self.needs
        shallow = evidence[rows].mean((0, 2)).float().masked_fill(~valid, 0).clamp(min=1e-12)
        race = Random(self.seed)(evidence)[0].clamp(min=1e-7).log() / shallow  # Efraimidis and Spirakis, 2006
        with torch.autocast(scores.device.type, enabled=False):
            x = unit(evidence[keys][0].transpose(1, 2).flatten(2), valid)
            redundant = ((x @ x.mT) > self.alike).tril(-1).any(2)
        first = outliers(scores, evidence.layout)
        tier = torch.where(first, 2, (~redundant).long())
        own = torch.where(first, scores, race).masked_fill(~valid, -torch.inf)
        worth = tier * scores.shape[1] - _rank_within(tier, own)
        return highest(worth.masked_fill(~valid, -scores.shape[1]), quota)


def unit(x: Tensor, valid: Tensor) -> Tensor:
    """[V, N, D] float32 of length 1, zeros at padding."""
    return torch.nn.functional.normalize(x.float().masked_fill(~valid[..., None], 0), dim=-1)


def _closest(x: Tensor, among: Tensor) -> Tensor:
    """[V, N, D] unit vectors, [V, N] bool -> [V, N]: the greatest cosine to another token of those. 1 for none."""
    views, n, _ = x.shape
    size = max(1, CHUNK // max(views * n, 1))
    found = [x.new_zeros(views, 0)]
    for start in range(0, n, size):
        part = (x[:, start : start + size] @ x.mT).masked_fill(~among[:, None], -torch.inf)
        part.diagonal(start, 1, 2).fill_(-torch.inf)
        found.append(part.amax(2))
    return torch.cat(found, 1).nan_to_num(neginf=1.0)


def _scaled(scores: Tensor, layout: Layout) -> Tensor:
    """[V, N] scores -> 0..1 over all views of a sample, 0 at padding; CDPruner's 1e-6 keeps the least above 0."""
    owner = layout.sample.to(scores.device)
    low = scores.masked_fill(~layout.valid, torch.inf).amin(1)
    low = low.new_full((len(layout.key),), torch.inf).scatter_reduce(0, owner, low, "amin")[owner, None]
    high = scores.amax(1)
    high = high.new_full((len(layout.key),), -torch.inf).scatter_reduce(0, owner, high, "amax")[owner, None]
    return ((scores - low + 1e-6) / (high - low).clamp(min=1e-6)).masked_fill(~layout.valid, 0)


def _rank_within(cell: Tensor, scores: Tensor) -> Tensor:
    """[V, N] each: the rank of a token, from 0, among those of its cell; ties go to the lower index."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, cell.gather(1, order).argsort(dim=1, stable=True))
    sorted_cell = cell.gather(1, order)
    first = torch.searchsorted(sorted_cell, sorted_cell)
    rank = torch.arange(cell.shape[1], device=cell.device) - first
    return torch.empty_like(rank).scatter_(1, order, rank)


def _part(quota: Tensor, share: float) -> Tensor:
    """[V] -> [V], rounded down, as Python's int(quota * share) is."""
    return (quota.double() * share).long()


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a share of the quota and must lie in 0..1, got {value}")


def _lattice(layout: Layout, quota: Tensor) -> Tensor:
    """[V, N] bool: `quota` points spread evenly over the rectangle that a view's tokens span."""
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
    """Put `count` picks into the middles of as many equal spans of `size` cells.

    Return the number of the last pick up to cell `index`, and whether that cell is a pick. With count <= size the
    picks are distinct.
    """
    upto = (2 * count * (index + 1) + size - 1) // (2 * size)
    return upto - 1, upto > (2 * count * index + size - 1) // (2 * size)
