"""Few cases that cover every pair of axis values."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

Possible = Callable[[dict[str, Any]], bool]


def cases(axes: Mapping[str, Sequence[Any]], possible: Possible = lambda case: True) -> list[dict[str, Any]]:
    """Return the full product, as far as it is possible."""
    every = (dict(zip(axes, values, strict=True)) for values in product(*axes.values()))
    return [case for case in every if possible(case)]


def pairs(axes: Mapping[str, Sequence[Any]], possible: Possible = lambda case: True) -> list[dict[str, Any]]:
    """Pick greedily from the full product, always the case that covers most pairs not covered yet."""
    every = cases(axes, possible)
    covered = {id(case): set(combinations([(name, str(value)) for name, value in case.items()], 2)) for case in every}
    missing, chosen = set().union(*covered.values()), []
    while missing:
        best = max(every, key=lambda case: len(covered[id(case)] & missing))
        missing -= covered[id(best)]
        chosen.append(best)
    return chosen
