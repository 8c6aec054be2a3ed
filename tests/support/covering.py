"""Few cases that cover every pair of axis values."""

from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from itertools import combinations, product
from typing import Any

Possible = Callable[[dict[str, Any]], bool]


def cases(axes: Mapping[str, Sequence[Any]], possible: Possible = lambda case: True) -> list[dict[str, Any]]:
    """Return the full product, as far as it is possible."""
    every = (dict(zip(axes, values, strict=True)) for values in product(*axes.values()))
    return [case for case in every if possible(case)]


def pairs(axes: Mapping[str, Sequence[Any]], possible: Possible = lambda case: True) -> list[dict[str, Any]]:
    """Pick greedily from the full product, always the case that covers most pairs not covered yet."""
    every = [
        (set(combinations([(name, str(value)) for name, value in case.items()], 2)), case)
        for case in cases(axes, possible)
    ]
    missing, chosen = set[Any]().union(*(own for own, _ in every)), []
    heap = [(-len(own), number) for number, (own, _) in enumerate(every)]  # sorted as it is: all cover as many
    while missing:
        _, number = heappop(heap)
        own, case = every[number]
        left = -len(own & missing)
        if heap and left > heap[0][0]:  # what a case covers only shrinks: looked at again once it is first
            heappush(heap, (left, number))
            continue
        missing -= own
        chosen.append(case)
    return chosen
