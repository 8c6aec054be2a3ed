"""Numbers recorded from the authors' own code, through the components that users call.

`VTCFRAME_GOLDEN` names a folder with one folder of recorded cases a method; without it the few that the repository
carries are read.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vtcframe import Budget, Evidence, FasterVlm, Layout, Rows, VtcCls

GOLDEN = Path(os.environ.get("VTCFRAME_GOLDEN", Path(__file__).parent / "golden"))


def recorded(method):
    """Parametrise over the recorded cases of a method; a folder without any is an error, not a pass."""
    files = sorted((GOLDEN / method).glob("*.safetensors"))
    assert files, f"{GOLDEN} has no recorded case of {method}"
    return pytest.mark.parametrize("path", files, ids=lambda path: path.stem)


def read(path):
    return load_file(path), json.loads(path.with_suffix(".json").read_text())["params"]


def layout(grids, sample=None, columns=None):
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


def square(n):
    side = int(n**0.5)
    return (side, side) if side * side == n else (1, n)


@recorded("vtc_cls")
def test_vtc_cls(path):
    tensors, params = read(path)
    features, rows = tensors["in.hidden_select_layer"][None, 1:], tensors["in.cls_attn"]  # rows [L, H, 1 + N]
    start = params["start_layer"] % params["layers"]
    last = params["layers"] - 1 - start  # the recorded slice leaves the last layer out, as "feeding" does
    method = VtcCls(last=last)
    found = {method.needs[0]: rows[start:-1, None, :, 1:]}
    pruned = method(Evidence(features, layout([square(params["patches"])]), found), Budget(params["token_num"]))
    assert pruned.place[0].tolist() == tensors["out.kept_indices"].tolist()
    torch.testing.assert_close(pruned.scores[0] * last, tensors["out.score_sum"], atol=1e-6, rtol=1e-5)
    if "out.kept_features" in tensors:
        torch.testing.assert_close(pruned.tokens[0], tensors["out.kept_features"], atol=2e-5, rtol=0)


@recorded("fastervlm")
def test_faster_vlm(path):
    tensors, params = read(path)
    rows, features = (
        tensors["in.cls_attn"].flatten(0, -3),
        tensors["in.features"].flatten(0, -3),
    )  # [V, H, N], [V, N, D]
    views, n = features.shape[:2]
    one_sample = [0] * views if "grid_w" in params or "frames" in params else None
    columns = stitched(params, views, n) if "grid_w" in params else None
    evidence = Evidence(features, layout([square(n)] * views, one_sample, columns), {Rows("cls", (-1,)): rows[None]})
    pruned = FasterVlm()(evidence, Budget(params["visual_token_num"], per="view"))
    kept = tensors["out.kept_indices"].flatten(0, -2).sort(-1).values
    assert pruned.place.tolist() == kept.tolist()
    if "out.visual_sequence" in tensors:
        torch.testing.assert_close(pruned.sequence(0)[0], tensors["out.visual_sequence"], atol=2e-5, rtol=0)
    else:
        torch.testing.assert_close(pruned.tokens, tensors["out.kept_features"].flatten(0, -3), atol=2e-5, rtol=0)


def stitched(params, views, n):
    """Columns of an overview and of tiles that the prompt stitches row by row behind it."""
    side, across = params["side"], params["grid_w"]
    at = torch.arange(n)
    columns = [at]
    for tile in range(views - 1):
        row, column = tile // across * side + at // side, tile % across * side + at % side
        columns.append(n + row * across * side + column)
    return torch.stack(columns)
