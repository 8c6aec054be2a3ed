"""Division of budgets among views, and shares of quotas."""

from math import inf

import torch
from torch import Tensor

from vtcframe.core.layout import Layout


def share_of_quota(quota: Tensor, share: float) -> Tensor:
    """[V] -> [V], quota * share rounded down, as Python's int(quota * share)."""
    return (quota.double() * share).long()


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless the option `name`, a share of the quota, lies in 0..1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a share of the quota and must lie in 0..1, got {value}")


def apportion(budget: Tensor, weight: Tensor, layout: Layout) -> Tensor:
    """Budget [P], weight [V] -> quota [V]: each sample's budget, divided in proportion to the weights of its views.

    A view's quota is at most its number of tokens; the excess goes to the other views. The largest remainders are
    rounded up (Hamilton's method), and ties go to the first view. Views of weight 0 or less get only the tokens that
    exceed the capacity of all others.
    """
    quota = torch.zeros_like(layout.sample)
    capacity = layout.count.tolist()
    weights = weight.cpu().double().nan_to_num(0, 0, 0).clamp(min=0).tolist()  # the pipeline reports broken scores
    views_of: list[list[int]] = [[] for _ in budget]
    for v, p in enumerate(layout.sample.tolist()):
        views_of[p].append(v)
    for total, views in zip(budget.tolist(), views_of, strict=True):
        quota[views] = quota.new_tensor(
            proportional_shares(total, [weights[v] for v in views], [capacity[v] for v in views])
        )
    return quota


def proportional_shares(total: int, weight: list[float], capacity: list[int]) -> list[int]:
    """Divide `total` in proportion to `weight` into whole shares, none above its `capacity`.

    The excess of full shares is divided among the others. The largest remainders are rounded up, and ties go to the
    first. If all weights are 0, the division is even. The shares sum to `total`, or to all of the capacity if that is
    less.
    """
    shares = [0] * len(capacity)
    remaining = min(total, sum(capacity))
    exact: dict[int, float] = {}
    # in the order in which shares become full
    order = sorted(range(len(capacity)), key=lambda v: (capacity[v] / weight[v] if weight[v] else inf, capacity[v], v))
    while order:
        weight_sum = sum(weight[v] for v in order)
        exact = {v: remaining * (weight[v] / weight_sum if weight_sum else 1 / len(order)) for v in order}
        if exact[order[0]] < capacity[order[0]]:  # if this share is not full, no later share is
            break
        shares[order[0]] = capacity[order[0]]
        remaining -= capacity[order.pop(0)]
    for v in order:
        shares[v] = int(exact[v])
    unassigned = remaining - sum(shares[v] for v in order)
    for v in sorted(order, key=lambda v: (shares[v] - exact[v], v))[:unassigned]:
        shares[v] += 1
    return shares
