"""The table of configs/zoo.yaml with intervals: reads the predictions.jsonl that it leaves.

    vtcframe predict --config configs/zoo.yaml
    python tiny/zoo.py runs/zoo/predictions.jsonl

Prints a Markdown table for each budget: accuracy by type of question, on attributes (all types but counting) and on
all, the lowest mean over the types that leaves one out, and how much more attributes are right than with the untouched
model and with VtcCls, with 95 % intervals of a paired bootstrap over pictures; and the visual tokens that are left in
the end and those that a layer of the language model reads, mean over its layers. Several seeds of a method become one
line, with their lowest and highest.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from scenes import COUNT

from vtcframe.data.results import Prediction, format_budget

UNPRUNED, OURS, DRAWS = "unpruned", "VtcCls(last=3)", 2000
Answers = dict[str, Prediction]  # by the question's id


def read(path: Path) -> dict[str, dict[str, list[Answers]]]:
    """Budget -> method without its seed -> what each seed answered."""
    runs: dict[tuple[str, str], Answers] = {}
    with path.open(encoding="utf-8") as lines:
        for row in (Prediction.from_json(json.loads(line)) for line in lines):
            if row.error is None and row.label is not None:
                runs.setdefault(("" if row.budget is None else format_budget(row.budget), row.label), {})[row.id] = row
    tables: dict[str, dict[str, list[Answers]]] = {}
    for (budget, method), answers in runs.items():
        name = re.sub(r"seed=\d+", "seeds", method) if method.startswith("Random") else method
        tables.setdefault(budget, {}).setdefault(name, []).append(answers)
    return tables


def accuracy(seeds: Sequence[Answers], types: Sequence[str]) -> list[float]:
    """Return the fraction of a type of questions that each seed answers rightly."""
    return [fmean(bool(row.correct) for row in answers.values() if row.type in types) for answers in seeds]


def paired(seeds: Sequence[Answers], other: Sequence[Answers], types: Sequence[str]) -> str:
    """Write how much more is right than with another, with its interval."""
    right = {
        name: {i: fmean(bool(answers[i].correct) for answers in those) for i in those[0] if those[0][i].type in types}
        for name, those in (("own", seeds), ("other", other))
    }
    pictures: dict[str, list[float]] = {}
    for i, own in right["own"].items():
        pictures.setdefault(i.rpartition("-")[0], []).append(own - right["other"][i])
    gain, count = (np.array([f(values) for values in pictures.values()]) for f in (sum, len))
    drawn = np.random.default_rng(0).integers(len(gain), size=(DRAWS, len(gain)))
    low, high = np.percentile(gain[drawn].sum(1) / count[drawn].sum(1), (2.5, 97.5))
    return f"{gain.sum() / count.sum():+.3f} [{low:+.3f}, {high:+.3f}]"


def table(methods: dict[str, list[Answers]], unpruned: list[Answers]) -> list[str]:
    """Return the lines of one budget's table, the best on attributes first."""
    types = sorted({str(row.type) for row in unpruned[0].values()})
    attributes = [kind for kind in types if kind != COUNT]
    head = [
        "method",
        *types,
        "attributes",
        "all",
        "least without one type",
        "- unpruned",
        "- VtcCls",
        "left",
        "a layer",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    order = sorted(methods, key=lambda name: -fmean(accuracy(methods[name], attributes)))
    for name in order:
        seeds = methods[name]
        by_type = [fmean(accuracy(seeds, [kind])) for kind in types]
        spread = accuracy(seeds, attributes)
        told = f"{fmean(spread):.3f}" + (f" [{min(spread):.3f}, {max(spread):.3f}]" if len(seeds) > 1 else "")
        least = min(fmean([x for j, x in enumerate(by_type) if j != i]) for i in range(len(types)))
        cells = [f"{x:.3f}" for x in by_type] + [told, f"{fmean(accuracy(seeds, types)):.3f}", f"{least:.3f}"]
        cells += [paired(seeds, other, attributes) for other in (unpruned, methods[OURS])]
        rows = [row for answers in seeds for row in answers.values()]
        cells += [f"{fmean(count or 0 for count in counts):.1f}" for counts in _tokens(rows)]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return lines


def _tokens(rows: Sequence[Prediction]) -> tuple[list[int | None], list[float | None]]:
    return [row.visual_tokens for row in rows], [row.mean_tokens_per_layer for row in rows]


def main(arguments: list[str] | None = None) -> None:
    """Print a table for each budget."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("predictions", type=Path)
    tables = read(options.parse_args(arguments).predictions)
    unpruned = tables.pop("")[UNPRUNED]
    for budget, methods in tables.items():
        print(f"\nBudget {budget}\n")
        print("\n".join(table(methods, unpruned)))


if __name__ == "__main__":
    main()
