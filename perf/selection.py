"""Benchmark each selector against top-k, on random tokens.

    python perf/selection.py [--views 1 8 32] [--tokens 576 2880] [--width 1024] [--keep 64] [--rounds 5]
        [--threads 1] [--device cuda]

Prints a Markdown row for each selector, N and V: median CPU and wall milliseconds over the rounds, the ratio to top-k,
and the ratio of V views to V times one view, which is 1 if batching the views gains nothing. Every view keeps `--keep`
tokens.
"""

import argparse
from dataclasses import replace
from statistics import median

import torch

from vtcframe import Coverage, Deduplicate, Dpp, Grid, MaxMin, Mixed, Selector, TopK
from vtcframe.core.needs import HiddenStates
from vtcframe.profiling.timing import time_rounds
from vtcframe.testing import make_evidence

SELECTORS: tuple[Selector, ...] = (TopK(), Grid(), MaxMin(), Dpp(), Coverage(), Deduplicate(), Mixed(MaxMin()))
ON_DEVICE = "grid", "column", "centre"
HEAD = ("N", "V", "selector", "CPU ms", "wall ms", "wall / top-k", "wall / (V x one view)")


def make_inputs(views: int, tokens: int, width: int, keep: int, device: str):
    """Return scores [V, N], quota [V] and evidence of one sample with V = `views` views of N = `tokens` tokens."""
    torch.manual_seed(0)
    rows = next(r for r in range(int(tokens**0.5), 0, -1) if tokens % r == 0)
    cpu = make_evidence([HiddenStates()], {7: [(rows, tokens // rows)] * views}, width)
    layout = replace(cpu.layout, **{part: getattr(cpu.layout, part).to(device) for part in ON_DEVICE})
    readings = {need: x.to(device) for need, x in cpu.readings.items()}
    evidence = replace(cpu, tokens=cpu.tokens.to(device), layout=layout, readings=readings)
    return torch.rand(views, tokens, device=device), torch.full((views,), keep), evidence


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, nargs="+", default=[576, 2880])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--keep", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print("| " + " | ".join(HEAD) + " |")
    print("|" + " --- |" * len(HEAD))
    for tokens in options.tokens:
        per_view: dict[str, float] = {}
        for views in options.views:
            scores, quota, evidence = make_inputs(views, tokens, options.width, options.keep, options.device)
            calls = {
                str(selector): (lambda s=selector, x=scores, q=quota, e=evidence: s(x, q, e)) for selector in SELECTORS
            }
            times_of = time_rounds(calls, options.rounds, options.device)
            wall = {name: 1000 * median(w for _, w in times) for name, times in times_of.items()}
            top = wall[str(TopK())]
            for name, times in times_of.items():
                per_view.setdefault(name, wall[name] / views)
                cells = (
                    *(tokens, views, name),
                    f"{1000 * median(c for c, _ in times):.2f}",
                    f"{wall[name]:.2f}",
                    f"{wall[name] / top:.1f}",
                    f"{wall[name] / (views * per_view[name]):.2f}",
                )
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
