"""A tiny model and its sizes."""

import torch

from vtcframe.profiling.sizes import Shape
from vtcframe.profiling.tables import Answer, Run, Series

CPU = torch.device("cpu")


TINY = {  # shapes of the tests' own backbones, which draw 4 x 4 tokens a tile
    "llava": Shape("tiny", "56 x 56", (1, 3, 56, 56), 16),
    "llava_next": Shape("tiny", "112 x 112", (1, 5, 3, 56, 56), 16 + 8 * 9, {"image_sizes": (112, 112)}),
    "qwen2_5_vl": Shape("tiny", "112 x 112", (64, 1176), 16, {"image_grid_thw": (1, 8, 8)}),
}


# What is told of it


def even(*seconds):
    return Series([float(x) for x in seconds], [2.0 * x for x in seconds])


def run(method, seconds, flops, limit=None, **stage):
    answers = [
        Answer(n, even(*(x * n for x in seconds)), flops, None, limit and even(*(x * n for x in limit))) for n in (1, 3)
    ]
    times = {name: even(*values) for name, values in stage.items()}
    return Run(method, 64, answers, times, {"vision": 7}, [64.0, 64.0, 9.0], 2**20, "" if limit else "no reason")


def cells(lines, table):
    """Head -> cell of each line below the head of the table so many-th."""
    starts = [i for i, line in enumerate(lines) if line.startswith("| ---")]
    rows = []
    for line in lines[starts[table] + 1 :]:
        if not line.startswith("|"):
            break
        rows.append(line.strip("| ").split(" | "))
    head = lines[starts[table] - 1].strip("| ").split(" | ")
    return [dict(zip(head, row, strict=True)) for row in rows]
