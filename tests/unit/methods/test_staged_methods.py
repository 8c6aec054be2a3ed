"""Methods that act before the language model and inside it, beside twins in plain Python."""

from dataclasses import replace

import pytest
import torch

from support.recorded_cases import layout_of
from support.staged_methods import kept_places
from vtcframe import AttentionRows, Budget, Evidence
from vtcframe.components.allocators import KeepRatio
from vtcframe.methods.holitom import HoliTom, HoliTomOuter, PairwiseMean
from vtcframe.methods.mini_monkey import Crops, MiniMonkeyScm
from vtcframe.methods.prunevid import PruneVid, PruneVidOuter
from vtcframe.methods.vscan import VScan
from vtcframe.testing import check_allocator, check_merger, check_pruner, make_evidence

CROPS = ((0, 0, 0.5, 0.5), (0, 0.5, 0.5, 1), (0.5, 0, 1, 0.5), (0.5, 0.5, 1, 1))


WHOLE = (0, 0, 1, 1)


# views of each sample: (picture, grid, box); a cut picture with its overview last, one alone, none, one that is first
PICTURES = {
    3: [*((0, (3, 4), box) for box in CROPS), (0, (3, 3), WHOLE), (1, (2, 5), WHOLE)],
    5: [],
    7: [(0, (4, 4), WHOLE), (0, (2, 3), CROPS[0]), (0, (2, 3), CROPS[1])],
    9: [(0, (1, 1), WHOLE), (1, (3, 2), WHOLE)],
}


def pictures(needs=(), samples=PICTURES):
    """Evidence with poison at padding, of pictures of which some are cut into crops."""
    evidence = make_evidence(needs, {key: [grid for _, grid, _ in views] for key, views in samples.items()})
    views = [view for each in samples.values() for view in each]
    image = torch.tensor([picture for picture, _, _ in views], dtype=torch.long)
    box = torch.tensor([box for *_, box in views]).view(-1, 4).float()
    return replace(evidence, layout=replace(evidence.layout, image=image, box=box))


def top(scores, count):
    """Places of the `count` highest; ties go to the first."""
    return sorted(sorted(range(len(scores)), key=lambda n: (-scores[n], n))[:count])


def rows_of(evidence, need):
    """What each view's own tokens were paid, heads along the first axis, as lists."""
    return [x[:, :n].tolist() for x, n in zip(evidence[need][0], evidence.layout.count.tolist(), strict=True)]


# laws


@pytest.mark.parametrize("allocator", [KeepRatio(), KeepRatio(0.1, "nearest"), Crops(), Crops(0.2)], ids=str)
def test_laws_hold_for_allocators(allocator):
    check_allocator(allocator)


def test_laws_hold_for_the_merger():
    check_merger(PairwiseMean())


@pytest.mark.parametrize("method", [VScan(), PruneVid(), HoliTom()], ids=str)
@pytest.mark.parametrize("stage", [0, 1], ids=["projector", "llm"])
def test_laws_hold_for_each_stage(method, stage):
    stage = method.stages(Budget(ratio=0.3))[stage]
    check_pruner(stage.pruner)
    if stage.budget is None:
        check_pruner(stage.pruner, [None])


@pytest.mark.parametrize("budget", [None, Budget(20), Budget(ratio=0.3), Budget(1)], ids=str)
def test_laws_hold_for_mini_monkey(budget):
    check_pruner(MiniMonkeyScm(), [budget])
    method = MiniMonkeyScm(0.4)
    evidence = pictures(method.needs)
    pruned = method(evidence, budget)
    if budget:
        assert pruned.total.tolist() == budget.total(evidence.layout).tolist()
    for p, (key, views) in enumerate(PICTURES.items()):
        alone = method(pictures(method.needs, {key: views}), budget)
        assert kept_places(alone) == [
            row for row, s in zip(kept_places(pruned), evidence.layout.sample, strict=True) if s == p
        ]


# twins


@pytest.mark.parametrize("rounded", ["down", "nearest"])
@pytest.mark.parametrize("ratio", [0.02, 0.4, 0.5, 0.75, 1.0])
def test_share_equals_its_twin(ratio, rounded):
    evidence = pictures()
    scores = torch.rand(evidence.layout.column.shape, generator=torch.Generator().manual_seed(3))
    scores = scores.masked_fill(~evidence.layout.valid, -torch.inf)
    quota = KeepRatio(ratio, rounded)(scores, None, evidence).tolist()
    counts, owner = evidence.layout.count.tolist(), evidence.layout.sample.tolist()
    want = [int(n * ratio) if rounded == "down" else round(n * ratio) for n in counts]
    for p in range(4):
        mine = [v for v, s in enumerate(owner) if s == p]
        if mine and not sum(want[v] for v in mine):
            want[max(mine, key=lambda v: (float(scores[v].max()), -v))] = 1
    assert quota == want
    assert sum(quota) > 0


@pytest.mark.parametrize("ratio", [0.3, 0.5, 1.0])
def test_mini_monkey_equals_its_twin(ratio):
    method = MiniMonkeyScm(ratio)
    evidence = pictures(method.needs)
    paid = [heads[0] for heads in rows_of(evidence, AttentionRows("after", (1,), "llm", heads="mean"))]
    got, at = kept_places(method(evidence)), 0
    for views in PICTURES.values():
        mine = range(at, at + len(views))
        at += len(views)
        for picture in {picture for picture, _, _ in views}:
            of = [v for v, (p, _, _) in zip(mine, views, strict=True) if p == picture]
            boxes = [box for p, _, box in views if p == picture]
            crops = [v for v, box in zip(of, boxes, strict=True) if box != WHOLE] or of
            every = [(v, n) for v in crops for n in range(len(paid[v]))]
            stay = {every[i] for i in top([paid[v][n] for v, n in every], int(ratio * len(every)))}
            for v in of:
                want = [n for n in range(len(paid[v])) if v not in crops or (v, n) in stay]
                assert got[v] == want


def test_crops_share_what_overviews_leave_of_a_budget():
    evidence = pictures()
    scores = evidence.layout.valid.float().masked_fill(~evidence.layout.valid, -torch.inf)
    quota = Crops()(scores, torch.tensor([38, 0, 19, 3]), evidence).tolist()
    # 38 - 9 over 48 of crops and 10 of a picture without; 19 - 16 over two crops; 3 over 1 and 6
    assert [sum(quota[:4]), *quota[4:6]] == [24, 9, 5]
    assert quota[6:9] == [16, 3, 0]  # one ranking over both crops, where all are alike: the first
    assert quota[9:] == [0, 3]
    small = Crops()(scores, torch.tensor([5, 0, 7, 1]), evidence).tolist()
    assert small == [0, 0, 0, 0, 5, 0, 7, 0, 0, 0, 1]


def one_by_one(tokens, kept):
    """HoliTom's loop: each dropped token is averaged into the kept one it was most like at first."""
    like = torch.nn.functional.cosine_similarity(tokens[:, None], tokens[None], dim=-1)
    merged, stay = tokens.clone().double(), [n for n in range(len(tokens)) if kept[n]]
    for n in range(len(tokens)):
        if not kept[n]:
            host = stay[int(like[n, stay].argmax())]
            merged[host] = (merged[host] + tokens[n]) / 2
    return merged[stay].float()


@pytest.mark.parametrize("count", [1, 2, 12, 20])
def test_pairwise_mean_equals_one_after_the_other(count):
    samples = {1: [(4, 5)], 2: [(3, 4), (5, 8)], 3: []}
    evidence = make_evidence(samples=samples)
    evidence.tokens[~evidence.layout.valid] = torch.nan
    rank = torch.rand(evidence.layout.column.shape, generator=torch.Generator().manual_seed(count))
    scores = rank.masked_fill(~evidence.layout.valid, -torch.inf)
    mask = (scores.argsort(1, descending=True).argsort(1) < count) & evidence.layout.valid
    pruned = PairwiseMean()(mask, torch.zeros(3), scores, evidence)
    for v, n in enumerate(evidence.layout.count.tolist()):
        place = pruned.place[v][pruned.place[v] >= 0]
        assert place.tolist() == mask[v].nonzero()[:, 0].tolist()
        want = one_by_one(evidence.tokens[v, :n], mask[v, :n].tolist())
        torch.testing.assert_close(pruned.tokens[v, : len(place)], want, atol=1e-6, rtol=1e-6)


def test_pairwise_mean_weighs_later_ones_more():
    tokens = torch.tensor([[[1.0, 0], [3, 0], [5, 0], [9, 0], [0, 2]]])
    evidence = Evidence(tokens, layout_of([(1, 5)]))
    mask = torch.tensor([[False, False, True, False, True]])
    merged = PairwiseMean()(mask, torch.zeros(1), torch.zeros(1, 5), evidence)
    assert merged.tokens.tolist() == [[[5 / 8 + 1 / 8 + 3 / 4 + 9 / 2, 0], [0, 2]]]


def test_pairwise_mean_of_very_many_loses_nothing_that_counts():
    tokens = torch.ones(1, 3000, 4)
    mask = torch.zeros(1, 3000, dtype=torch.bool)
    mask[0, 17] = True
    merged = PairwiseMean()(mask, torch.zeros(1), torch.zeros(1, 3000), Evidence(tokens, layout_of([(30, 100)])))
    torch.testing.assert_close(merged.tokens, torch.ones(1, 1, 4))


def test_v_scan_makes_up_behind_for_pictures_that_are_small_and_keeps_all_of_those_that_fit():
    for n, want in ((60, 60), (64, 64), (70, 58), (96, 32), (97, 32)):
        whole = layout_of([(1, n)])
        before, behind = (stage.budget for stage in VScan().stages(Budget(64)))
        left = replace(whole, column=whole.column[:, : int(before.total(whole))])
        assert behind.total(left).tolist() == [want]
        assert behind.covers(whole) == (n <= 64)


@pytest.mark.parametrize(
    ("budget", "early", "late"),
    [
        (Budget(64), Budget(96), Budget(32)),
        (Budget(128, per="view"), Budget(192, per="view"), Budget(64, per="view")),
        (Budget(3), Budget(4), Budget(2)),  # 4.5 and 1.5: halves to even, the mean is kept
        (Budget(5), Budget(8), Budget(2)),
        (Budget(1), Budget(2), Budget(1)),
        (Budget(ratio=0.25), Budget(ratio=0.375), Budget(ratio=0.125)),
        (Budget(ratio=0.75), Budget(ratio=1.0), Budget(ratio=0.5)),  # no more than all before, so more behind
        (Budget(ratio=1.0), Budget(ratio=1.0), Budget(ratio=1.0)),
    ],
    ids=str,
)
def test_v_scan_keeps_three_halves_before_and_half_behind(budget, early, late):
    before, behind = VScan(layer=3, positions="compact").stages(budget)
    assert (before.at, before.budget, before.positions) == ("projector", early, "compact")
    assert (behind.at, behind.positions) == ("llm:3", "compact")
    whole = layout_of([(24, 24)])
    left = replace(whole, column=whole.column[:, : int(early.total(whole))])
    assert behind.budget.total(left).tolist() == late.total(left).tolist()
    assert behind.pruner.needs == (AttentionRows("last", (3,), "llm", heads="mean"),)
    assert {stage.positions for stage in VScan().stages(budget)} == {"original"}


def test_v_scan_ranks_all_tokens_of_a_sample_together():
    stage = VScan(layer=2).stages(Budget(8))[1]
    evidence = make_evidence(stage.pruner.needs)
    pruned = stage.pruner(evidence, stage.budget)
    paid = [heads[0] for heads in rows_of(evidence, stage.pruner.needs[0])]
    owner = evidence.layout.sample.tolist()
    for p in range(4):
        scores = [x for v, of in enumerate(owner) if of == p for x in paid[v]]
        assert kept_places(pruned)[p] == top(scores, 4)


@pytest.mark.parametrize("alpha", [0.01, 0.4, 1.0])
def test_prune_vid_keeps_alpha_of_each_frame(alpha):
    outer, inner = PruneVid(3, alpha, tau=0.7, clusters=0.5).stages(Budget(40))
    assert (outer.at, outer.pruner, outer.budget) == ("projector", PruneVidOuter(0.7, 0.5), Budget(40))
    assert (inner.at, inner.budget, inner.forget, inner.positions) == ("llm:3", None, 0, "original")
    need = AttentionRows("text", (-1,), "llm", reduce="max")
    assert inner.pruner.needs == (need,)
    evidence = make_evidence([need], {1: [(4, 5)] * 3, 2: [], 3: [(1, 2), (3, 3)]})
    paid = [[max(x) for x in zip(*heads, strict=True)] for heads in rows_of(evidence, need)]
    want = [top(x, int(len(x) * alpha)) for x in paid]
    if alpha == 0.01:  # of nothing the best one stays, of each sample
        for mine in (range(3), range(3, 5)):
            v = max(mine, key=lambda v: (max(paid[v]), -v))
            want[v] = top(paid[v], 1)
    assert kept_places(inner.pruner(evidence)) == want


@pytest.mark.parametrize("ratio", [0.3, 0.5, 1.0])
def test_holi_tom_merges_what_the_last_token_does_not_look_at(ratio):
    outer, inner = HoliTom(2, ratio, tau=0.65, beta=0.5, query="mean").stages(Budget(ratio=0.2))
    assert (outer.at, outer.pruner, outer.budget) == (
        "projector",
        HoliTomOuter(0.65, 0.5, query="mean"),
        Budget(ratio=0.2),
    )
    assert (inner.at, inner.budget, inner.forget, inner.positions) == ("llm:2", None, None, "original")
    need = AttentionRows("last", (-1,), "llm", heads="mean")
    assert inner.pruner.needs == (need,)
    evidence = make_evidence([need], {1: [(3, 5)] * 3, 2: [], 3: [(1, 2), (3, 3)]})
    pruned = inner.pruner(evidence)
    paid = [heads[0] for heads in rows_of(evidence, need)]
    for p, views in ((0, range(3)), (2, range(3, 5))):
        scores = [x for v in views for x in paid[v]]
        stay = top(scores, round(len(scores) * ratio))  # of 45 and 11
        assert kept_places(pruned)[p] == stay
        tokens = torch.cat([evidence.tokens[v, : len(paid[v])] for v in views])
        want = one_by_one(tokens, [n in stay for n in range(len(scores))])
        torch.testing.assert_close(pruned.tokens[p, : len(stay)], want, atol=1e-6, rtol=1e-6)
    assert kept_places(pruned)[1] == []


# nonsense


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: KeepRatio(0), "ratio is the fraction of tokens kept and must lie in"),
        (lambda: KeepRatio(0.5, "up"), "rounded must be 'down' or 'nearest', got 'up'"),
        (lambda: Crops(1.5), "ratio is the fraction of tokens kept"),
        (lambda: PruneVid(alpha=0), "alpha is the fraction of tokens kept"),
        (lambda: HoliTom(ratio=2), "ratio is the fraction of tokens kept"),
        (lambda: MiniMonkeyScm(0).pipeline(), "ratio is the fraction of tokens kept"),
        (lambda: VScan().stages(None), "VScan shares out a budget"),
        (lambda: VScan(positions="new").stages(Budget(5)), "positions must be 'original' or 'compact'"),
        (lambda: PruneVid(layer=0).stages(Budget(5)), "no layer of the language model runs before"),
    ],
)
def test_nonsense_is_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_they_are_no_parts_of_a_stage():
    for method in (VScan(), PruneVid(), HoliTom()):
        with pytest.raises(TypeError, match="acts at several stages: give it as the method"):
            _ = method.needs
