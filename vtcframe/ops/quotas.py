"""TODO: vtcframe/ops/quotas.py."""

from math import inf

import torch
from torch import Tensor

from vtcframe.core.layout import Layout


def share_of_quota(quota: Tensor, share: float) -> Tensor:
    """[V] -> [V], rounded down, as Python's int(quota * share) is."""
    return (quota.double() * share).long()


def check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a share of the quota and must lie in 0..1, got {value}")


def apportion(budget: Tensor, weight: Tensor, layout: Layout) -> Tensor:
    """Budget [P], weight [V] -> quota [V]: each sample's budget in proportion to its views' weights.

    No view gets more than it has tokens; what it cannot take goes to the others. Largest remainders are rounded up
    (Hamilton's method), of equals the first. Views of weight 0 or less get what all others cannot take.
    """
    quota, room = torch.zeros_like(layout.sample), layout.count.tolist()
    weights = weight.cpu().double().nan_to_num(0, 0, 0).clamp(min=0).tolist()  # the pipeline tells of broken scores
    mine: list[list[int]] = [[] for _ in budget]
    for v, p in enumerate(layout.sample.tolist()):
        mine[p].append(v)
    for total, views in zip(budget.tolist(), mine, strict=True):
        quota[views] = quota.new_tensor(
            proportional_shares(total, [weights[v] for v in views], [room[v] for v in views])
        )
    return quota


def proportional_shares(total: int, weight: list[float], room: list[int]) -> list[int]:
    quota, left, part = [0] * len(room), min(total, sum(room)), {}
    order = sorted(range(len(room)), key=lambda v: (room[v] / weight[v] if weight[v] else inf, room[v], v))
    while order:  # the first that is not filled to the brim ends it: no later one will be
        heft = sum(weight[v] for v in order)
        part = {v: left * (weight[v] / heft if heft else 1 / len(order)) for v in order}
        if part[order[0]] < room[order[0]]:
            break
        quota[order[0]] = room[order[0]]
        left -= room[order.pop(0)]
    for v in order:
        quota[v] = int(part[v])
    short = left - sum(quota[v] for v in order)
    for v in sorted(order, key=lambda v: (quota[v] - part[v], v))[:short]:
        quota[v] += 1
    return quota
