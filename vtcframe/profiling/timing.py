"""Time measurement in rounds of shuffled order, and medians over the rounds with confidence intervals."""

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


Times = Sequence[float]  # two values: CPU seconds and wall seconds


SURE = 0.95  # coverage that an interval must reach


@dataclass(frozen=True)
class Estimate:
    """A median with an interval that contains the true median with probability `coverage`."""

    median: float
    low: float
    high: float
    coverage: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate the median by order statistics (sign test).

    The interval is the narrowest with a coverage of at least 95 %. With too few values it is min to max.
    """
    ordered = sorted(values)
    n = len(ordered)
    coverages = [1 - 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n for k in range((n + 1) // 2)]
    k = max((k for k, coverage in enumerate(coverages) if coverage >= SURE), default=0)
    return Estimate(median(values), ordered[k], ordered[n - 1 - k], max(coverages[k], 0))


def ratio(values: Sequence[float], others: Sequence[float]) -> Estimate:
    """Estimate the median of values / others, paired by round."""
    return estimate([a / b for a, b in zip(values, others, strict=True)])


def read_clocks(device: str | torch.device) -> Times:
    """Synchronize the device and return the CPU seconds of this process (all threads) and the wall seconds."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)
    return time.process_time(), time.perf_counter()


def time_call(call: Callable[[], object], device: str | torch.device) -> Times:
    """Return CPU and wall seconds of one call. Freeing the returned value is included."""
    start = read_clocks(device)
    call()
    end = read_clocks(device)
    return end[0] - start[0], end[1] - start[1]


def run_rounds(calls: Mapping[Name, Callable[[], Value]], count: int) -> dict[Name, list[Value]]:
    """Run all calls in `count` rounds of shuffled order, after one warm-up round.

    Returns for each name the values that its call returned, one per round.
    """
    values: dict[Name, list[Value]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    for name in order:
        calls[name]()
    for _ in range(count):
        shuffle(order)
        for name in order:
            values[name].append(calls[name]())
    return values


def time_rounds(
    calls: Mapping[Name, Callable[[], object]], count: int, device: str | torch.device
) -> dict[Name, list[Times]]:
    """Return for each name the CPU and wall seconds of its call in each round of `run_rounds`."""
    return run_rounds({name: partial(time_call, call, device) for name, call in calls.items()}, count)


def describe_rounds(count: int) -> str:
    """Return a sentence with the number of rounds and the coverage of their intervals."""
    return f"{count} rounds, intervals of {estimate([0.0] * count).coverage:.1%}."


def format_row(cells: Iterable[object]) -> str:
    """Return one row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def format_head(names: Sequence[str]) -> tuple[str, str]:
    """Return the first two lines of a Markdown table: the column names and the rule below them."""
    return format_row(names), format_row(["---"] * len(names))
