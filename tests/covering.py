"""Few cases that cover every pair of axis values."""

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any


def pairs(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Pick greedily from the full product, always the case that covers most pairs not covered yet."""
    every = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    covered = {id(case): set(combinations([(name, str(value)) for name, value in case.items()], 2)) for case in every}
    missing, chosen = set().union(*covered.values()), []
    while missing:
        best = max(every, key=lambda case: len(covered[id(case)] & missing))
        missing -= covered[id(best)]
        chosen.append(best)
    return chosen
