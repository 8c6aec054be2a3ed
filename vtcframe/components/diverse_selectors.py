"""Selectors that keep diverse tokens: greedy selectors, de-duplication, and mixtures with the highest scores."""

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

Worth = Generator[Tensor, Tensor, None]  # yields the marginal gain of each token [V, N] and receives the picks [V]


class Greedy(Selector):
    """Base of selectors that pick one token after another, in all rows at once.

    Selection can continue from tokens that are already kept. The number of picks is computed on the CPU, so that no
    pick waits for the device. Rows that are full keep iterating; their picks are ignored.
    """

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        return self.grow(torch.zeros_like(evidence.layout.valid), quota, scores, evidence)

    @abstractmethod
    def worth(self, kept: Tensor, picks: int, scores: Tensor, evidence: Evidence) -> Worth:
        """Yield the marginal gain of each token [V, N] after the tokens kept [V, N], and again after each pick."""

    def grow(self, kept: Tensor, count: Tensor, scores: Tensor, evidence: Evidence) -> Tensor:
        """Kept [V, N], count [V] on the CPU -> kept [V, N] with count[v] additional tokens in row v."""
        picks = int(count.max()) if len(count) else 0
        rows = torch.arange(len(kept), device=kept.device)
        with torch.autocast(kept.device.type, enabled=False):
            generator = self.worth(kept, picks, scores, evidence)
            worth = next(generator)
            free = evidence.layout.valid & ~kept
            kept = kept.clone()
            for counts in (torch.arange(picks)[:, None] < count).to(kept.device):
                pick = worth.masked_fill(~free, -torch.inf).argmax(1)
                kept[rows, pick] |= counts
                free[rows, pick] = False
                worth = generator.send(pick)
        return kept


@dataclass(frozen=True)
class MaxMin(Greedy):
    """Farthest-point selection, independent of the scores: DivPrune (arXiv 2503.02175).

    The distance is 1 - cosine of tokens as the language model would read them. The first pick is the token farthest
    from its nearest neighbour; each later pick is the token farthest from all picks. O(N D) per pick.
    """

    def worth(self, kept: Tensor, picks: int, scores: Tensor, evidence: Evidence) -> Worth:
        valid = evidence.layout.valid
        rows = torch.arange(len(kept), device=kept.device)
        x = unit_vectors(evidence.tokens, valid)
        keeps_any = kept.any(1, keepdim=True)
        nearest = closest(x, torch.where(keeps_any, kept, valid))
        pick = yield -nearest
        # without kept tokens, distances to all neighbours count for the first pick only
        nearest = nearest.masked_fill(~keeps_any, -torch.inf)
        while True:
            nearest = nearest.maximum((x[rows, pick][:, None] @ x.mT)[:, 0])
            pick = yield -nearest


@dataclass(frozen=True)
class Coverage(Greedy):
    """Greedy facility location: each pick maximises the sum, over all tokens, of the cosine to the nearest pick.

    Greedy picks reach 1 - 1/e of the optimum (Nemhauser et al., Math. Programming 14, 1978). Scores do not matter. Two
    tokens that are each other's nearest have the same gain, so that rounding decides between them. All N x N cosines of
    a row are kept in memory and read at every pick.
    """

    def worth(self, kept: Tensor, picks: int, scores: Tensor, evidence: Evidence) -> Worth:
        valid = evidence.layout.valid
        rows = torch.arange(len(kept), device=kept.device)
        x = unit_vectors(evidence.tokens, valid)
        similarity = (x @ x.mT).masked_fill(~valid[:, None], -1)  # [V, pick, token]: no pick covers padding
        coverage = similarity.masked_fill(~kept[..., None], -1).amax(1, keepdim=True)
        while True:
            pick = yield (similarity - coverage).clamp_(min=0).sum(2)
            coverage = coverage.maximum(similarity[rows, pick][:, None])


@dataclass(frozen=True)
class Dpp(Greedy):
    """Greedy MAP of a determinantal point process: CDPruner (arXiv 2506.10967), after Chen et al. (NeurIPS 2018).

    The kernel is q_i cos(i, j) q_j, of tokens as the language model would read them. q is the score, scaled to 0..1
    over all views of a sample (the authors' code: over the batch). Once the picks span all tokens, the remaining quota
    is filled by q; the authors' code repeats picks then. O((K + D) N) per pick, after K picks.
    """

    # gains up to this value are float32 rounding noise: the picks span the token (gains are at most 1)
    spanned: ClassVar[float] = 1e-5

    def worth(self, kept: Tensor, picks: int, scores: Tensor, evidence: Evidence) -> Worth:
        rows = torch.arange(len(kept), device=kept.device)
        kept_count = kept.sum(1)
        q = scale_scores(scores, evidence.layout)
        x = unit_vectors(evidence.tokens, evidence.layout.valid) * q[..., None]
        gain = x.square().sum(-1)
        initial = int(kept_count.max()) if kept.numel() else 0
        factor = x.new_zeros(len(x), initial + picks, x.shape[1])  # the Cholesky factor, a row for each pick
        for i in range(initial + picks):
            if i < initial:
                pick = gain.masked_fill(~kept, -torch.inf).argmax(1)  # the largest gain first, as pivoting does
                counts = i < kept_count
            else:
                is_spanned = gain.amax(1, keepdim=True) <= self.spanned
                pick = yield torch.where(is_spanned, q, gain)
                counts = torch.ones_like(kept_count, dtype=torch.bool)
            pivot = gain[rows, pick]
            projection = (factor[rows, :i, pick][:, None] @ factor[:, :i])[:, 0]
            residual = (x[rows, pick][:, None] @ x.mT)[:, 0] - projection
            residual = residual / pivot.clamp(min=self.spanned).sqrt()[:, None]
            factor[:, i] = residual.masked_fill(~(counts & (pivot > self.spanned))[:, None], 0)
            gain = gain - factor[:, i].square()
        yield q


@dataclass(frozen=True)
class Mixed(Selector):
    """A share `important` of the quota by score, the rest by another selector.

    A `Greedy` selector continues from the tokens that are already kept; any other selects among the remaining tokens.
    """

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
    """A share `important` of the quota by score, the rest by removing duplicates: VisPruner (arXiv 2412.01818).

    The other tokens are sorted by score and reduced in rounds. A round splits them into even and odd places. It drops
    the `pace` even tokens that are most similar to an odd token (cosine of encoder features), and puts the remaining
    even tokens, the most similar first, before the odd tokens. The authors' code fails on odd numbers of tokens; here
    the even places then have one token more. All N x N cosines of a row are kept in memory.
    """

    important: float = 0.5
    pace: ClassVar[int] = 8

    def __post_init__(self) -> None:
        check_share("important", self.important)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (HiddenStates(),)

    def __call__(self, scores: Tensor, quota: Tensor, evidence: Evidence) -> Tensor:
        layout = evidence.layout
        device = scores.device
        first = share_of_quota(quota, self.important)
        remaining = layout.count - first
        target = quota - first
        with torch.autocast(device.type, enabled=False):
            x = unit_vectors(evidence[HiddenStates()], layout.valid)
            similarity = x @ x.mT
        rows = torch.arange(len(scores), device=device)[:, None, None]
        place = torch.arange(scores.shape[1], device=device)
        order = scores.argsort(dim=1, descending=True, stable=True)
        rest = order.gather(1, (place + first.to(device)[:, None]) % max(len(place), 1))
        while ((remaining > target) & (target > 0)).any():  # on the CPU
            cut = (remaining - target).clamp(max=self.pace).minimum((remaining + 1) // 2) * (target > 0)
            even = rest[:, ::2]
            odd = rest[:, 1::2]
            real_even = ((remaining + 1) // 2).to(device)[:, None]
            real_odd = (remaining // 2).to(device)[:, None]
            near = similarity[rows, even[:, :, None], odd[:, None]]
            near = near.masked_fill((place[: odd.shape[1]] >= real_odd)[:, None], -torch.inf).amax(2)
            near = near.masked_fill(place[: even.shape[1]] >= real_even, -torch.inf)
            even = even.gather(1, near.argsort(dim=1, descending=True, stable=True))
            stays = place[: even.shape[1]]
            stays = (stays >= cut.to(device)[:, None]) & (stays < real_even)
            stays = torch.cat([stays, place[: odd.shape[1]] < real_odd], 1)
            remaining = remaining - cut
            rest = torch.cat([even, odd], 1).gather(1, (~stays).long().argsort(dim=1, stable=True))
            rest = rest[:, : int(remaining.max())]
        diverse = torch.zeros_like(layout.valid)
        diverse.scatter_(1, rest, place[: rest.shape[1]] < target.to(device)[:, None])
        return highest(scores, first) | diverse


def scale_scores(scores: Tensor, layout: Layout) -> Tensor:
    """[V, N] scores -> [V, N], scaled to 0..1 over all views of a sample, 0 at padding.

    CDPruner adds 1e-6, which keeps the lowest score above 0.
    """
    owner = layout.sample.to(scores.device)
    low = scores.masked_fill(~layout.valid, torch.inf).amin(1)
    low = low.new_full((len(layout.key),), torch.inf).scatter_reduce(0, owner, low, "amin")[owner, None]
    high = scores.amax(1)
    high = high.new_full((len(layout.key),), -torch.inf).scatter_reduce(0, owner, high, "amax")[owner, None]
    return ((scores - low + 1e-6) / (high - low).clamp(min=1e-6)).masked_fill(~layout.valid, 0)
