"""Numbers recorded from the authors' own code: methods of diversity, through the components that users call."""

import pytest
import torch
from test_parity import layout, read, recorded, square

from vtcframe import Budget, Evidence, Features, Rows, Similarity
from vtcframe.methods.diversity import CdPruner, DamroOutliers, DivPrune, VisPruner, VScanEncoder


def kept(pruned):
    """Places of each row in raster order."""
    return [row[row >= 0].tolist() for row in pruned.place]


@recorded("divprune")
def test_div_prune(path):
    tensors, params = read(path)
    evidence = Evidence(tensors["in.features"][None], layout([square(params["patches"])]))
    pruned = DivPrune()(evidence, Budget(ratio=params["ratio"]))
    assert kept(pruned)[0] == tensors["out.kept_indices"].sort().values.tolist()
    for k in (1, 2, 7):  # the order of the picks, too
        want = tensors["out.selection_order"][:k].sort().values.tolist()
        assert kept(DivPrune()(evidence, Budget(k)))[0] == want


@recorded("cdpruner")
def test_cd_pruner(path):
    tensors, params = read(path)
    image, text = (torch.nn.functional.normalize(tensors[f"in.{name}_embeds"], dim=-1) for name in ("image", "text"))
    found = {Similarity("clip"): (image @ text.T).mean(-1)}
    # the code scales relevance over its batch; ours over a sample: as views of one sample they are scaled together
    where = layout([square(params["patches"])] * params["batch"], [0] * params["batch"])
    evidence = Evidence(tensors["in.projected_features"], where, found)
    pruned = CdPruner()(evidence, Budget(params["visual_token_num"], per="view"))
    assert kept(pruned) == tensors["out.kept_indices"].sort(-1).values.tolist()


@recorded("vispruner")
def test_vis_pruner(path):
    tensors, params = read(path)
    x = tensors["in.features"]
    found = {Rows("cls", (-1,)): tensors["in.cls_attn"][None], Features(): x}
    evidence = Evidence(x, layout([square(params["patches"])] * params["batch"]), found)
    pruned = VisPruner(params["important_ratio"])(evidence, Budget(params["visual_token_num"]))
    assert kept(pruned) == tensors["out.kept_indices"].sort(-1).values.tolist()


@recorded("vscan")
def test_v_scan_encoder(path):
    tensors, params = read(path)
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
    pruned = method(Evidence(tensors["features"][None], layout([grid]), found), Budget(budget))
    assert kept(pruned)[0] == want.sort().values.tolist()
    torch.testing.assert_close(pruned.tokens[0], merged, atol=2e-5, rtol=0)


@recorded("damro")
def test_damro_outliers(path):
    tensors, params = read(path)
    if "damro_topk" not in params:
        pytest.skip("the contrast of two distributions is decoding, no pruning")
    q, k, x = tensors["q"], tensors["k"], tensors["features"]
    rows = (q[:, :1] @ k.mT / params["C"] ** 0.5).softmax(-1)[..., 1:]
    torch.testing.assert_close(rows[:, 0], tensors["cls_attention"], atol=1e-6, rtol=0)
    found = {Rows("cls", (-1,), heads="joined"): rows[None]}
    pruned = DamroOutliers()(Evidence(x, layout([square(params["N"])]), found), Budget(params["damro_topk"]))
    order = tensors["indices"].argsort(-1)
    assert kept(pruned) == tensors["indices"].gather(1, order).tolist()
    by_score = tensors["negative_features"][0, order[0]]
    torch.testing.assert_close(pruned.tokens[0], by_score, atol=2e-5, rtol=0)
