"""Clustering of tokens by density peaks (DPC-kNN)."""

import torch
from torch import Tensor

from vtcframe.ops.gather import highest


def cluster_by_peaks(x: Tensor, among: Tensor, quota: Tensor, neighbours: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [V, N, D], among [V, N], quota [V] -> centres [V, N] bool, sums [V, N, D] and counts [V, N] of members.

    Row v has quota[v] centres. Every other token of `among` joins the nearest centre; a centre is not counted as its
    own member. The number of neighbours is at most the number of centres, as in HoliTom's code.
    """
    score, away = density_peaks(x, among, quota.clamp(max=neighbours))
    centre = highest(score, quota)
    to = nearest_peak(score, away, quota)
    joins = among & ~centre & centre.any(1, keepdim=True)
    to = to + torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    total = torch.zeros_like(x).flatten(0, 1).index_add_(0, to[joins], x[joins]).view_as(x)
    return centre, total, torch.bincount(to[joins], minlength=among.numel()).view(among.shape)


def density_peaks(x: Tensor, among: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [V, N, D], among [V, N], neighbours [V] -> peak scores [V, N] and distances [V, N, N].

    Density peaks over nearest neighbours, which include the token itself (Du et al., Knowledge-Based Systems 99, 2016).
    The density is exp of minus the mean squared distance to the neighbours; the score is the density times the distance
    to the nearest denser token. It is -inf for tokens outside `among`. Distances are divided by sqrt(D). The authors'
    codes add noise of 1e-6 to the density; this function adds none.
    """
    x = x.masked_fill(~among[..., None], 0)
    away = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / x.shape[2] ** 0.5
    pair = among[:, None] & among[..., None]
    most = min(int(neighbours.max()) if len(neighbours) else 0, x.shape[1])
    near = away.masked_fill(~pair, torch.inf).topk(most, largest=False).values.square()
    counts = near.isfinite() & (torch.arange(most) < neighbours[:, None]).to(x.device)[:, None]
    density = (-near.masked_fill(~counts, 0).sum(2) / counts.sum(2).clamp(min=1)).exp()
    farthest = away.masked_fill(~pair, 0).flatten(1).amax(1) if away.numel() else away.new_zeros(len(x))
    higher = (density[:, None] > density[..., None]) & pair
    peak = torch.where(higher, away, farthest[:, None, None]).amin(2)
    return (peak * density).masked_fill(~among, -torch.inf), away


def nearest_peak(score: Tensor, away: Tensor, quota: Tensor) -> Tensor:
    """[V, N]: for each token the index of the nearest of the row's `quota` highest peaks; a peak is its own nearest."""
    centre = highest(score, quota)
    to = away.masked_fill(~centre[:, None], torch.inf).argmin(2)
    return torch.where(centre, torch.arange(to.shape[1], device=to.device), to)
