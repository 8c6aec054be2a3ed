"""Numbers recorded from the authors' own code.

`VTCFRAME_GOLDEN` names a folder with one folder of recorded cases a method; without it the few that the repository
carries are read.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vtcframe import Layout

GOLDEN = Path(os.environ.get("VTCFRAME_GOLDEN", Path(__file__).parents[1] / "golden"))


def each_case(method):
    """Parametrise over the recorded cases of a method; a folder without any is an error, not a pass."""
    files = sorted((GOLDEN / method).glob("*.safetensors"))
    assert files, f"{GOLDEN} has no recorded case of {method}"
    return pytest.mark.parametrize("path", files, ids=lambda path: path.stem)


def load_case(path):
    return load_file(path), json.loads(path.with_suffix(".json").read_text())["params"]


def layout_of(grids, sample=None, columns=None):
    """Views of equal size (rows, columns), each a sample of its own or as `sample` says."""
    n = grids[0][0] * grids[0][1]
    at, views = torch.arange(n), len(grids)
    sample = torch.tensor(sample or list(range(views)))
    grid = torch.stack([torch.stack([at // c, at % c], -1) for _, c in grids])
    zero, count = torch.zeros(views, dtype=torch.long), int(sample.max()) + 1
    if columns is None:
        columns = torch.stack([at + n * int((sample[:v] == sample[v]).sum()) for v in range(views)])
    untouched = torch.bincount(sample) * n
    box = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(views, 1)
    return Layout(sample, torch.arange(count), zero, zero, box, grid, columns, untouched)


def each_case_with(method, holding):
    """Parametrise over the recorded cases that hold a tensor; none is an error, not a pass."""
    files = sorted((GOLDEN / method).glob("*.json"))
    files = [path for path in files if holding in json.loads(path.read_text())["tensors"]]
    assert files, f"{GOLDEN} has no recorded case of {method} with {holding}"
    return pytest.mark.parametrize("path", [f.with_suffix(".safetensors") for f in files], ids=lambda path: path.stem)


def square(n):
    side = int(n**0.5)
    return (side, side) if side * side == n else (1, n)


def stitched(params, views, n):
    """Columns of an overview and of tiles that the prompt stitches row by row behind it."""
    side, across = params["side"], params["grid_w"]
    at = torch.arange(n)
    columns = [at]
    for tile in range(views - 1):
        row, column = tile // across * side + at // side, tile % across * side + at % side
        columns.append(n + row * across * side + column)
    return torch.stack(columns)
