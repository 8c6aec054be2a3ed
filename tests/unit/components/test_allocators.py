"""Each allocator, and each ensembler that uses an overview, compared with a reference in plain Python."""

import math
import random
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from vtcframe import Budget, Evidence, Mean, Pipeline, Random, TopK
from vtcframe.components.allocators import AttentionMass, EffectiveRank, Entropy, Even, Joint, Outliers, OverviewGuided
from vtcframe.components.ensemblers import Borda, Max, OverviewFusion
from vtcframe.components.scorers import ClsAttention
from vtcframe.methods.globalcom2 import GlobalCom2
from vtcframe.methods.hired import HiRed
from vtcframe.methods.prumerge import OutliersAndSample
from vtcframe.ops.quotas import apportion
from vtcframe.ops.views import overview_of, overview_sums
from vtcframe.testing import check_allocator, check_ensembler, check_pruner, make_evidence

ALLOCATORS = (
    Even(),
    Joint(),
    Entropy(),
    EffectiveRank(),
    AttentionMass(),
    AttentionMass(alpha=0.0),
    AttentionMass(alpha=1.0),
    OverviewGuided(),
    OverviewGuided(tau=1e-3),
    Outliers(),
    OutliersAndSample(),
)
RAGGED = {1: [(2, 3), (4, 4), (1, 5)], 2: [], 3: [(3, 3)], 4: [(5, 2), (1, 1)]}


def cropped(needs=(), samples=None, **options):
    """Evidence with a single picture per sample: an overview, then horizontal bands of it from top to bottom."""
    evidence = make_evidence(needs, **({} if samples is None else {"samples": samples}), **options)
    layout = evidence.layout
    box = layout.box.clone()
    for p in layout.sample.unique().tolist():
        crops = (layout.sample == p).nonzero()[1:, 0].tolist()
        for i, v in enumerate(crops):
            box[v] = torch.tensor([i / len(crops), 0.0, (i + 1) / len(crops), 1.0])
    return replace(evidence, layout=replace(layout, image=layout.image * 0, box=box, centre=None))


@pytest.mark.parametrize("allocator", ALLOCATORS, ids=str)
@pytest.mark.parametrize("crops", [False, True])
def test_laws_hold_with_and_without_crops(allocator, crops, monkeypatch):
    if crops:
        monkeypatch.setattr("vtcframe.testing.laws.components.make_evidence", cropped)
    check_allocator(allocator)


@pytest.mark.parametrize("part", [Borda(), Max(), OverviewFusion()], ids=str)
@pytest.mark.parametrize("crops", [False, True])
def test_laws_of_ensemblers_hold_with_and_without_crops(part, crops, monkeypatch):
    if crops:
        monkeypatch.setattr("vtcframe.testing.laws.components.make_evidence", cropped)
    check_ensembler(part)


@pytest.mark.parametrize("method", [HiRed(), HiRed(0.2, "mean"), GlobalCom2(), GlobalCom2(1.0, "proxy")], ids=str)
@pytest.mark.parametrize("crops", [False, True])
def test_laws_of_methods_hold_with_and_without_crops(method, crops, monkeypatch):
    if crops:
        monkeypatch.setattr("vtcframe.testing.laws.components.make_evidence", cropped)
    check_pruner(method)


def apportioned_by_hand(total, weights, room):
    """Exactly, in fractions: fill what overflows until nothing does, then the largest remainders up."""
    total, quota = min(total, sum(room)), {}
    while len(quota) < len(room):
        rest = [v for v in range(len(room)) if v not in quota]
        remaining = total - sum(quota.values())
        weight_sum = sum(weights[v] for v in rest)
        part = {
            v: Fraction(remaining * weights[v], weight_sum) if weight_sum else Fraction(remaining, len(rest))
            for v in rest
        }
        full = [v for v in rest if part[v] >= room[v]]
        if not full:
            up = sorted(rest, key=lambda v: (math.floor(part[v]) - part[v], v))
            short = remaining - sum(math.floor(part[v]) for v in rest)
            return [quota.get(v, 0) or math.floor(part.get(v, 0)) + (v in up[:short]) for v in range(len(room))]
        quota |= {v: room[v] for v in full}
    return [quota[v] for v in range(len(room))]


@pytest.mark.parametrize("seed", range(40))
def test_apportion_equals_its_reference_in_fractions(seed):
    rng = random.Random(seed)
    samples = {p: [(1, rng.randrange(1, 9)) for _ in range(rng.randrange(5))] for p in range(4)}
    samples[9] = [(1, 4), (1, 7)]
    layout = make_evidence(samples=samples).layout
    weight = [rng.choice([0, 1, 1, 2, 5, 1000]) for _ in layout.sample]
    budget = [rng.randrange(sum(c for _, c in grids) + 1) for grids in samples.values()]
    want = []
    for p, total in enumerate(budget):
        views = [v for v, owner in enumerate(layout.sample.tolist()) if owner == p]
        want += apportioned_by_hand(total, [weight[v] for v in views], [int(layout.count[v]) for v in views])
    assert apportion(torch.tensor(budget), torch.tensor(weight), layout).tolist() == want


def test_apportion_gives_remainders_to_the_first_and_excess_to_the_others():
    layout = make_evidence(samples={1: [(1, 9)] * 3, 2: [(1, 2), (1, 9), (1, 9)]}).layout
    weight = torch.tensor([1.0, 1.0, 1.0, 8.0, 1.0, 1.0])
    assert apportion(torch.tensor([7, 9]), weight, layout).tolist() == [3, 2, 2, 2, 4, 3]
    nothing = torch.tensor([0.0, -1.0, torch.nan, torch.inf, 0.0, 0.0])  # falls back to even shares
    assert apportion(torch.tensor([6, 4]), nothing, layout).tolist() == [2, 2, 2, 2, 1, 1]


def drawn(evidence, seed, levels=5):
    """Scores full of ties, -inf at padding."""
    rng = random.Random(seed)
    scores = torch.tensor([[float(rng.randrange(levels)) for _ in row] for row in evidence.layout.column])
    return scores.masked_fill(~evidence.layout.valid, -torch.inf)


@pytest.mark.parametrize("seed", range(10))
def test_joint_counts_a_samples_highest_scores_in_each_view(seed):
    evidence = make_evidence(samples=RAGGED)
    layout, scores, rng = evidence.layout, drawn(evidence, seed), random.Random(seed)
    budget = [rng.randrange(1 + int(n)) for n in layout.total(layout.count)]
    want = [0] * len(layout.sample)
    for p, total in enumerate(budget):
        every = [
            (-float(scores[v, n]), v, n)
            for v in (layout.sample == p).nonzero()[:, 0].tolist()
            for n in range(int(layout.count[v]))
        ]
        for _, v, _ in sorted(every)[:total]:
            want[v] += 1
    assert Joint()(scores, torch.tensor(budget), evidence).tolist() == want


def test_joint_keeps_what_the_joined_row_of_a_sample_keeps():
    evidence, budget = make_evidence(), Budget(ratio=0.3)
    views = Pipeline((Random(),), Mean(), Joint(), TopK())(evidence, budget)
    joined = Pipeline((Random(),), Mean(), Even(), TopK(), across="sample")(evidence, budget)
    for p in (0, 1, 3):
        assert torch.equal(views.sequence(p)[1], joined.sequence(p)[1])


def test_entropy_is_the_effective_number_of_tokens():
    evidence = make_evidence(samples={1: [(1, 4), (1, 4), (1, 4), (1, 8)]})
    scores = torch.full((4, 8), -torch.inf)
    scores[0, :4] = torch.tensor([1.0, 0, 0, -5])  # 1: negative scores count as none
    scores[1, :4] = torch.tensor([0.5, 0.5, 0, 0])  # 2
    scores[2, :4] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    scores[3] = 0.0  # nothing to go by: counted as 1
    numbers = [1.0, 2.0, math.exp(-sum(p * math.log(p) for p in (0.1, 0.2, 0.3, 0.4))), 1.0]
    want = apportion(torch.tensor([9]), torch.tensor(numbers), evidence.layout)
    assert Entropy()(scores, torch.tensor([9]), evidence).tolist() == want.tolist() == [1, 3, 4, 1]


def test_effective_rank_is_that_of_a_views_tokens():
    evidence = make_evidence(samples={1: [(1, 3), (1, 3), (1, 9)]}, channels=3)
    tokens = torch.full((3, 9, 3), 1e4)
    tokens[0, :3] = torch.eye(3) * torch.tensor([[4.0], [3.0], [1.0]])
    tokens[1, :3] = torch.tensor([1.0, 2.0, 3.0])  # one token three times
    tokens[2] = torch.eye(3).repeat(3, 1)
    rank = math.exp(-sum(p * math.log(p) for p in (4 / 8, 3 / 8, 1 / 8)))
    want = apportion(torch.tensor([8]), torch.tensor([rank, 1.0, 3.0]), evidence.layout)
    got = EffectiveRank()(torch.zeros(3, 9), torch.tensor([8]), replace(evidence, tokens=tokens))
    assert got.tolist() == want.tolist() == [3, 1, 4]


def test_an_overview_is_the_first_whole_view_of_a_picture_that_has_others():
    evidence = make_evidence(samples={1: [(2, 2)] * 4, 2: [(2, 2)] * 3, 3: [(2, 2)]})
    box = torch.tensor([[0.0, 0, 1, 1]]).repeat(8, 1)
    box[0, 2], box[1, 0] = 0.5, 0.5  # tiles first, their thumbnail behind them (InternVL)
    image = torch.tensor([0, 0, 0, 1, 0, 0, 1, 0])  # sample 2: a stitched map (OneVision), and a picture of its own
    layout = replace(evidence.layout, box=box, image=image)
    assert overview_of(layout).tolist() == [2, 2, -1, -1, -1, 4, -1, -1]
    frames = replace(layout, image=image * 0, frame=torch.arange(8))
    assert overview_of(frames).tolist() == [-1] * 8


def mass_by_hand(values, layout, o, v):
    """The sum of the values of view o inside the box of view v."""
    top, left, bottom, right = layout.box[v].tolist()
    total = 0.0
    for n in range(int(layout.count[o])):
        y, x = layout.centre[o, n].tolist()
        total += float(values[o, n]) * (top <= y < bottom and left <= x < right)
    return total


def test_a_token_on_the_border_of_crops_lies_in_one_and_padding_in_none():
    evidence = cropped(samples={1: [(3, 2), (2, 2), (2, 2)], 2: [(7, 7)]})
    layout = evidence.layout
    box = layout.box.clone()
    box[1, :2], box[2, 2:] = -1.0, 2.0  # tiles of a canvas that is larger than the picture
    values = drawn(evidence, 0)
    values[0, :6] = torch.arange(6.0)
    sums = overview_sums(values, replace(layout, box=box, centre=layout.centre.where(layout.valid[..., None], -0.5)))
    assert sums.tolist() == [0.0, 1.0, 2.0 + 3 + 4 + 5, 0.0]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_attention_mass_equals_its_reference(alpha):
    allocator = AttentionMass(alpha)
    evidence = cropped(allocator.needs, {1: [(6, 4), (4, 4), (3, 3), (4, 2)], 2: [(5, 5)], 3: [(4, 4), (8, 4)]})
    layout = evidence.layout
    heat = evidence[allocator.needs[0]][0].mean(1)
    crops = [mass_by_hand(heat, layout, 0, v) for v in (1, 2, 3)]
    assert overview_sums(heat, layout)[1:4].tolist() == pytest.approx(crops)
    weight = [alpha, *((1 - alpha) * mass / sum(crops) for mass in crops), 1.0, alpha, 1 - alpha]
    budget = torch.tensor([19, 7, 11])
    assert torch.equal(allocator(heat, budget, evidence), apportion(budget, torch.tensor(weight), layout))


def test_attention_mass_shares_a_sample_evenly_over_the_views_of_its_pictures():
    allocator = AttentionMass(0.5)
    evidence = make_evidence(allocator.needs, {1: [(9, 9)] * 4})
    box = torch.tensor([[0.0, 0, 1, 1], [0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 1, 1]])
    layout = replace(evidence.layout, image=torch.tensor([0, 0, 0, 1]), box=box)
    readings = {allocator.needs[0]: torch.zeros(1, 4, 1, 81)}  # no attention anywhere: crops share evenly
    quota = allocator(torch.zeros(4, 81), torch.tensor([80]), Evidence(evidence.tokens, layout, readings))
    assert quota.tolist() == [30, 15, 15, 20]


def test_attention_mass_names_the_samples_whose_attention_is_broken():
    allocator = AttentionMass()
    evidence = cropped(allocator.needs)
    evidence[allocator.needs[0]][0, 4, 0, 3] = torch.nan  # the overview of sample 3
    with pytest.raises(ValueError, match=r"block 0 of samples \[3\] is not finite"):
        allocator(torch.zeros(6, 324), torch.tensor([4, 4, 0, 4]), evidence)


@pytest.mark.parametrize("tau", [10.0, 0.5])
def test_overview_guided_equals_its_reference(tau):
    evidence = cropped(samples={1: [(6, 4), (4, 4), (3, 3), (4, 2)], 2: [(5, 5)], 3: [(4, 4), (8, 4)]})
    layout, scores = evidence.layout, drawn(evidence, 1)
    totals = [mass_by_hand(scores, layout, 0, v) / tau for v in (1, 2, 3)]
    parts = [math.exp(x - max(totals)) for x in totals]
    density = [1.0, *(1 + part / sum(parts) - 1 / 3 for part in parts), 1.0, 1.0, 1.0]
    assert OverviewGuided(tau).density(scores, layout).tolist() == pytest.approx(density)
    weight = torch.tensor(density, dtype=torch.double) * layout.count
    budget = torch.tensor([23, 6, 20])
    assert torch.equal(OverviewGuided(tau)(scores, budget, evidence), apportion(budget, weight, layout))


def quartile(ordered, q):
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


@pytest.mark.parametrize("seed", range(10))
def test_outliers_lie_above_the_third_quartile_by_more_than_its_distance_to_the_first(seed):
    evidence, rng = make_evidence(samples=RAGGED | {7: [(6, 9)]}), random.Random(seed)
    layout = evidence.layout
    scores = torch.tensor([[rng.choice([rng.random(), rng.random(), 9.0]) for _ in row] for row in layout.column])
    want = []
    for v, count in enumerate(layout.count.tolist()):
        row = sorted(scores[v, :count].tolist())
        q1, q3 = quartile(row, 0.25), quartile(row, 0.75)
        want.append(max(1, sum(x > q3 + 1.5 * (q3 - q1) for x in row)))
    scores = scores.masked_fill(~layout.valid, -torch.inf)
    assert Outliers()(scores, None, evidence).tolist() == want
    budget = Budget(ratio=0.4).total(layout)
    assert torch.equal(Outliers()(scores, budget, evidence), apportion(budget, torch.tensor(want), layout))
    level = scores.where(~layout.valid, 0.5)
    assert Outliers()(level, None, evidence).tolist() == [1] * len(want)  # nothing stands out: the first


def test_allocators_that_do_not_adapt_require_a_budget():
    evidence = cropped(AttentionMass().needs)
    for allocator in ALLOCATORS:
        if isinstance(allocator, Outliers | OutliersAndSample):
            continue
        with pytest.raises(ValueError, match=f"{type(allocator).__name__} shares out a budget: give tokens or ratio"):
            allocator(torch.zeros(6, 324), None, evidence)


def test_invalid_options_are_refused():
    for alpha in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"must lie in \[0, 1\], got {alpha}"):
            AttentionMass(alpha)
    with pytest.raises(ValueError, match=r"query must be one of 'cls'.*got 'clss'"):
        AttentionMass(query="clss")
    for tau in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"must be positive, got {tau}"):
            OverviewGuided(tau)


@pytest.mark.parametrize("seed", range(5))
def test_borda_and_max_equal_their_references(seed):
    evidence = make_evidence(samples=RAGGED)
    layout = evidence.layout
    maps = [torch.stack([drawn(evidence, 3 * seed + i), drawn(evidence, i)]) for i in range(2)]
    maps = [m.masked_fill(~layout.valid, 1e4) for m in maps]
    borda, highest = Borda()(maps, layout), Max()(maps, layout)
    for v, count in enumerate(layout.count.tolist()):
        for n in range(count):
            rows = [layer[v, :count].tolist() for m in maps for layer in m]
            assert float(highest[v, n]) == max(row[n] for row in rows)
            below = [sum(x < row[n] or (x == row[n] and j > n) for j, x in enumerate(row)) for row in rows]
            share = [(b / (count - 1)) if count > 1 else 1.0 for b in below]
            assert float(borda[v, n]) == pytest.approx(sum(share) / 4)


def bilinear(values, rows, columns, y, x):
    """Read a map at y, x in 0..1; beyond the outermost centres it stays what it is there."""
    y, x = min(max(y * rows - 0.5, 0), rows - 1), min(max(x * columns - 0.5, 0), columns - 1)
    i, j = math.floor(y), math.floor(x)
    total = 0.0
    for r, near_r in ((i, 1 - (y - i)), (min(i + 1, rows - 1), y - i)):
        for c, near_c in ((j, 1 - (x - j)), (min(j + 1, columns - 1), x - j)):
            total += near_r * near_c * values[r * columns + c]
    return total


def test_overview_fusion_equals_its_reference():
    grids = {1: [(6, 4), (4, 5), (3, 3)], 2: [(5, 5)], 3: [(4, 3), (8, 4)]}
    evidence = cropped(samples=grids)
    layout = evidence.layout
    scores = drawn(evidence, 2, levels=50).masked_fill(~layout.valid, 1e4)
    fused = OverviewFusion()([scores[None]], layout)
    sides = [grid for views in grids.values() for grid in views]
    for v, o in enumerate(overview_of(layout).tolist()):
        count = int(layout.count[v])
        scores_of_view = scores[v, :count].tolist()
        want = scores_of_view
        if o >= 0:
            overview = scores[o, : int(layout.count[o])].tolist()
            piece = [bilinear(overview, *sides[o], *layout.centre[v, n].tolist()) for n in range(count)]
            lengths = [math.sqrt(sum(x * x for x in xs)) for xs in (scores_of_view, piece)]
            want = [a / lengths[0] + b / lengths[1] for a, b in zip(scores_of_view, piece, strict=True)]
        assert fused[v, :count].tolist() == pytest.approx(want, abs=1e-5)


def test_methods_for_crops_have_a_cls_proxy():
    assert (str(HiRed()), str(GlobalCom2(query="mean"))) == ("HiRed(alpha=0.5)", "GlobalCom2(tau=10.0, query='mean')")
    assert HiRed(query="mean").needs == (*ClsAttention(1, "mean").needs, *AttentionMass(query="mean").needs)
