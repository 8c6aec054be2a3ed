"""How time is taken: everything once a round, in a shuffled order; medians over the rounds, with their intervals."""

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TypeVar

import torch

Name = TypeVar("Name")


Value = TypeVar("Value")


Times = Sequence[float]  # CPU and wall seconds, two


SURE = 0.95  # what an interval has to cover


@dataclass(frozen=True)
class Estimate:
    """A median, and the interval that holds it with a probability of `coverage`."""

    median: float
    low: float
    high: float
    coverage: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate the median by order statistics (sign test).

    The interval is the narrowest that covers with at least 95 %, or min to max where the values are too few for that.
    """
    n, ordered = len(values), sorted(values)
    covers = [1 - 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n for k in range((n + 1) // 2)]
    k = max((k for k, cover in enumerate(covers) if cover >= SURE), default=0)
    return Estimate(median(values), ordered[k], ordered[n - 1 - k], max(covers[k], 0))


def ratio(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """Estimate the median of what values are to others of the same rounds."""
    return estimate([a / b for a, b in zip(values, others, strict=True)])


def now(device: str | torch.device) -> Times:
    """CPU seconds of this process, all threads, and wall seconds, once the device has done what it was given."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)
    return time.process_time(), time.perf_counter()


def seconds(call: Callable[[], object], device: str | torch.device) -> Times:
    """CPU and wall seconds of one call, giving its results back included."""
    start = now(device)
    call()
    end = now(device)
    return end[0] - start[0], end[1] - start[1]


def shuffled(calls: Mapping[Name, Callable[[], Value]], count: int) -> dict[Name, list[Value]]:
    """Name -> what its call returned in each round, behind one round that does not count."""
    found: dict[Name, list[Value]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    for name in order:
        calls[name]()
    for _ in range(count):
        shuffle(order)
        for name in order:
            found[name].append(calls[name]())
    return found


def rounds(
    calls: Mapping[Name, Callable[[], object]], count: int, device: str | torch.device
) -> dict[Name, list[Times]]:
    """Name -> CPU and wall seconds of each round."""
    return shuffled({name: partial(seconds, call, device) for name, call in calls.items()}, count)


def coverage(count: int) -> str:
    """Tell how many rounds there are and what their intervals cover."""
    return f"{count} rounds, intervals of {estimate([0.0] * count).coverage:.1%}."


def line(cells: Iterable[object]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def head(names: Sequence[str]) -> tuple[str, str]:
    """Return its first two lines."""
    return line(names), line(["---"] * len(names))
