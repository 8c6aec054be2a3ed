"""Cosine similarities and matrix products in float32."""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2**24  # number of similarities in memory at a time when the complete matrix is not needed


def unit_vectors(x: Tensor, valid: Tensor) -> Tensor:
    """[V, N, D] -> [V, N, D] float32 of length 1, zeros at padding."""
    return torch.nn.functional.normalize(x.float().masked_fill(~valid[..., None], 0), dim=-1)


def closest(x: Tensor, among: Tensor) -> Tensor:
    """Unit vectors [V, N, D], among [V, N] bool -> [V, N]: largest cosine to another token of `among`; 1 if none."""
    views, n, _ = x.shape
    size = max(1, CHUNK // max(views * n, 1))
    parts = [x.new_zeros(views, 0)]
    for start in range(0, n, size):
        part = (x[:, start : start + size] @ x.mT).masked_fill(~among[:, None], -torch.inf)
        part.diagonal(start, 1, 2).fill_(-torch.inf)
        parts.append(part.amax(2))
    return torch.cat(parts, 1).nan_to_num(neginf=1.0)


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Return the matrix product in float32, even under autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """[V, N, C], [V, M, C] -> [V, N, M], the cosine of each pair."""
    return inner_product(F.normalize(a, dim=-1), F.normalize(b, dim=-1).mT)


def group_sums(values: Tensor, to: Tensor, joins: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Values [V, N, C], to [V, N], joins [V, N] bool -> sums [V, count, C] and numbers [V, count, 1] of members.

    `to` is the group, in 0..count-1, that a token joins; only tokens in `joins` are members.
    """
    share = (to[..., None] == torch.arange(count, device=to.device)) & joins[..., None]
    return inner_product(share.mT, values), share.sum(1)[..., None]
