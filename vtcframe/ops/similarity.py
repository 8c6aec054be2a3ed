"""TODO: vtcframe/ops/similarity.py."""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2**24  # similarities held at once where not all are needed


def unit_vectors(x: Tensor, valid: Tensor) -> Tensor:
    """[V, N, D] float32 of length 1, zeros at padding."""
    return torch.nn.functional.normalize(x.float().masked_fill(~valid[..., None], 0), dim=-1)


def closest(x: Tensor, among: Tensor) -> Tensor:
    """[V, N, D] unit vectors, [V, N] bool -> [V, N]: the greatest cosine to another token of those. 1 for none."""
    views, n, _ = x.shape
    size = max(1, CHUNK // max(views * n, 1))
    found = [x.new_zeros(views, 0)]
    for start in range(0, n, size):
        part = (x[:, start : start + size] @ x.mT).masked_fill(~among[:, None], -torch.inf)
        part.diagonal(start, 1, 2).fill_(-torch.inf)
        found.append(part.amax(2))
    return torch.cat(found, 1).nan_to_num(neginf=1.0)


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product in float32, also where the caller's autocast would round it."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """[V, N, C], [V, M, C] -> [V, N, M]."""
    return inner_product(F.normalize(a, dim=-1), F.normalize(b, dim=-1).mT)


def group_sums(values: Tensor, to: Tensor, joins: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """[V, N, C], [V, N] which of `count`, [V, N] bool -> [V, count, C] added up, [V, count, 1] how many."""
    share = (to[..., None] == torch.arange(count, device=to.device)) & joins[..., None]
    return inner_product(share.mT, values), share.sum(1)[..., None]
