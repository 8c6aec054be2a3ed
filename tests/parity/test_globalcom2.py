"""GlobalCom2: numbers recorded from the authors' own code."""

from dataclasses import replace

import torch

from support.recorded_cases import each_case_with, layout_of, load_case, stitched
from support.recorded_merging import close, tiles
from vtcframe import Budget, Evidence
from vtcframe.components.allocators import OverviewGuided
from vtcframe.components.ensemblers import OverviewFusion
from vtcframe.components.scorers import ClsAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.encoder_readers import QueryRow
from vtcframe.core.kernel_call import KernelCall
from vtcframe.methods.globalcom2 import GlobalCom2


@each_case_with("globalcom2", "in.q_proj.weight")
def test_globalcom2s_scores_are_logits_averaged_over_heads(path):
    tensors, params = load_case(path)
    x = tensors["in.x"]
    query, key = (
        (x @ tensors[f"in.{name}.weight"].T + tensors[f"in.{name}.bias"])
        .unflatten(-1, (params["heads"], -1))
        .transpose(1, 2)
        for name in ("q_proj", "k_proj")
    )
    row = QueryRow(pre_softmax=True, heads="mean", skip=1)(
        KernelCall(query, key, None, query.shape[-1] ** -0.5, False, None)
    )
    close(row[:, 0], tensors["out.score_presoftmax_headmean"][:, 0, 1:], 1e-5)


@each_case_with("globalcom2", "out.scales_w2_h2_r0.25")
def test_globalcom2_keeps_of_a_crop_what_the_overview_says(path):
    tensors, params = load_case(path)
    for across, down in params["grids"]:
        views = 1 + across * down
        where = replace(layout_of([(24, 24)] * views, [0] * views), box=tiles(down, across), centre=None)
        scores = tensors["in.base_scores"].expand(views, -1)
        density = OverviewGuided().density(scores, where)
        assert density[0] == 1
        for ratio in params["ratios"]:
            close((ratio * density[1:]).clamp(max=1), tensors[f"out.scales_w{across}_h{down}_r{ratio}"], 1e-5)


@each_case_with("globalcom2", "in.crop_scores")
def test_globalcom2(path):
    tensors, params = load_case(path)
    down, across, ratio = params["grid_h"], params["grid_w"], params["retention_ratio"]
    views, high, wide = 1 + down * across, down * 24, across * 24
    width, height = params["image_size_wh"]
    top, left = 0, 0  # what un-padding takes from either side of the canvas
    if width / height > wide / high:
        top = (high - int(height * (wide / width))) // 2
    else:
        left = (wide - int(width * (high / height))) // 2
    y, x = top / (high - 2 * top), left / (wide - 2 * left)
    columns = stitched({"side": 24, "grid_w": across}, views, 576)
    row, column = (columns - 576) // wide, (columns - 576) % wide
    outside = (row < top) | (row >= high - top) | (column < left) | (column >= wide - left)
    outside[0] = False
    where = layout_of([(24, 24)] * views, [0] * views, columns.masked_fill(outside, -1))
    where = replace(
        where, box=tiles(down, across, -y, -x, 1 + y, 1 + x), centre=None, untouched=where.count.sum()[None]
    )
    assert where.count[1:].tolist() == tensors["out.valid_tokens_per_crop"].tolist()
    scorer = ClsAttention(1, blocks="tower", pre_softmax=True)
    scores = torch.cat([tensors["in.base_scores"][None], tensors["in.crop_scores"]])
    evidence = Evidence(torch.zeros(views, 576, 1), where, {scorer.needs[0]: scores[None, :, None]})

    # given the recorded scales, rounded down as in the code, the same tokens stay
    scales = torch.cat([torch.tensor([ratio]), tensors["out.scales"]])
    quota = (where.count * scales.double()).long()
    assert quota[1:].tolist() == tensors["out.kept_per_crop"].tolist()
    kept = TopK()(OverviewFusion()([scores[None]], where).masked_fill(~where.valid, -torch.inf), quota, evidence)
    assert kept[0].nonzero()[:, 0].tolist() == tensors["out.thumbnail_indices"].sort().values.tolist()
    for crop in range(views - 1):  # counted among the tokens that un-padding left
        left_over = kept[crop + 1][where.valid[crop + 1]].nonzero()[:, 0]
        assert left_over.tolist() == tensors[f"out.crop{crop}_indices_scoreorder"].sort().values.tolist()

    ours = GlobalCom2(params["temperature"])(evidence, Budget(ratio=ratio))
    assert int(ours.kept.sum()) == round(ratio * int(where.untouched))
    for view in range(views):  # the same order of tokens: the shorter list is a part of the longer
        assert int((ours.kept[view] & kept[view]).sum()) == min(int(ours.kept[view].sum()), int(quota[view]))
    if not top and not left and scales.max() < 1:  # the regions are the recorded ones: rounding is all that differs
        assert (ours.kept.sum(1) - quota).abs().max() <= 1
