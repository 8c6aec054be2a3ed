"""Tiny shapes and synthetic measurements for the tests of `vtcframe bench`."""

import torch

from vtcframe.profiling.sizes import Shape
from vtcframe.profiling.tables import Answer, RunTimings, Series

CPU = torch.device("cpu")


TINY = {  # shapes of the test backbones, with 4 x 4 tokens per tile
    "llava": Shape("tiny", "56 x 56", (1, 3, 56, 56), 16),
    "llava_next": Shape("tiny", "112 x 112", (1, 5, 3, 56, 56), 16 + 8 * 9, {"image_sizes": (112, 112)}),
    "qwen2_5_vl": Shape("tiny", "112 x 112", (64, 1176), 16, {"image_grid_thw": (1, 8, 8)}),
}


def even(*seconds):
    return Series([float(x) for x in seconds], [2.0 * x for x in seconds])


def run(method, seconds, flops, limit=None, **stage):
    answers = [
        Answer(n, even(*(x * n for x in seconds)), flops, None, limit and even(*(x * n for x in limit))) for n in (1, 3)
    ]
    times = {name: even(*values) for name, values in stage.items()}
    return RunTimings(method, 64, answers, times, {"vision": 7}, [64.0, 64.0, 9.0], 2**20, "" if limit else "no reason")


def cells(lines, table):
    """Return the rows of the Markdown table number `table`, each as a dictionary from column name to cell."""
    starts = [i for i, line in enumerate(lines) if line.startswith("| ---")]
    rows = []
    for line in lines[starts[table] + 1 :]:
        if not line.startswith("|"):
            break
        rows.append(line.strip("| ").split(" | "))
    head = lines[starts[table] - 1].strip("| ").split(" | ")
    return [dict(zip(head, row, strict=True)) for row in rows]
