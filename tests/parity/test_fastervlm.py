"""FasterVLM: numbers recorded from the authors' own code."""

import torch

from support.recorded_cases import each_case, layout_of, load_case, square, stitched
from vtcframe import AttentionRows, Budget, Evidence, FasterVlm


@each_case("fastervlm")
def test_faster_vlm(path):
    tensors, params = load_case(path)
    rows, features = (
        tensors["in.cls_attn"].flatten(0, -3),
        tensors["in.features"].flatten(0, -3),
    )  # [V, H, N], [V, N, D]
    views, n = features.shape[:2]
    one_sample = [0] * views if "grid_w" in params or "frames" in params else None
    columns = stitched(params, views, n) if "grid_w" in params else None
    evidence = Evidence(
        features, layout_of([square(n)] * views, one_sample, columns), {AttentionRows("cls", (-1,)): rows[None]}
    )
    pruned = FasterVlm()(evidence, Budget(params["visual_token_num"], per="view"))
    kept = tensors["out.kept_indices"].flatten(0, -2).sort(-1).values
    assert pruned.place.tolist() == kept.tolist()
    if "out.visual_sequence" in tensors:
        torch.testing.assert_close(pruned.sequence(0)[0], tensors["out.visual_sequence"], atol=2e-5, rtol=0)
    else:
        torch.testing.assert_close(pruned.tokens, tensors["out.kept_features"].flatten(0, -3), atol=2e-5, rtol=0)
