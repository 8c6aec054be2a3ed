"""MustDrop: windows that are alike, thresholds, the key set; twins in plain Python, and laws."""

import math
from dataclasses import replace

import pytest
import torch

from support.models import SERVED, backbone
from support.mustdrop import CLS, MEAN, MOST
from vtcframe import Budget, adapter_for, compress
from vtcframe.core.stages import plan_from_stages
from vtcframe.methods.mustdrop import ClsKeySet, MustDrop, TextPeak, TextShare, Threshold, WindowMerge
from vtcframe.testing import check_allocator, check_pruner, check_scorer, make_evidence
from vtcframe.testing.laws.adapters import inputs_for
from vtcframe.testing.tiny_models.samples import SAMPLES

# windows


def windowed(tokens, cells, alike, side):
    """Vectors and their (row, column) -> {index of the place: vector} of what is left."""
    found = {}
    for i, (row, column) in enumerate(cells):
        found.setdefault((row // side, column // side), []).append(i)

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    left = dict(enumerate(tokens))
    for members in found.values():
        pairs = [cosine(tokens[i], tokens[j]) for i in members for j in members if i != j]
        if len(members) < side * side or sum(pairs) / len(pairs) < alike:
            continue
        for i in members:
            del left[i]
        (centre,) = (i for i in members if all(x % side == side // 2 for x in cells[i]))
        left[centre] = [sum(values) / len(members) for values in zip(*(tokens[i] for i in members), strict=True)]
    return left


GRIDS = {3: [(7, 8)], 4: [(1, 1), (3, 4), (6, 6)], 5: [], 6: [(2, 9)], 7: [(3, 3)]}


def scenes(grids=GRIDS):
    """Evidence of which some windows are alike."""
    evidence = make_evidence((), grids, channels=6)
    blocks = (evidence.layout.grid // 3).sum(2, keepdim=True) % 2
    return replace(evidence, tokens=torch.where(blocks > 0, evidence.tokens - 0.5, evidence.tokens))


@pytest.mark.parametrize("hole", [False, True])
@pytest.mark.parametrize("side", [2, 3])
@pytest.mark.parametrize("alike", [-1.0, 0.1, 0.7, 0.8, 2.0])
def test_windows_equal_their_twin(alike, side, hole):
    evidence, some = scenes(), set()
    if hole:
        gone = evidence.layout.column % 11 == 0
        column = evidence.layout.column.masked_fill(gone, -1)
        evidence = replace(evidence, layout=replace(evidence.layout, column=column))
    got = WindowMerge(alike, side)(evidence)
    assert type(got.tokens) is torch.Tensor
    assert not hasattr(got, "size")  # so that later blocks take a mean for one patch
    for v in range(len(got.place)):
        there = evidence.layout.valid[v].nonzero()[:, 0].tolist()
        tokens, cells = evidence.tokens[v, there].tolist(), evidence.layout.grid[v, there].tolist()
        twin = {there[i]: vector for i, vector in windowed(tokens, cells, alike, side).items()}
        real = got.place[v] >= 0
        assert got.place[v][real].tolist() == sorted(twin)
        want = torch.tensor([twin[i] for i in sorted(twin)])
        torch.testing.assert_close(got.tokens[v][real], want, atol=1e-5, rtol=1e-5)
        some.add(len(twin) == len(there))
    assert alike in (-1.0, 2.0) or side == 2 or hole or some == {True, False}


def test_laws_of_windows_hold():
    for alike in (-1.0, 0.7, 2.0):
        check_pruner(WindowMerge(alike), (None,))
    evidence = scenes()
    poisoned = replace(evidence, tokens=evidence.tokens.masked_fill(~evidence.layout.valid[..., None], math.nan))
    a, b = (WindowMerge(0.1)(e) for e in (evidence, poisoned))
    assert torch.equal(a.place, b.place)
    assert torch.equal(a.tokens[a.place >= 0], b.tokens[b.place >= 0])
    assert torch.equal(WindowMerge(2.0)(evidence).tokens[evidence.layout.valid], evidence.tokens[evidence.layout.valid])
    assert WindowMerge()(make_evidence((), {1: []})).total.tolist() == [0]
    with pytest.raises(ValueError, match="takes no budget"):
        WindowMerge()(evidence, Budget(3))
    with pytest.raises(ValueError, match="at least 2, got 1"):
        WindowMerge(side=1)


# thresholds and the key set


def test_laws_of_the_parts_hold():
    for scorer in (
        TextShare(),
        TextShare(0.3),
        TextPeak(),
        TextPeak(0.4),
        ClsKeySet(),
        ClsKeySet(0.5),
        ClsKeySet(0),
        ClsKeySet(1),
    ):
        check_scorer(scorer)
    for threshold in (0.2, 1.0, 50.0):
        check_allocator(Threshold(threshold))
    for share, peak in ((0.001, 0.001), (0.004, 0.5), (1.0, 2.0)):
        pruner = MustDrop(share, peak).stages(None)[-1].pruner
        check_pruner(pruner, (None, Budget(20)))
    for kind, name in ((TextShare, "share"), (TextPeak, "peak")):
        with pytest.raises(ValueError, match=f"{name} is a threshold and must be positive, got 0"):
            kind(0)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 8"):
        ClsKeySet(8)


@pytest.mark.parametrize("need", [MEAN, MOST, CLS])
def test_attention_that_is_not_finite_is_an_error_that_names_the_sample(need):
    pruner = MustDrop().stages(None)[-1].pruner
    evidence = make_evidence(pruner.needs)
    evidence[need][0, 1, 0, 3] = math.nan
    with pytest.raises(ValueError, match=r"samples \[1\] are not finite"):
        pruner(evidence)


def test_no_attention_at_all_is_no_share():
    evidence = make_evidence((MEAN,))
    evidence = replace(evidence, readings={MEAN: torch.zeros_like(evidence[MEAN])})
    assert TextShare()(evidence).eq(0).all()


@pytest.mark.parametrize("share", [1e-3, 2.5e-3, 8e-3])
@pytest.mark.parametrize("peak", [0.4, 0.95, 1.5])
@pytest.mark.parametrize("keys", [0.0, 0.08, 0.3])
def test_what_leaves_equals_its_twin(share, peak, keys):
    pruner = MustDrop(share, peak, keys=keys).stages(None)[-1].pruner
    evidence = make_evidence(pruner.needs)
    assert set(pruner.needs) == {MEAN, MOST, CLS}
    kept, own = pruner(evidence).kept, evidence.layout
    for p in range(len(own.key)):
        places = [(v, i) for v in (own.sample == p).nonzero()[:, 0].tolist() for i in range(int(own.count[v]))]
        if not places:
            continue
        paid = {at: float(evidence[MEAN][0, at[0], 0, at[1]]) for at in places}
        most = {at: float(evidence[MOST][0, at[0], 0, at[1]]) for at in places}
        looked = {at: sum(evidence[CLS][0, at[0], :, at[1]].tolist()) / 4 for at in places}
        total = sum(paid.values())
        drop = {at for at in places if paid[at] < share * total and most[at] < peak}
        key = sorted(places, key=lambda at: -looked[at])[: math.ceil(keys * len(places))]
        want = sorted((set(places) - drop) | set(key)) or [
            max(places, key=lambda at: max(paid[at] / total / share, most[at] / peak))
        ]
        got = [tuple(at) for at in kept.nonzero().tolist() if at[0] in {v for v, _ in places}]
        assert got == want


def test_the_key_set_never_leaves_and_is_the_same_in_every_stage():
    evidence = make_evidence((CLS, MEAN, MOST))
    stages = MustDrop(share=1.0, peak=2.0, keys=0.2).stages(None)[1:]
    whole = [144, 432, 0, 360]
    left, seen = evidence, set()
    for stage in stages:
        left = left.restrict_to(stage.pruner(left))
        assert left.layout.total(left.layout.count).tolist() == [math.ceil(0.2 * n) for n in whole]
        seen.add(str(left.layout.column.tolist()))
    assert len(stages) == 4
    assert len(seen) == 1


def test_above_counts_and_a_sample_keeps_one():
    evidence = make_evidence((), {1: [(1, 3), (1, 2)], 2: [(1, 2)], 3: []})
    scores = torch.tensor([[1.0, 0.5, 2.0], [0.9, 1.0, math.inf], [0.1, 0.2, math.inf]])
    scores = scores.masked_fill(~evidence.layout.valid, -math.inf)
    assert Threshold()(scores, None, evidence).tolist() == [2, 1, 1]
    assert Threshold(0.6)(scores, None, evidence).tolist() == [2, 2, 1]
    assert Threshold(9)(scores, None, evidence).tolist() == [1, 0, 1]
    assert Threshold()(scores, torch.tensor([3, 1, 0]), evidence).tolist() == [2, 1, 1]


# stages


def test_stages_are_those_published_and_follow_their_fields():
    first, *inside = MustDrop().stages(None)
    assert (first.at, first.pruner, first.pruner.when) == ("encoder:0", WindowMerge(0.8, 3), "after")
    assert [(stage.at, stage.forget) for stage in inside] == [(f"llm:{k}", 2) for k in (3, 7, 11, 15)]
    assert {(stage.positions, stage.budget) for stage in (first, *inside)} == {("original", None)}
    assert plan_from_stages(MustDrop().stages(None)).needs == (CLS,)
    own = MustDrop(
        0.2, 0.3, layers=[1, 4], alike=0.5, keys=0.1, windows=False, forget=True, query="proxy", positions="compact"
    ).stages(None)
    assert [(stage.at, stage.forget, stage.positions) for stage in own] == [
        ("llm:1", 0, "compact"),
        ("llm:4", 0, "compact"),
    ]
    assert own[0].pruner.scorers == (TextShare(0.2), TextPeak(0.3), ClsKeySet(0.1, "proxy"))
    assert {stage.forget for stage in MustDrop(forget=False).stages(None)} == {None}
    assert MustDrop(alike=0.5, positions="compact").stages(None)[0].pruner == WindowMerge(0.5)
    assert MustDrop(positions="compact").stages(None)[0].positions == "compact"
    for layers in ((), (3, 1), (2, 2), (0, 2)):
        with pytest.raises(ValueError, match="layers are numbered from 0 and must ascend"):
            MustDrop(layers=layers)


@pytest.mark.parametrize(("tokens", "share", "peak"), [(192, 1e-3, 1e-3), (128, 1.2e-3, 1e-3), (64, 1.1e-2, 1e-2)])
def test_published_budgets_name_thresholds_and_others_are_refused(tokens, share, peak):
    for stage in MustDrop(share=0.5).stages(Budget(tokens))[1:]:
        assert stage.pruner.scorers[:2] == (TextShare(share), TextPeak(peak))
        assert stage.budget is None
    for budget in (Budget(tokens + 1), Budget(ratio=0.5), Budget(tokens, per="view")):
        with pytest.raises(ValueError, match="has presets for tokens=192, 128, 64 of 576"):
            MustDrop().stages(budget)


# end to end


def asked(family, samples, method):
    model, processor = backbone(family)
    compressed = compress(model, method, processor=processor)
    inputs = inputs_for(model, processor, samples)
    return compressed.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False), compressed.last


@pytest.mark.parametrize("family", SERVED)
def test_every_family_lets_tokens_leave_and_forgets_them(family):
    model, processor = backbone(family)
    adapter = adapter_for(model, processor)
    first = adapter.llm_first()
    layers, depth = (first, first + 1), len(adapter.llm_layers())
    forget = family != "gemma3"  # which has sliding windows
    samples = SAMPLES["ragged one"]
    most = int(adapter.arrange(inputs_for(model, processor, samples)).layout.untouched.max())
    method = MustDrop(1 / most, 1.0, layers=layers, keys=0.1, windows=False, forget=forget, query="proxy")
    out, last = asked(family, samples, method)
    whole, left = last.layout.untouched, last.tokens_after
    assert (left >= (whole * 0.1).ceil()).all()
    assert (left <= whole).all()
    assert (left < whole).any()
    assert torch.equal(last.tokens_per_layer[:, :first], whole[:, None].expand(-1, first))
    assert torch.equal(last.tokens_per_layer[:, first + 1 :], left[:, None].expand(-1, depth - first - 1))
    if not forget:
        assert torch.equal(last.tokens_per_layer[:, 0], whole)
        return
    # each layer from the first of `layers` on has forgotten what left
    lines = last.structural_before - last.structural_after
    per_token = last.kv_bytes_before / depth
    lengths = inputs_for(model, processor, samples)["attention_mask"].sum(1)
    gone = (whole - left + lines) * (depth - layers[0] + 1)
    assert (last.kv_bytes_before - last.kv_bytes).tolist() == (gone * per_token / lengths).round().long().tolist()
    for row, sample in enumerate(samples):
        if sample[1]:
            assert asked(family, [sample], method)[0][0, -3:].tolist() == out[row, -3:].tolist()


@pytest.mark.parametrize("family", ["llava", "video_llava"])
def test_windows_merge_in_the_encoder_and_what_is_left_goes_on(family):
    samples = SAMPLES["ragged one"]
    for alike, positions in ((-1.0, "original"), (-1.0, "compact"), (2.0, "original")):
        method = MustDrop(layers=(2, 3), alike=alike, share=0.1, peak=1.0, positions=positions)
        out, last = asked(family, samples, method)
        whole = last.layout.untouched
        sides = (last.layout.grid.amax(1) + 1) // 3  # windows down and across
        merged = last.layout.total(sides.prod(1) * 8) * (alike < 0)
        assert merged.any() == (alike < 0)
        assert last.tokens_per_layer[:, 0].tolist() == (whole - merged).tolist()
        assert last.tokens_per_layer[:, 1].tolist() == last.tokens_per_layer[:, 0].tolist()
        assert (last.tokens_after >= (whole * 0.08).ceil().minimum(whole - merged)).all()
        for row, sample in enumerate(samples):
            if sample[1]:
                assert asked(family, [sample], method)[0][0, -3:].tolist() == out[row, -3:].tolist()


def test_a_tower_that_cannot_be_pruned_inside_says_so():
    model, processor = backbone("qwen2_vl")
    with pytest.raises(ValueError, match="cannot be pruned at encoder:0"):
        compress(model, MustDrop(layers=(2, 3), query="proxy"), processor=processor)
