"""Numbers recorded from the authors' own code of methods that merge or that share a budget over crops.

Where that code departs from its paper, what it does is written here, beside what ours does.
"""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from test_parity import GOLDEN, layout, read, square, stitched

from vtcframe import Budget, ClassToken, Evidence, Features, Keys, Pipeline, Rows
from vtcframe.allocators import AttentionMass, Outliers, OverviewGuided
from vtcframe.attention import Call, Row
from vtcframe.core import Pruned
from vtcframe.ensemblers import Mean, OverviewFusion
from vtcframe.mergers import Absorb
from vtcframe.methods.anyres import GlobalCom2, HiRed
from vtcframe.methods.merging import PruMerge, PruMergePlus, VisionZip
from vtcframe.pipeline import Allocator, Selector
from vtcframe.scorers import ClsAttention
from vtcframe.selectors import TopK, highest


def recorded(method, holding):
    """Parametrise over the recorded cases that hold a tensor; none is an error, not a pass."""
    files = sorted((GOLDEN / method).glob("*.json"))
    files = [path for path in files if holding in json.loads(path.read_text())["tensors"]]
    assert files, f"{GOLDEN} has no recorded case of {method} with {holding}"
    return pytest.mark.parametrize("path", [f.with_suffix(".safetensors") for f in files], ids=lambda path: path.stem)


def close(got, want, tolerance=2e-5):
    torch.testing.assert_close(got.float(), want.float(), atol=tolerance, rtol=0)


@recorded("visionzip", "in.key_metric")
def test_visionzip(path):
    tensors, params = read(path)
    x, keys, total = tensors["in.hidden"], tensors["in.key_metric"], params["out_len"]
    found = {
        Rows("cls", (-1,)): tensors["in.cls_attn"][None, ..., 1:],
        Features(): x[:, 1:],
        ClassToken(): x[:, 0],
        Keys((-1,)): keys[None, :, None, 1:],
    }
    where = layout([square(params["patches"])] * params["batch"])
    method = VisionZip(params["contextual"] / total)
    pruned = method(Evidence(x[:, 1:], where, found, lambda features: features), Budget(total))
    close(pruned.tokens, tensors["out.tokens"])
    dominant = tensors["out.kept_indices_with_cls"][:, 1:].sort(1).values - 1
    assert torch.equal(pruned.place[:, 1 : 1 + dominant.shape[1]], dominant)


@recorded("visionzip", "in.kept_indices_with_cls")
def test_crops_of_visionzip_are_stitched_alike_but_their_class_and_contextual_tokens_stay_with_them(path):
    tensors, params = read(path)
    made, across = tensors["in.features"], params["width"]  # [crops, CLS + dominant + contextual, D]
    crops, contexts = len(made), params["contextual"]
    own = tensors["in.kept_indices_with_cls"][:, 1:].sort(1).values - 1
    free = torch.stack([torch.tensor([i for i in range(576) if i not in row][: contexts + 1]) for row in own.tolist()])
    place = torch.cat([free[:, :1], own, free[:, 1:]], 1)
    where = layout([(24, 24)] * crops, [0] * crops, stitched({"side": 24, "grid_w": across}, crops + 1, 576)[1:])
    tokens, _ = Pruned(made, place, torch.zeros(crops, 576), where).sequence(0)
    want, count = tensors["out.tokens"], own.numel()
    dominant = made[:, 1 : 1 + own.shape[1]].flatten(0, 1)
    order = where.column.gather(1, own).flatten().argsort()
    close(dominant[order], want[:count])  # the recorded order: dominant tokens by the stitched picture's raster,
    close(made[:, 0], want[count : count + crops])  # then class tokens,
    close(made[:, 1 + own.shape[1] :].flatten(0, 1), want[count + crops :])  # then contextual ones, crop by crop
    assert sorted(map(tuple, tokens.tolist())) == sorted(map(tuple, want.tolist()))  # ours: the same tokens,
    for crop in made:  # each crop's in its own order
        at = [tokens.tolist().index(token) for token in crop.tolist()]
        assert at == sorted(at)


def unsplit(tensors, patches):
    """What the recorded PruMerge saw: one head of full width."""
    x, keys = tensors["in.hidden"], tensors["in.k"]
    rows = (tensors["in.q_cls"] @ keys.T * keys.shape[1] ** -0.5).softmax(-1)
    (need,) = ClsAttention(1, of="tower", heads="joined").needs
    found = {need: rows[None, None, :, 1:], Features(): x[None, 1:], Absorb().needs[1]: keys[None, None, None, 1:]}
    return Evidence(x[None, 1:], layout([square(patches)]), found, lambda features: features)


@recorded("prumerge", "in.q_cls")
def test_prumerge(path):
    tensors, params = read(path)
    pruned = PruMerge(params["neighbours"])(unsplit(tensors, params["patches"]))
    assert pruned.place[0, :-1].tolist() == tensors["out.kept_indices"].tolist()
    close(pruned.tokens[0], tensors["out.tokens"])
    close(pruned.scores[0], tensors["out.cls_attn"], 1e-7)


@dataclass(frozen=True)
class Fixed(Selector):
    """PruMerge+ as VTC-CLS's repository fixes it: the `top` best and every `step`-th token but the last."""

    top: int
    step: int

    def __call__(self, scores, quota, evidence):
        index = torch.arange(scores.shape[1])
        return highest(scores, quota * 0 + self.top) | ((index % self.step == 0) & (index < scores.shape[1] - 1))


@recorded("prumerge_plus", "in.q_cls")
def test_prumerge_plus(path):
    tensors, params = read(path)
    evidence, want = unsplit(tensors, params["patches"]), tensors["out.kept_indices"].tolist()
    if "token_num" in params:  # its order is that of the fixed number of leaders; tokens come back in half precision
        scorer = ClsAttention(1, of="tower", heads="joined")
        selector = Fixed(*{64: (13, 11), 128: (40, 6), 256: (95, 3)}[params["token_num"]])
        pruned = Pipeline((scorer,), Mean(), Outliers(), selector, Absorb())(evidence, Budget(params["out_len"]))
        ours = pruned.place[0, :-1].tolist()
        assert sorted(ours) == sorted(want)
        order = [*(ours.index(i) for i in want), len(want)]
        close(pruned.tokens[0, order], tensors["out.tokens"], 3e-3)
    else:
        pruned = PruMergePlus(params["neighbours"])(evidence)
        assert pruned.place[0, :-1].tolist() == want
        close(pruned.tokens[0], tensors["out.tokens"])


def sample_by_hand(count, above):
    """PruMerge+'s step as its code finds it, for a number of outliers."""
    return int(int(1 / (above / count)) / 3)


@pytest.mark.parametrize("above", [1, 5, 35, 46, 57, 95, 96, 97, 144])
def test_prumerge_plus_takes_the_steps_of_its_code_but_those_that_drop_nothing(above):
    scores = torch.zeros(1, 576)
    scores[0, 1 : 1 + above] = 1 + torch.arange(above)
    evidence = unsplit({"in.hidden": torch.rand(577, 4), "in.k": torch.rand(577, 4), "in.q_cls": torch.rand(1, 4)}, 576)
    (need,) = ClsAttention(1, of="tower", heads="joined").needs
    pruned = PruMergePlus()(replace(evidence, found=evidence.found | {need: scores[None, :, None]}))
    step = sample_by_hand(576, above)
    assert step > 1 or above > 96
    kept = set(range(0, 575, max(step, 2))) | set(range(1, 1 + above))
    assert len(kept) < 576
    assert set(pruned.place[0, :-1].tolist()) == kept


def tiles(down, across, top=0.0, left=0.0, bottom=1.0, right=1.0):
    """Boxes of the overview and the tiles of a canvas that reaches from top, left to bottom, right."""
    high, wide = (bottom - top) / down, (right - left) / across
    corners = [(top + i * high, left + j * wide) for i in range(down) for j in range(across)]
    return torch.tensor([[0.0, 0.0, 1.0, 1.0], *([y, x, y + high, x + wide] for y, x in corners)])


@dataclass(frozen=True)
class RecordedHiRed(Allocator):
    """The code's split: stretches of the raster for regions, counts of the hottest for mass, rounding down."""

    alpha: float
    needs = AttentionMass().needs

    def __call__(self, scores, budget, evidence):
        mass, n = evidence[self.needs[0]][0, 0].mean(0), scores.shape[1]
        hot = highest(mass[None], torch.tensor([int(n * (1 - self.alpha))]))[0]
        counts = hot.view(len(scores) - 1, -1).sum(1)
        whole = min(int(self.alpha * int(budget)), n)
        crops = (counts.float() / counts.sum() * (int(budget) - whole)).long().clamp(max=n)
        return torch.cat([torch.tensor([whole]), crops])


@recorded("hired", "in.cls_attn_layer_init")
def test_hired_shares_by_the_papers_regions_and_its_code_by_stretches_of_the_raster(path):
    tensors, params = read(path)
    rows = tensors["in.cls_attn_layer_final"][None, ..., 1:]
    first = torch.zeros_like(rows)
    first[:, :1] = tensors["in.cls_attn_layer_init"][None, ..., 1:]
    (down, across), views = params["grid_shape_as_returned"], rows.shape[1]
    where = layout([(24, 24)] * views, [0] * views)
    where = replace(where, box=tiles(down, across), centre=None)
    found = {Rows("cls", (-1,)): rows, Rows("cls", (0,)): first}
    evidence, budget = Evidence(tensors["in.features"], where, found), Budget(params["total_budget"])
    recorded = Pipeline((ClsAttention(1),), Mean(), RecordedHiRed(params["alpha"]), TopK())(evidence, budget)
    assert torch.equal(recorded.kept, tensors["out.mask"].bool())

    ours = HiRed(params["alpha"])(evidence, budget)
    heat = first[0, 0].mean(0).view(24, 24)
    share = torch.stack([piece.sum() for band in heat.chunk(down, 0) for piece in band.chunk(across, 1)])
    whole = params["alpha"] * params["total_budget"]
    paper = torch.cat([torch.tensor([whole]), (params["total_budget"] - whole) * share / share.sum()])
    assert int(ours.kept.sum()) == params["total_budget"]
    assert (ours.kept.sum(1) - paper).abs().max() < 1


@recorded("hired", "out.kept_indices")
def test_hired_without_crops(path):
    tensors, params = read(path)
    rows, n = tensors["in.cls_attn_layer_final"][None, ..., 1:], params["patches"]
    found = {Rows("cls", (-1,)): rows, Rows("cls", (0,)): rows}
    pruned = HiRed()(Evidence(torch.zeros(1, n, 1), layout([square(n)]), found), Budget(params["k"]))
    assert pruned.place[0].tolist() == tensors["out.kept_indices"].tolist()


@recorded("hired", "in.q_proj_out")
def test_hireds_attention_is_the_row_that_is_read(path):
    tensors, params = read(path)
    query, key = (tensors[f"in.{x}_proj_out"].unflatten(-1, (params["heads"], -1)).transpose(1, 2) for x in "qk")
    row = Row(skip=1)(Call(query, key, None, query.shape[-1] ** -0.5, False, None))
    close(row, tensors["out.attn"][:, :, 0, 1:], 1e-6)


@recorded("globalcom2", "in.q_proj.weight")
def test_globalcom2s_scores_are_logits_averaged_over_heads(path):
    tensors, params = read(path)
    x = tensors["in.x"]
    query, key = (
        (x @ tensors[f"in.{name}.weight"].T + tensors[f"in.{name}.bias"])
        .unflatten(-1, (params["heads"], -1))
        .transpose(1, 2)
        for name in ("q_proj", "k_proj")
    )
    row = Row(logits=True, heads="mean", skip=1)(Call(query, key, None, query.shape[-1] ** -0.5, False, None))
    close(row[:, 0], tensors["out.score_presoftmax_headmean"][:, 0, 1:], 1e-5)


@recorded("globalcom2", "out.scales_w2_h2_r0.25")
def test_globalcom2_keeps_of_a_crop_what_the_overview_says(path):
    tensors, params = read(path)
    for across, down in params["grids"]:
        views = 1 + across * down
        where = replace(layout([(24, 24)] * views, [0] * views), box=tiles(down, across), centre=None)
        scores = tensors["in.base_scores"].expand(views, -1)
        density = OverviewGuided().density(scores, where)
        assert density[0] == 1
        for ratio in params["ratios"]:
            close((ratio * density[1:]).clamp(max=1), tensors[f"out.scales_w{across}_h{down}_r{ratio}"], 1e-5)


@recorded("globalcom2", "in.crop_scores")
def test_globalcom2(path):
    tensors, params = read(path)
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
    where = layout([(24, 24)] * views, [0] * views, columns.masked_fill(outside, -1))
    where = replace(
        where, box=tiles(down, across, -y, -x, 1 + y, 1 + x), centre=None, untouched=where.count.sum()[None]
    )
    assert where.count[1:].tolist() == tensors["out.valid_tokens_per_crop"].tolist()
    scorer = ClsAttention(1, of="tower", logits=True)
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
