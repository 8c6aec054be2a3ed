"""Each merger compared with a reference in plain Python, on ragged views whose padding is NaN."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from support.merger_cases import drawn
from vtcframe import AttentionKeys, Budget, ClassToken, Even, Evidence, HiddenStates, Mean, Pipeline, Random, TopK
from vtcframe.components.mergers import Absorb, CellMean, Contextual, Fuse, Nearest
from vtcframe.components.scorers import ClsAttention
from vtcframe.methods.baselines import Pool
from vtcframe.methods.prumerge import PruMerge, TopAndSample
from vtcframe.methods.visionzip import VisionZip
from vtcframe.testing import check_merger, make_evidence

MERGERS = (
    Nearest(),
    CellMean(),
    Fuse(),
    Fuse(mean=False),
    Contextual(),
    Contextual(share=0.0),
    Contextual(share=1.0),
    Absorb(),
    Absorb(nearest=1, summary=False),
)


@pytest.mark.parametrize("merger", MERGERS, ids=str)
def test_laws_hold_for_mergers(merger):
    check_merger(merger)


def rows(evidence, kept):
    """(v, places kept, places dropped) of each row."""
    for v, count in enumerate(evidence.layout.count.tolist()):
        on = [n for n in range(count) if kept[v, n]]
        yield v, on, [n for n in range(count) if not kept[v, n]]


def similarity(a, b):
    return float(F.normalize(a, dim=0) @ F.normalize(b, dim=0))


def nearest_by_hand(on, n, measure, last=False):
    """The first of those that measure highest, or the last; differences below the last bits count as none."""
    values = [measure(n, m) for m in on]
    return [m for m, value in zip(on, values, strict=True) if value >= max(values) - 1e-6][-last]


def joined_by_hand(x, on, off, measure, last=False):
    groups = {m: [x[m]] for m in on}
    for n in off:
        if on:
            groups[nearest_by_hand(on, n, measure, last)].append(x[n])
    return [sum(group) / len(group) for group in groups.values()]


def agree(pruned, v, tokens, place):
    assert [n for n in pruned.place[v].tolist() if n >= 0] == place
    if place:
        torch.testing.assert_close(pruned.tokens[v, : len(place)], torch.stack(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [0, 1, 3])
def test_nearest_and_cell_mean_equal_their_references(seed, levels):
    evidence, kept, scores = drawn((), seed, levels=levels)
    none = kept.sum(1) * 0
    by_token, by_place = Nearest()(kept, none, scores, evidence), CellMean()(kept, none, scores, evidence)
    for v, on, off in rows(evidence, kept):
        x, at = evidence.tokens[v], evidence.layout.grid[v].tolist()
        means = joined_by_hand(x, on, off, lambda n, m, x=x: similarity(x[n], x[m]))
        agree(by_token, v, means, on)
        means = joined_by_hand(x, on, off, lambda n, m, at=at: -math.dist(at[n], at[m]), last=True)
        agree(by_place, v, means, on)


@pytest.mark.parametrize("seed", range(4))
def test_fuse_equals_its_reference(seed):
    evidence, kept, scores = drawn((), seed)
    slots = Fuse().slots(kept.sum(1) + 1, evidence.layout)
    assert slots.tolist() == [1, 1, 1, 0]  # the last view is a single token: nothing is dropped of it
    mean, total = Fuse()(kept, slots, scores, evidence), Fuse(mean=False)(kept, slots, scores, evidence)
    for v, on, off in rows(evidence, kept):
        if not slots[v]:
            continue
        x, a = evidence.tokens[v], scores[v]
        fused = sum(a[n] * x[n] for n in off)
        agree(total, v, [*x[on], fused], [*on, off[0]])
        agree(mean, v, [*x[on], fused / sum(a[n] for n in off)], [*on, off[0]])


def test_fuse_weighs_by_positive_scores_and_evenly_where_there_are_none():
    evidence = make_evidence(samples={1: [(1, 4)], 2: [(1, 4)]})
    kept = torch.tensor([[True, False, False, False]] * 2)
    scores = torch.tensor([[0.0, -3.0, 1.0, 3.0], [0.0, -1.0, -2.0, 0.0]])
    fused = Fuse()(kept, torch.tensor([1, 1]), scores, evidence).tokens[:, 1]
    torch.testing.assert_close(fused[0], evidence.tokens[0, 2] / 4 + evidence.tokens[0, 3] * 3 / 4)
    torch.testing.assert_close(fused[1], evidence.tokens[1, 1:].mean(0))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("class_token", [False, True])
def test_contextual_equals_its_reference(seed, class_token):
    merger = Contextual(0.3, class_token)
    evidence, kept, scores = drawn(merger.needs, seed)
    slots = torch.tensor([4, 1, 7, 0]) + class_token
    slots = slots.minimum((evidence.layout.valid & ~kept).sum(1))
    pruned = merger(kept, slots, scores, evidence)
    project = evidence.project
    for v, on, off in rows(evidence, kept):
        x, keys = evidence[HiddenStates()][v], evidence[AttentionKeys((-1,))][0, v].mean(0)
        target_count = max(int(slots[v]) - class_token, 0)
        targets = off[:: max(1, len(off) // max(target_count, 1))][:target_count]
        others = [n for n in off if n not in targets]
        joined = {t: [] for t in targets}
        for n in others if targets else []:
            joined[nearest_by_hand(targets, n, lambda n, m, keys=keys: similarity(keys[n], keys[m]))].append(x[n])
        merged = [project(x[t] + (sum(group) / len(group) if group else 0)) for t, group in joined.items()]
        tokens, place = [*evidence.tokens[v, on], *merged], [*on, *targets]
        if class_token and slots[v]:
            tokens, place = [project(evidence[ClassToken()][v]), *tokens], [others[0], *place]
        agree(pruned, v, tokens, place)


def test_the_slots_of_contextual_are_its_share_and_the_class_token():
    layout = make_evidence(samples={1: [(24, 24)], 2: [(1, 3)]}).layout
    for quota, share, whole in ((64, 10, 11), (128, 20, 21), (192, 30, 31), (1, 0, 1), (0, 0, 0), (576, 0, 0)):
        quota = torch.tensor([quota, 3])
        assert Contextual().slots(quota, layout).tolist() == [share, 0]
        assert Contextual(class_token=True).slots(quota, layout).tolist() == [whole, 0]


def outliers_by_hand(row):
    ordered = sorted(row)

    def quartile(q):
        place = q * (len(row) - 1)
        low = math.floor(place)
        return ordered[low] + (place - low) * (ordered[min(low + 1, len(row) - 1)] - ordered[low])

    return [x > quartile(0.75) + 1.5 * (quartile(0.75) - quartile(0.25)) for x in row]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 3, 100])
def test_absorb_equals_its_reference(seed, count):
    merger = Absorb(count)
    evidence, kept, scores = drawn(merger.needs, seed)
    for v, (a, b) in enumerate(((1, 5), (0, 2), (7, 20), (0, 0))):  # some outliers
        scores[v, a], scores[v, b] = 8.0 + v, 9.0 if b < evidence.layout.count[v] else scores[v, b]
    slots = merger.slots(kept.sum(1) + 1, evidence.layout)
    pruned = merger(kept, slots, scores, evidence)
    for v, on, off in rows(evidence, kept):
        if not off:
            agree(pruned, v, list(evidence.tokens[v, on]), on)
            continue
        x, a = evidence[HiddenStates()][v], scores[v]
        keys = evidence[merger.needs[1]][0, v].transpose(0, 1).flatten(1)
        stands_out = outliers_by_hand(a[: len(on) + len(off)].tolist())
        order = sorted(on, key=lambda n: (not stands_out[n], -float(a[n]) if stands_out[n] else n))
        merged = []
        for m in order:
            others = sorted((n for n in on + off if n != m), key=lambda n: -similarity(keys[m], keys[n]))
            merged.append(evidence.project(x[m] + sum(a[n] * x[n] for n in others[:count])))
        merged.append(evidence.project(sum(a[n] * x[n] for n in off)))
        agree(pruned, v, merged, [*order, off[0]])


def test_absorb_takes_the_first_of_equal_neighbours():
    merger = Absorb(2, summary=False)
    evidence = make_evidence(merger.needs, {1: [(1, 6)]}, channels=2)
    key, feature = torch.ones(1, 1, 4, 6, 2), torch.eye(6)[None, :, :]
    readings = {merger.needs[1]: key, HiddenStates(): feature}
    evidence = Evidence(torch.zeros(1, 6, 6), evidence.layout, readings, lambda features: features)
    kept = torch.tensor([[False, True, False, False, True, False]])
    pruned = merger(kept, torch.tensor([0]), torch.ones(1, 6), evidence)
    assert pruned.tokens[0].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 1, 0]]


@pytest.mark.parametrize("merger", MERGERS, ids=str)
def test_a_row_that_keeps_all_tokens_does_not_change(merger):
    evidence = make_evidence((*merger.needs, *ClsAttention(1).needs))
    budget = torch.tensor([5, 100, 0, 10**6])
    total = budget.minimum(evidence.layout.total(evidence.layout.count))

    class FixedBudget:
        def total(self, layout):
            return total

    pruned = Pipeline((ClsAttention(1),), Mean(), Even(), TopK(), merger)(evidence, FixedBudget())
    assert pruned.total.tolist() == total.tolist()
    for v in (4, 5):  # the sample that keeps all
        count = int(evidence.layout.count[v])
        assert pruned.place[v, :count].tolist() == list(range(count))
        assert torch.equal(pruned.tokens[v, :count], evidence.tokens[v, :count])


@pytest.mark.parametrize("budget", [144, 64, 36, 16, 1])
def test_pool_is_average_pooling_where_the_grid_divides(budget):
    evidence = make_evidence(samples={1: [(24, 24)], 2: [(24, 24)]})
    pruned = Pool()(evidence, Budget(budget))
    stride = 24 // math.isqrt(budget)
    picture = evidence.tokens.unflatten(1, (24, 24)).movedim(-1, 1)
    want = F.avg_pool2d(picture, stride).flatten(2).mT
    torch.testing.assert_close(pruned.tokens, want, atol=1e-5, rtol=1e-5)


def test_pool_averages_every_token_once_at_any_budget():
    evidence = make_evidence()
    for budget in (7, 50, 101):
        pruned = Pool()(evidence, Budget(budget, per="view"))
        for v, count in enumerate(evidence.layout.count.tolist()):
            assert int((pruned.place[v] >= 0).sum()) == min(budget, count)
            low, high = evidence.tokens[v, :count].amin(0), evidence.tokens[v, :count].amax(0)
            merged = pruned.tokens[v, : min(budget, count)]
            assert ((merged >= low - 1e-6) & (merged <= high + 1e-6)).all()


@pytest.mark.parametrize("merger", MERGERS, ids=str)
def test_autocast_and_half_precision_do_not_reach_the_sums(merger):
    evidence, kept, scores = drawn(merger.needs, 0)
    slots = merger.slots(kept.sum(1) + 1, evidence.layout)
    evidence = replace(evidence, project=lambda features: features)
    plain = merger(kept, slots, scores, evidence)
    with torch.autocast("cpu", torch.bfloat16):
        cast = merger(kept, slots, scores, evidence)
    assert torch.equal(plain.place, cast.place)
    assert torch.equal(plain.tokens, cast.tokens)
    half = replace(
        evidence,
        tokens=evidence.tokens.bfloat16(),
        readings={need: x.bfloat16() for need, x in evidence.readings.items()},
    )
    pruned = merger(kept, slots, scores, half)
    assert pruned.tokens.dtype == torch.bfloat16
    real = plain.place >= 0
    torch.testing.assert_close(pruned.tokens[real].float(), plain.tokens[real], atol=0.2, rtol=0.02)


@pytest.mark.parametrize("merger", MERGERS, ids=str)
def test_padding_never_influences_tokens(merger):
    evidence, kept, scores = drawn(merger.needs, 0)
    evidence = replace(evidence, project=lambda features: features)
    padding = ~evidence.layout.valid

    def poisoned(x, axes):
        x = x.clone()
        x.movedim((axes.index("V"), axes.index("N")), (0, 1))[padding] = torch.nan
        return x

    readings = {need: poisoned(x, need.axes) for need, x in evidence.readings.items()}
    broken = replace(evidence, tokens=poisoned(evidence.tokens, "VNC"), readings=readings)
    slots = merger.slots(kept.sum(1) + 1, evidence.layout)
    want, got = merger(kept, slots, scores, evidence), merger(kept, slots, scores, broken)
    real = want.place >= 0
    assert torch.equal(want.place, got.place)
    assert torch.equal(want.tokens[real], got.tokens[real])


def test_mergers_of_features_refuse_loaded_evidence(tmp_path):
    for merger in (Absorb(), Contextual()):
        evidence, kept, scores = drawn(merger.needs, 0)
        evidence.save(tmp_path / "evidence.safetensors")
        loaded = Evidence.load(tmp_path / "evidence.safetensors")
        with pytest.raises(ValueError, match=rf"{type(merger).__name__}.*observe the model, or use Nearest"):
            merger(kept, kept.sum(1) * 0 + 1, scores, loaded)
    for merger in (Nearest(), CellMean(), Fuse()):
        evidence, kept, scores = drawn((), 0)
        merger(kept, kept.sum(1) * 0, scores, replace(evidence, project=None))


def test_a_class_token_has_no_place_in_joined_rows():
    parts = (Random(),), Mean(), Even(), TopK(), Contextual(class_token=True)
    pipeline = Pipeline(*parts, across="sample")
    with pytest.raises(ValueError, match="use across='view', or class_token=False"):
        pipeline(make_evidence(pipeline.needs), Budget(20))


def test_invalid_options_are_refused():
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"must lie in \[0, 1\], got {share}"):
            VisionZip(share).pipeline()
        with pytest.raises(ValueError, match=rf"must lie in \[0, 1\], got {share}"):
            TopAndSample(share)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        PruMerge(0).pipeline()
