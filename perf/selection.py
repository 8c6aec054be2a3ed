"""What each selector costs beside top-k, on random tokens.

    python perf/selection.py [--views 1 8 32] [--tokens 576 2880] [--width 1024] [--keep 64] [--rounds 5]
        [--threads 1] [--device cuda]

Prints a Markdown row for each selector, N and V: median CPU and wall milliseconds over the rounds, the ratio to top-k,
and what V views cost beside V times one view: 1 where nothing is gained by taking them together. Every view keeps
`--keep` tokens.
"""

import argparse
from dataclasses import replace
from statistics import median

import torch

from vtcframe import Coverage, Deduplicate, Dpp, Grid, MaxMin, Mixed, Selector, TopK
from vtcframe.core.needs import HiddenStates
from vtcframe.profiling.timing import rounds
from vtcframe.testing import make_evidence

SELECTORS: tuple[Selector, ...] = (TopK(), Grid(), MaxMin(), Dpp(), Coverage(), Deduplicate(), Mixed(MaxMin()))
ON_DEVICE = "grid", "column", "centre"
HEAD = ("N", "V", "selector", "CPU ms", "wall ms", "wall / top-k", "wall / (V x one view)")


def given(views: int, tokens: int, width: int, keep: int, device: str):
    """Return scores, quota and evidence of a sample with so many views."""
    torch.manual_seed(0)
    rows = next(r for r in range(int(tokens**0.5), 0, -1) if tokens % r == 0)
    made = make_evidence([HiddenStates()], {7: [(rows, tokens // rows)] * views}, width)
    layout = replace(made.layout, **{part: getattr(made.layout, part).to(device) for part in ON_DEVICE})
    found = {need: x.to(device) for need, x in made.readings.items()}
    evidence = replace(made, tokens=made.tokens.to(device), layout=layout, readings=found)
    return torch.rand(views, tokens, device=device), torch.full((views,), keep), evidence


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--views", type=int, nargs="+", default=[1, 8, 32])
    options.add_argument("--tokens", type=int, nargs="+", default=[576, 2880])
    options.add_argument("--width", type=int, default=1024)
    options.add_argument("--keep", type=int, default=64)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--device", default="cpu")
    told = options.parse_args(arguments)
    torch.set_num_threads(told.threads)
    print("| " + " | ".join(HEAD) + " |")
    print("|" + " --- |" * len(HEAD))
    for tokens in told.tokens:
        one: dict[str, float] = {}
        for views in told.views:
            scores, quota, evidence = given(views, tokens, told.width, told.keep, told.device)
            calls = {
                str(selector): (lambda s=selector, x=scores, q=quota, e=evidence: s(x, q, e)) for selector in SELECTORS
            }
            taken = rounds(calls, told.rounds, told.device)
            wall = {name: 1000 * median(w for _, w in times) for name, times in taken.items()}
            top = wall[str(TopK())]
            for name, times in taken.items():
                one.setdefault(name, wall[name] / views)
                cells = (
                    *(tokens, views, name),
                    f"{1000 * median(c for c, _ in times):.2f}",
                    f"{wall[name]:.2f}",
                    f"{wall[name] / top:.1f}",
                    f"{wall[name] / (views * one[name]):.2f}",
                )
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
