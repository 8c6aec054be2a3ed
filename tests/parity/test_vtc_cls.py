"""VTC-CLS: numbers recorded from the authors' own code."""

import torch

from support.recorded_cases import each_case, layout_of, load_case, square
from vtcframe import Budget, Evidence, VtcCls


@each_case("vtc_cls")
def test_vtc_cls(path):
    tensors, params = load_case(path)
    features, rows = tensors["in.hidden_select_layer"][None, 1:], tensors["in.cls_attn"]  # rows [L, H, 1 + N]
    start = params["start_layer"] % params["layers"]
    last = params["layers"] - 1 - start  # the recorded slice leaves the last layer out, as "feeding" does
    method = VtcCls(last=last)
    found = {method.needs[0]: rows[start:-1, None, :, 1:]}
    pruned = method(Evidence(features, layout_of([square(params["patches"])]), found), Budget(params["token_num"]))
    assert pruned.place[0].tolist() == tensors["out.kept_indices"].tolist()
    torch.testing.assert_close(pruned.scores[0] * last, tensors["out.score_sum"], atol=1e-6, rtol=1e-5)
    if "out.kept_features" in tensors:
        torch.testing.assert_close(pruned.tokens[0], tensors["out.kept_features"], atol=2e-5, rtol=0)
