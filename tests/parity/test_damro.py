"""DAMRO: numbers recorded from the authors' own code."""

import pytest
import torch

from support.places import kept
from support.recorded_cases import each_case, layout_of, load_case, square
from vtcframe import AttentionRows, Budget, Evidence
from vtcframe.methods.damro import DamroOutliers


@each_case("damro")
def test_damro_outliers(path):
    tensors, params = load_case(path)
    if "damro_topk" not in params:
        pytest.skip("the contrast of two distributions is decoding, no pruning")
    q, k, x = tensors["q"], tensors["k"], tensors["features"]
    rows = (q[:, :1] @ k.mT / params["C"] ** 0.5).softmax(-1)[..., 1:]
    torch.testing.assert_close(rows[:, 0], tensors["cls_attention"], atol=1e-6, rtol=0)
    found = {AttentionRows("cls", (-1,), heads="joined"): rows[None]}
    pruned = DamroOutliers()(Evidence(x, layout_of([square(params["N"])]), found), Budget(params["damro_topk"]))
    order = tensors["indices"].argsort(-1)
    assert kept(pruned) == tensors["indices"].gather(1, order).tolist()
    by_score = tensors["negative_features"][0, order[0]]
    torch.testing.assert_close(pruned.tokens[0], by_score, atol=2e-5, rtol=0)
