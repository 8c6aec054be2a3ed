"""How the scripts here take time: every variant once a round, in a shuffled order; medians over the rounds."""

import math
import os
import platform
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
import transformers

Name = TypeVar("Name")


def seconds(call: Callable[[], object], device: str) -> tuple[float, float]:
    """CPU and wall seconds of one call, giving its results back included."""
    _finish(device)
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    _finish(device)
    return time.process_time() - cpu, time.perf_counter() - wall


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def rounds(
    calls: Mapping[Name, Callable[[], object]], count: int, device: str
) -> dict[Name, list[tuple[float, float]]]:
    """Name -> (CPU, wall) of each round, behind one round that does not count."""
    taken: dict[Name, list[tuple[float, float]]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0).shuffle
    for name in order:
        calls[name]()
    for _ in range(count):
        shuffle(order)
        for name in order:
            taken[name].append(seconds(calls[name], device))
    return taken


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Low and high end of the median's interval by order statistics, and its coverage (binomial, p = 1/2)."""
    n, ordered = len(values), sorted(values)
    covers = [1 - 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n for k in range((n + 1) // 2)]
    k = max((k for k, cover in enumerate(covers) if cover >= 0.95), default=0)
    return ordered[k], ordered[n - 1 - k], max(covers[k], 0)


def spread(values: Sequence[float]) -> str:
    """Median of the values with its interval."""
    low, high, _ = interval(values)
    return f"{median(values):.3f} [{low:.3f}, {high:.3f}]"


def ratio(values: Sequence[float], plain: Sequence[float]) -> str:
    """Median of the paired ratios with its interval."""
    return spread([a / b for a, b in zip(values, plain, strict=True)])


def machine(device: str) -> str:
    """What the figures were taken on."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    gpu = f"{torch.cuda.get_device_name()}, " if device == "cuda" else ""
    return (
        f"{gpu}{found[1] if found else platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f} at the start; "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def coverage(count: int) -> str:
    """How many rounds there are and what their intervals cover."""
    return f"{count} rounds, intervals of {interval([0.0] * count)[2]:.1%}."


def line(cells: Iterable[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def head(names: Sequence[str]) -> tuple[str, str]:
    """Its first two lines."""
    return line(names), line(["---"] * len(names))
