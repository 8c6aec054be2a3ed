"""TODO: vtcframe/components/diverse_selectors.py."""

from abc import abstractmethod
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.needs import HiddenStates, Need
from vtcframe.core.verbs import Selector
from vtcframe.ops.gather import highest
from vtcframe.ops.quotas import check_share, share_of_quota
from vtcframe.ops.similarity import closest, unit_vectors

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
        x, begun = unit_vectors(evidence.tokens, valid), kept.any(1, keepdim=True)
        nearest = closest(x, torch.where(begun, kept, valid))
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
        x = unit_vectors(evidence.tokens, valid)
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
        q = scale_scores(scores, evidence.layout)
        x = unit_vectors(evidence.tokens, evidence.layout.valid) * q[..., None]
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
        check_share("important", self.important)

    @property
    def needs(self) -> tuple[Need, ...]:
        return self.rest.needs

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        first = share_of_quota(quota, self.important)
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
        check_share("important", self.important)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (HiddenStates(),)

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        layout, device = evidence.layout, scores.device
        first = share_of_quota(quota, self.important)
        left, want = layout.count - first, quota - first
        with torch.autocast(device.type, enabled=False):
            x = unit_vectors(evidence[HiddenStates()], layout.valid)
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


def scale_scores(scores: Tensor, layout: Layout) -> Tensor:
    """[V, N] scores -> 0..1 over all views of a sample, 0 at padding; CDPruner's 1e-6 keeps the least above 0."""
    owner = layout.sample.to(scores.device)
    low = scores.masked_fill(~layout.valid, torch.inf).amin(1)
    low = low.new_full((len(layout.key),), torch.inf).scatter_reduce(0, owner, low, "amin")[owner, None]
    high = scores.amax(1)
    high = high.new_full((len(layout.key),), -torch.inf).scatter_reduce(0, owner, high, "amax")[owner, None]
    return ((scores - low + 1e-6) / (high - low).clamp(min=1e-6)).masked_fill(~layout.valid, 0)
