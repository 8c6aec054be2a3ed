"""VScan: numbers recorded from the authors' own code."""

import torch

from support.places import kept
from support.recorded_cases import each_case, layout_of, load_case, square
from support.staged_methods import kept_places
from vtcframe import Budget, Evidence
from vtcframe.methods.vscan import VScan, VScanEncoder

# the authors' numbers


@each_case("vscan")
def test_v_scan_first_stage(path):
    tensors, params = load_case(path)
    if "grid_thw" in params:  # Qwen2.5-VL: attention received, tokens of 2 x 2 patches
        _, high, wide = params["grid_thw"]
        method = VScan(14, params["window"], shallow=0, query="received", each="ceil")
        maps, grid, budget = ("attn_local", "attn_global"), (high // 2, wide // 2), params["n_keep"]
        want, merged = tensors["kept_indices"], tensors["merged"]
    else:
        method = VScan(16, params["window"], share=params["local_ratio"])
        maps, grid, budget = ("cls_attn_layer5", "cls_attn_layer_m2"), square(576), params["n_kept"]
        want, merged = tensors["kept_mask"].nonzero()[:, 0], tensors["merged_kept_features"]
    pruner = method.stages(Budget(budget))[0].pruner
    assert isinstance(pruner, VScanEncoder)
    assert (pruner.layer, pruner.query) == (method.shallow, method.query)
    shallow, deep = (tensors[name].view(1, 1, -1, grid[0] * grid[1]) for name in maps)
    found = dict(zip(pruner.needs, (deep, shallow), strict=True))
    pruned = pruner(Evidence(tensors["features"][None], layout_of([grid]), found), Budget(budget))
    assert kept_places(pruned)[0] == want.sort().values.tolist()
    torch.testing.assert_close(pruned.tokens[0], merged, atol=2e-5, rtol=0)


@each_case("vscan")
def test_v_scan_encoder(path):
    tensors, params = load_case(path)
    if "grid_thw" in params:  # Qwen2.5-VL: attention received, tokens of 2 x 2 patches
        _, high, wide = params["grid_thw"]
        method = VScanEncoder(params["window"], layer=0, query="received", each="ceil")
        maps = tensors["attn_local"][None], tensors["attn_global"][None]
        grid, budget, want = (high // 2, wide // 2), params["n_keep"], tensors["kept_indices"]
        merged = tensors["merged"]
    else:
        method = VScanEncoder(params["window"], params["local_ratio"])
        maps = tensors["cls_attn_layer5"], tensors["cls_attn_layer_m2"]
        grid, budget, want = square(576), params["n_kept"], tensors["kept_mask"].nonzero()[:, 0]
        merged = tensors["merged_kept_features"]
    (deep, shallow) = method.needs
    found = {shallow: maps[0][None, None], deep: maps[1][None, None]}
    pruned = method(Evidence(tensors["features"][None], layout_of([grid]), found), Budget(budget))
    assert kept(pruned)[0] == want.sort().values.tolist()
    torch.testing.assert_close(pruned.tokens[0], merged, atol=2e-5, rtol=0)
