"""Each component beside a reference in plain Python, and the laws for everything that is registered."""

import math
import random
from dataclasses import replace

import pytest
import torch

from vtcframe import (
    AttentionRows,
    Budget,
    ClsAttention,
    Even,
    FasterVlm,
    Grid,
    MaxMin,
    Mean,
    Pipeline,
    Random,
    RankFusion,
    TokenNorm,
    TopK,
    VtcCls,
    Weighted,
)
from vtcframe.registry import entries
from vtcframe.testing import (
    check_allocator,
    check_ensembler,
    check_merger,
    check_pruner,
    check_scorer,
    check_selector,
    make_evidence,
    make_layout,
)

OPTIONS = {  # what has no default
    "Weighted": {"weights": (0.7, 0.3)},
    "AuxiliaryClsAttention": {"model": "timm:any"},
    "QuestionSimilarity": {"model": "open_clip:any"},
    "Mixed": {"rest": MaxMin()},
    "DemoteSinks": {"scorer": Random(), "dims": (1, 3), "threshold": 1.0},
}
CHECKS = {
    "scorer": check_scorer,
    "ensembler": check_ensembler,
    "allocator": check_allocator,
    "selector": check_selector,
    "merger": check_merger,
    "pruner": check_pruner,
}
REGISTERED = [
    entry
    for entry in entries()
    if entry.kind in CHECKS
    and entry.name != "Pipeline"
    and getattr(getattr(entry.load(), "card", None), "site", "projector") == "projector"  # others have stages only
]


@pytest.mark.parametrize("entry", REGISTERED, ids=lambda entry: entry.name)
def test_laws_hold_for_every_registered_component(entry):
    CHECKS[entry.kind](entry.load()(**OPTIONS.get(entry.name, {})))


@pytest.mark.parametrize("across", ["view", "sample"])
def test_laws_hold_for_a_pipeline_of_two_scorers(across):
    scorers = (ClsAttention(2), Random(1))
    check_pruner(Pipeline(scorers, RankFusion(), Even(), TopK(), across=across))
    check_pruner(Pipeline(scorers, Weighted((1.0, 0.01)), Even(), Grid(), across=across))


def test_cls_attention_is_the_mean_over_heads_of_the_last_feeding_blocks():
    need = AttentionRows("cls", (-3, -2, -1))
    assert ClsAttention(last=3).needs == (need,)
    evidence = make_evidence((need,))
    scores, rows = ClsAttention(last=3)(evidence), evidence[need]
    for layer, view, token in ((0, 0, 5), (2, 3, 100)):
        by_hand = sum(float(rows[layer, view, head, token]) for head in range(4)) / 4
        assert float(scores[layer, view, token]) == pytest.approx(by_hand, abs=1e-6)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ClsAttention(last=0)


def test_token_norm_is_the_euclidean_length():
    evidence = make_evidence()
    by_hand = math.sqrt(sum(float(x) ** 2 for x in evidence.tokens[2, 7]))
    assert float(TokenNorm()(evidence)[0, 2, 7]) == pytest.approx(by_hand, abs=1e-6)


def mixed(x):
    """SplitMix64's finaliser on Python integers."""
    x &= 2**64 - 1
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def test_random_is_a_hash_of_seed_key_and_column():
    evidence = make_evidence()
    layout = evidence.layout
    scores = Random(seed=5)(evidence)[0]
    for view, token in ((0, 0), (2, 17), (5, 35)):
        key = int(layout.key[layout.sample[view]])
        bits = mixed(mixed(key ^ mixed(5)) + int(layout.column[view, token]))
        assert float(scores[view, token]) == ((bits >> 40) & 0xFFFFFF) / 2**24


def test_random_is_uniform_and_unrelated_between_samples_seeds_and_neighbours():
    evidence = make_evidence(samples={1: [(100, 100)], 2: [(100, 100)]})
    u, v = Random(0)(evidence)[0], Random(1)(evidence)[0]
    assert abs(float(u.mean()) - 0.5) < 0.01
    assert abs(float(u.std()) - 12**-0.5) < 0.01
    for a, b in ((u[0], u[1]), (u[0], v[0]), (u[0, 1:], u[0, :-1])):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.03


def drawn_maps(seed, layers=(2, 1), levels=4):
    """Maps full of ties over views of 4, 3 and 1 tokens, poison at padding."""
    layout = make_layout({1: [(2, 2)], 2: [(1, 3), (1, 1)]})
    rng = random.Random(seed)
    maps = [
        torch.tensor([[[rng.randrange(levels) / 2 for _ in range(4)] for _ in range(3)] for _ in range(n)])
        for n in layers
    ]
    return [m.masked_fill(~layout.valid, 1e4) for m in maps], layout


@pytest.mark.parametrize("seed", range(5))
def test_ensemblers_equal_their_references(seed):
    maps, layout = drawn_maps(seed)
    mean, weighted, fused = Mean()(maps, layout), Weighted((2.0, -1.0))(maps, layout), RankFusion(k=10)(maps, layout)
    for v in range(3):
        for n in range(int(layout.count[v])):
            means = [sum(float(layer[v, n]) for layer in m) / len(m) for m in maps]
            assert float(mean[v, n]) == pytest.approx(sum(means) / 2)
            assert float(weighted[v, n]) == pytest.approx(2 * means[0] - means[1])
            total = 0.0
            for layer in (layer for m in maps for layer in m):
                row = [float(x) for x in layer[v, : int(layout.count[v])]]
                rank = 1 + sum(x > row[n] or (x == row[n] and j < n) for j, x in enumerate(row))
                total += 1 / (10 + rank)
            assert float(fused[v, n]) == pytest.approx(total)


def test_weighted_wants_a_weight_for_each_scorer_and_rank_fusion_no_negative_k():
    maps, layout = drawn_maps(0)
    with pytest.raises(ValueError, match="3 weights for 2 scorers"):
        Weighted((1.0, 2.0, 3.0))(maps, layout)
    with pytest.raises(ValueError, match="got -1"):
        RankFusion(k=-1)


def even_by_hand(total, counts):
    """Deal tokens out one by one, round after round, the first views first."""
    quota = [0] * len(counts)
    while sum(quota) < min(total, sum(counts)):
        least = min(q for q, c in zip(quota, counts, strict=True) if q < c)
        v = next(i for i, (q, c) in enumerate(zip(quota, counts, strict=True)) if q == least and q < c)
        quota[v] += 1
    return quota


@pytest.mark.parametrize("seed", range(30))
def test_even_equals_dealing_out_one_by_one(seed):
    rng = random.Random(seed)
    samples = {p: [(1, rng.randrange(1, 9)) for _ in range(rng.randrange(5))] for p in range(3)}
    samples[9] = [(1, 4)]
    evidence = make_evidence(samples=samples)
    budget = torch.tensor([rng.randrange(sum(c for _, c in grids) + 1) for grids in samples.values()])
    want = [
        quota
        for total, grids in zip(budget.tolist(), samples.values(), strict=True)
        for quota in even_by_hand(total, [c for _, c in grids])
    ]
    got = Even()(torch.zeros(evidence.layout.column.shape), budget, evidence).tolist()
    # where a remainder goes to is free among views that are not full; ours: the first of the larger ones
    assert sorted(got) == sorted(want)
    assert sum(got) == int(budget.sum())


def test_even_gives_the_remainder_to_the_first_of_the_larger_views():
    evidence = make_evidence(samples={1: [(1, 2), (1, 9), (1, 9), (1, 9)]})
    assert Even()(evidence.layout.column, torch.tensor([13]), evidence).tolist() == [2, 4, 4, 3]
    with pytest.raises(ValueError, match="Even shares out a budget"):
        Even()(evidence.layout.column, None, evidence)


@pytest.mark.parametrize("seed", range(10))
def test_top_k_keeps_the_highest_and_of_equals_the_first(seed):
    rng = random.Random(seed)
    evidence = make_evidence(samples={1: [(1, 7), (1, 4)]})
    valid = evidence.layout.valid
    scores = torch.tensor([[float(rng.randrange(3)) for _ in range(7)] for _ in range(2)])
    scores = scores.masked_fill(~valid, -torch.inf)
    quota = torch.tensor([rng.randrange(8), rng.randrange(5)])
    kept = TopK()(scores, quota, evidence)
    for v in range(2):
        order = sorted(range(int(valid[v].sum())), key=lambda n: (-float(scores[v, n]), n))
        assert kept[v].nonzero()[:, 0].tolist() == sorted(order[: int(quota[v])])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 7), (7, 1), (3, 5), (12, 12), (24, 24), (5, 24), (24, 3)])
def test_grid_gives_exactly_the_quota_evenly_over_rows_and_columns(rows, columns):
    evidence = make_evidence(samples={1: [(rows, columns)]})
    scores = torch.zeros(1, rows * columns)
    for quota in range(rows * columns + 1):
        kept = Grid()(scores, torch.tensor([quota]), evidence).view(rows, columns)
        assert int(kept.sum()) == quota
        used = kept.sum(1)[kept.sum(1) > 0]
        assert len(used) == 0 or used.max() - used.min() <= 1  # every used row its share
        for line in (kept.any(1), *kept[kept.any(1)]):  # the used rows, and the picks in each, are evenly spaced
            gaps = line.nonzero()[:, 0].diff()
            assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_grid_is_even_in_both_directions_at_a_square_quota():
    evidence = make_evidence(samples={1: [(12, 12)]})
    kept = Grid()(torch.zeros(1, 144), torch.tensor([16]), evidence).view(12, 12)
    assert kept.any(1).nonzero()[:, 0].tolist() == [1, 4, 7, 10]
    assert kept.any(0).nonzero()[:, 0].tolist() == [1, 4, 7, 10]


def test_grid_covers_what_is_left_of_a_view_that_is_no_full_rectangle():
    evidence = make_evidence(samples={1: [(10, 10)]})
    hole = (evidence.layout.grid[..., 0] < 4) & (evidence.layout.grid[..., 1] < 4)
    column = evidence.layout.column.masked_fill(hole, -1)
    evidence = replace(evidence, layout=replace(evidence.layout, column=column))
    for quota in (0, 1, 10, 50, 84):
        kept = Grid()(torch.zeros(1, 100), torch.tensor([quota]), evidence)
        assert int(kept.sum()) == quota
        assert not (kept & hole).any()


def test_budget_totals_reach_views_of_their_own_size():
    pruner = Pipeline((Random(),), Mean(), Even(), TopK())
    evidence = make_evidence()
    pruned = pruner(evidence, Budget(20, per="view"))
    assert (pruned.place >= 0).sum(1).tolist() == [20, 20, 20, 20, 20, 20]


def test_a_stand_in_for_cls_is_named_and_cls_itself_is_not():
    assert str(VtcCls()) == "VtcCls(last=3)"
    assert repr(VtcCls(1, "mean")) == "VtcCls(last=1, query='mean')"
    assert (str(FasterVlm()), str(FasterVlm("proxy"))) == ("FasterVlm()", "FasterVlm(query='proxy')")
    for wrong in (VtcCls(query="clss"), FasterVlm("")):
        with pytest.raises(ValueError, match="query must be one of 'cls', 'mean'"):
            wrong.pipeline()
