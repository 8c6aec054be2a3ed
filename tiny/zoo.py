"""Tables with intervals for configs/zoo.yaml, from the predictions.jsonl of its run.

    vtcframe predict --config configs/zoo.yaml
    python tiny/zoo.py runs/zoo/predictions.jsonl

Prints a Markdown table for each budget: accuracy by type of question, on attributes (all types but counting) and on
all questions; the lowest leave-one-out mean over types; the difference in attribute accuracy to the unpruned model and
to VtcCls, with 95 % paired bootstrap intervals over pictures; the visual tokens kept at the end, and the mean over the
layers of the language model. Several seeds of a method are one row, with minimum and maximum.
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

UNPRUNED = "unpruned"
REFERENCE = "VtcCls(last=3)"
RESAMPLES = 2000
Answers = dict[str, Prediction]  # by the question's id


def read_runs(path: Path) -> dict[str, dict[str, list[Answers]]]:
    """Return the answers of each seed, by budget and method without its seed."""
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
    """Return for each seed the fraction of right answers to questions of the types."""
    return [fmean(bool(row.correct) for row in answers.values() if row.type in types) for answers in seeds]


def paired_difference(seeds: Sequence[Answers], other: Sequence[Answers], types: Sequence[str]) -> str:
    """Return the difference in accuracy to another method with its 95 % interval, as text."""
    grades, other_grades = (
        {i: fmean(bool(answers[i].correct) for answers in group) for i in group[0] if group[0][i].type in types}
        for group in (seeds, other)
    )
    pictures: dict[str, list[float]] = {}
    for i, grade in grades.items():
        pictures.setdefault(i.rpartition("-")[0], []).append(grade - other_grades[i])
    gain = np.array([sum(values) for values in pictures.values()])
    count = np.array([len(values) for values in pictures.values()])
    resampled = np.random.default_rng(0).integers(len(gain), size=(RESAMPLES, len(gain)))
    low, high = np.percentile(gain[resampled].sum(1) / count[resampled].sum(1), (2.5, 97.5))
    return f"{gain.sum() / count.sum():+.3f} [{low:+.3f}, {high:+.3f}]"


def table(methods: dict[str, list[Answers]], unpruned: list[Answers]) -> list[str]:
    """Return the lines of one budget's table, sorted by accuracy on attributes, best first."""
    types = sorted({str(row.type) for row in unpruned[0].values()})
    attributes = [kind for kind in types if kind != COUNT]
    head = [
        "method",
        *types,
        "attributes",
        "all",
        "min without one type",
        "- unpruned",
        "- VtcCls",
        "kept",
        "per layer",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    order = sorted(methods, key=lambda name: -fmean(accuracy(methods[name], attributes)))
    for name in order:
        seeds = methods[name]
        by_type = [fmean(accuracy(seeds, [kind])) for kind in types]
        spread = accuracy(seeds, attributes)
        cell = f"{fmean(spread):.3f}" + (f" [{min(spread):.3f}, {max(spread):.3f}]" if len(seeds) > 1 else "")
        least = min(fmean([x for j, x in enumerate(by_type) if j != i]) for i in range(len(types)))
        cells = [f"{x:.3f}" for x in by_type] + [cell, f"{fmean(accuracy(seeds, types)):.3f}", f"{least:.3f}"]
        cells += [paired_difference(seeds, other, attributes) for other in (unpruned, methods[REFERENCE])]
        rows = [row for answers in seeds for row in answers.values()]
        cells += [f"{fmean(count or 0 for count in counts):.1f}" for counts in _tokens(rows)]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return lines


def _tokens(rows: Sequence[Prediction]) -> tuple[list[int | None], list[float | None]]:
    return [row.visual_tokens for row in rows], [row.mean_tokens_per_layer for row in rows]


def main(arguments: list[str] | None = None) -> None:
    """Read the predictions and print a table for each budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path)
    tables = read_runs(parser.parse_args(arguments).predictions)
    unpruned = tables.pop("")[UNPRUNED]
    for budget, methods in tables.items():
        print(f"\nBudget {budget}\n")
        print("\n".join(table(methods, unpruned)))


if __name__ == "__main__":
    main()
