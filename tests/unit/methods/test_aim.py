"""AIM: the walk along attention, merging in rounds, and fading; twins in plain Python, and laws."""

import math
from dataclasses import replace

import pytest
import torch

from support.aim import FLOW
from vtcframe import Budget
from vtcframe.core.kernel_call import KernelCall
from vtcframe.core.stages import plan_from_stages
from vtcframe.methods.aim import (
    Aim,
    AttentionPageRank,
    BipartiteMerge,
    LinearSchedule,
    TokenPageRank,
    count_entry_tokens,
    page_rank,
)
from vtcframe.testing import check_pruner, check_scorer, make_evidence, make_layout

NAN = math.nan


# the walk


def walk(call, need):
    return page_rank(call, need.temperature, need.steps)


def walked(query, key, scaling, seen, temperature, steps):
    """Query and key of one sample and head as lists, seen(i, j) or what a mask adds -> where the walk ends."""
    n, rows = len(query), []
    for i in range(n):
        paid = [
            (sum(a * b for a, b in zip(query[i], key[j], strict=True)) * scaling + seen(i, j)) / temperature
            for j in range(n)
        ]
        top = max(paid)
        rows.append([math.exp(x - top) for x in paid])
    d = [1 / n] * n
    for _ in range(steps):
        d = [sum(d[i] * rows[i][j] / sum(rows[i]) for i in range(n)) for j in range(n)]
    return d


LENGTHS, HEADS, GROUPS, WIDTH = (9, 6, 1), 4, 2, 3


def prompts(kind):
    """A batch padded on the left with poison, its mask as a kernel gets it, and the tokens of each sample."""
    longest = max(LENGTHS)
    query, key = torch.randn(len(LENGTHS), HEADS, longest, WIDTH), torch.randn(len(LENGTHS), GROUPS, longest, WIDTH)
    real = torch.stack([torch.arange(longest) >= longest - n for n in LENGTHS])
    if kind == "none":
        return KernelCall(query[:1], key[:1], None, 0.7, True, None), LENGTHS[:1]
    query = query.masked_fill(~real[:, None, :, None], NAN)
    key = key.masked_fill(~real[:, None, :, None], NAN if kind == "own" else 1e4)
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    bool_mask = (causal & real[:, None, None]) | (torch.eye(longest, dtype=torch.bool) & real[:, None, None])
    mask = {
        "own": real.long(),
        "bool": bool_mask,
        "lowest": torch.zeros(bool_mask.shape).masked_fill(~bool_mask, torch.finfo(torch.float32).min),
        "infinite": torch.zeros(bool_mask.shape).masked_fill(~bool_mask, -torch.inf),
    }[kind]
    return KernelCall(query, key, mask, 0.7, kind == "own", None), LENGTHS


@pytest.mark.parametrize("elements", [1, 100, 2**21])
@pytest.mark.parametrize("kind", ["none", "own", "bool", "lowest", "infinite"])
def test_a_walk_equals_its_twin_whatever_the_mask_and_its_pieces(kind, elements):
    torch.manual_seed(0)
    call, lengths = prompts(kind)
    call = replace(call, max_elements=elements)
    for need in (
        AttentionPageRank((0,)),
        AttentionPageRank((0,), temperature=1.0, steps=1),
        AttentionPageRank((0,), temperature=2.0, steps=3),
    ):
        got = walk(call, need)
        assert got.dtype == torch.float32
        for b, n in enumerate(lengths):
            assert got[b, :, : got.shape[2] - n].eq(0).all()
            for head in range(HEADS):
                own = slice(got.shape[2] - n, None)
                query, key = call.query[b, head, own], call.key[b, head // (HEADS // GROUPS), own]
                twin = walked(
                    query.tolist(),
                    key.tolist(),
                    call.scaling,
                    lambda i, j: 0.0 if j <= i else -math.inf,
                    need.temperature,
                    need.steps,
                )
                torch.testing.assert_close(got[b, head, own], torch.tensor(twin), atol=1e-6, rtol=1e-5)


def test_a_walk_adds_the_masks_biases_before_it_sharpens():
    torch.manual_seed(0)
    query, key, bias = torch.randn(1, 2, 5, 3), torch.randn(1, 2, 5, 3), torch.randn(1, 2, 5, 5)
    got = walk(KernelCall(query, key, bias, 0.5, False, None), FLOW)
    for head in range(2):
        added = bias[0, head].tolist()
        twin = walked(query[0, head].tolist(), key[0, head].tolist(), 0.5, lambda i, j, m=added: m[i][j], 0.1, 5)
        torch.testing.assert_close(got[0, head], torch.tensor(twin), atol=1e-6, rtol=1e-5)


def test_a_walk_loses_nothing_and_never_holds_the_whole_map(monkeypatch):
    counts, logits = [], KernelCall.logits

    def count_rows(call, rows, heads="split"):
        counts.append(rows.stop - rows.start)
        return logits(call, rows, heads)

    monkeypatch.setattr(KernelCall, "logits", count_rows)
    got = walk(KernelCall(torch.randn(2, 4, 64, 8), torch.randn(2, 2, 64, 8), None, 1.0, True, None), FLOW)
    torch.testing.assert_close(got.sum(2), torch.ones(2, 4))
    assert max(counts) <= 32


def test_a_walk_needs_a_whole_prompt():
    with pytest.raises(ValueError, match="got 1 queries of 4 tokens"):
        walk(KernelCall(torch.randn(1, 1, 1, 2), torch.randn(1, 1, 4, 2), None, 1.0, True, None), FLOW)


def test_laws_of_the_scorer_hold_and_it_is_the_root_mean_square_over_heads():
    scorer = TokenPageRank()
    check_scorer(scorer)
    evidence = make_evidence(scorer.needs)
    got, ends = scorer(evidence), evidence[scorer.needs[0]]
    for view, token in ((0, 5), (3, 100)):
        by_hand = math.sqrt(sum(float(ends[0, view, head, token]) ** 2 for head in range(4)) / 4)
        assert float(got[0, view, token]) == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        TokenPageRank(temperature=0)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        TokenPageRank(steps=0)


# merging


def halved(tokens, wanted):
    """Lists of (place, vector) -> the same, merged in rounds until `wanted` are left."""

    def cosine(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))

    while len(tokens) > wanted > 0:
        gone = min(len(tokens) // 2, len(tokens) - wanted)
        even, odd = tokens[::2], tokens[1::2]
        likes = [[cosine(a, b) for _, b in odd] for _, a in even]
        order = sorted(range(len(even)), key=lambda i: -max(likes[i]))
        joined = [[vector] for _, vector in odd]
        for i in order[:gone]:
            joined[likes[i].index(max(likes[i]))].append(even[i][1])
        means = [[sum(column) / len(group) for column in zip(*group, strict=True)] for group in joined]
        tokens = [even[i] for i in order[gone:]] + [(place, m) for (place, _), m in zip(odd, means, strict=True)]
    return tokens if wanted else []


GRIDS = {3: [(5, 5)], 4: [(1, 1), (3, 4), (7, 2)], 5: [], 6: [(1, 2)], 7: [(1, 1)]}


@pytest.mark.parametrize("budget", [Budget(1), Budget(2), Budget(12), Budget(ratio=0.25), Budget(ratio=0.9)])
def test_merging_equals_its_twin(budget):
    evidence = make_evidence((), GRIDS, channels=6)
    evidence = replace(evidence, tokens=evidence.tokens - 0.5)
    got, total = BipartiteMerge()(evidence, budget), budget.total(evidence.layout)
    counts = [int(n) for n in evidence.layout.count]
    left = [0] * len(counts)
    for p, n in enumerate(total.tolist()):  # token by token to the view with the fewest that has one more
        own = [v for v, sample in enumerate(evidence.layout.sample.tolist()) if sample == p]
        for _ in range(n):
            v = min((v for v in own if left[v] < counts[v]), key=lambda v: (left[v], v))
            left[v] += 1
    for v, n in enumerate(counts):
        twin = halved([(i, evidence.tokens[v, i].tolist()) for i in range(n)], left[v])
        real = got.place[v] >= 0
        assert got.place[v][real].tolist() == [place for place, _ in twin]
        want = torch.tensor([vector for _, vector in twin]).view(-1, 6)
        torch.testing.assert_close(got.tokens[v][real], want, atol=1e-5, rtol=1e-5)


def test_laws_of_merging_hold_and_nothing_at_padding_matters():
    check_pruner(
        BipartiteMerge(), (Budget(20), Budget(ratio=0.3), Budget(1), Budget(40, per="view"), Budget(ratio=1.0))
    )
    evidence = make_evidence((), GRIDS)
    poisoned = replace(evidence, tokens=evidence.tokens.masked_fill(~evidence.layout.valid[..., None], NAN))
    a, b = (BipartiteMerge()(e, Budget(ratio=0.4)) for e in (evidence, poisoned))
    assert torch.equal(a.place, b.place)
    assert torch.equal(a.tokens[a.place >= 0], b.tokens[b.place >= 0])
    empty = make_evidence((), {1: []})
    assert BipartiteMerge()(empty, Budget(3)).total.tolist() == [0]
    with pytest.raises(ValueError, match="merges down to a budget: give tokens or ratio"):
        BipartiteMerge()(evidence)


def test_holes_in_a_row_count_as_nothing():
    evidence = make_evidence((), {1: [(4, 5)]})
    hole = torch.isin(torch.arange(20), torch.tensor([0, 7, 8, 19]))
    column = evidence.layout.column.masked_fill(hole, -1)
    some = replace(evidence, layout=replace(evidence.layout, column=column, untouched=torch.tensor([16])))
    got, dense = BipartiteMerge()(some, Budget(5)), replace(evidence, tokens=evidence.tokens[:, ~hole])
    grid, column = evidence.layout.grid[:, ~hole], column[:, ~hole]
    dense = replace(dense, layout=replace(some.layout, grid=grid, column=column, centre=grid.float()))
    want = BipartiteMerge()(dense, Budget(5))
    assert torch.equal(got.column, want.column)
    assert torch.equal(got.tokens, want.tokens)


def test_a_hole_at_the_start_of_a_shorter_row_is_not_read_as_padding():
    evidence = make_evidence((), {1: [(2, 3)], 2: [(4, 4)]})
    column = evidence.layout.column.clone()
    column[0, 0], evidence.tokens[0, 0] = -1, NAN
    got = BipartiteMerge()(replace(evidence, layout=replace(evidence.layout, column=column)), Budget(3))
    assert got.tokens[got.place >= 0].isfinite().all()


def test_a_view_that_keeps_all_keeps_its_order_beside_one_that_merges():
    evidence = make_evidence((), {1: [(4, 5)], 2: [(2, 3)]})
    got = BipartiteMerge()(evidence, Budget(6))
    assert got.place[1].tolist() == list(range(6))
    assert torch.equal(got.tokens[1], evidence.tokens[1, :6])
    assert got.scores[1, :6].tolist() == [1] * 6
    assert (got.scores[0, ~got.kept[0]] < 0).all()  # minus their cosine, which is positive here


# the schedule


def test_stages_are_those_published_and_follow_their_fields():
    stages = Aim().stages(None)
    assert [stage.at for stage in stages] == ["projector", *(f"llm:{layer}" for layer in range(15, 23))]
    assert {stage.positions for stage in stages} == {"original"}
    assert {stage.budget for stage in stages} == {Budget(ratio=0.25)}
    assert plan_from_stages(stages).budget == Budget(ratio=0.25)
    stages = Aim(first=1, span=2, temperature=0.5, steps=3, positions="compact").stages(Budget(9))
    assert [(stage.at, stage.positions, stage.budget) for stage in stages] == [
        ("projector", "compact", Budget(9)),
        ("llm:1", "original", Budget(9)),
        ("llm:2", "original", Budget(9)),
    ]
    assert [stage.pruner.needs for stage in stages] == [
        (),
        *[(AttentionPageRank((-1,), temperature=0.5, steps=3),)] * 2,
    ]
    with pytest.raises(
        ValueError, match="cannot reconstruct a budget of 9 for each view: give ratio, or tokens for each sample"
    ):
        Aim().stages(Budget(9, per="view"))
    with pytest.raises(ValueError, match="got first=0 and span=8"):
        Aim(first=0)
    with pytest.raises(ValueError, match="got first=15 and span=0"):
        Aim(span=0)


def stepwise(stages, samples, budget):
    """Tokens of each sample before and behind each stage, and the last evidence."""
    evidence, counts = make_evidence((), samples), []
    counts.append(evidence.layout.total(evidence.layout.count).tolist())
    for stage in stages:
        made = make_evidence(stage.pruner.needs, samples).readings
        evidence = replace(
            evidence, readings={need: x[..., : evidence.layout.column.shape[1]] for need, x in made.items()}
        )
        evidence = evidence.restrict_to(stage.pruner(evidence, budget))
        counts.append(evidence.layout.total(evidence.layout.count).tolist())
    return counts, evidence


def test_what_merging_left_fades_out_and_who_keeps_all_keeps_all():
    samples = {1: [(6, 6), (8, 8)], 2: [(2, 4)], 3: [], 4: [(9, 9)]}
    for budget in (Budget(30), Budget(ratio=0.25)):
        counts, _ = stepwise(Aim(span=5).stages(budget), samples, budget)
        entry = [30, 8, 0, 30] if budget.tokens else [25, 2, 0, 20]
        whole = [100, 8, 0, 81]
        assert counts[:2] == [whole, entry]
        for step in range(1, 6):
            by_hand = [n if n == all else n * (5 - step) // 5 for n, all in zip(entry, whole, strict=True)]
            assert counts[1 + step] == by_hand
    counts, _ = stepwise(Aim().stages(Budget(ratio=1.0)), samples, Budget(ratio=1.0))
    assert all(count == whole for count in counts)


def test_what_entered_is_known_whatever_has_gone_since():
    budget, whole = Budget(ratio=0.3), make_layout({1: [(6, 6), (8, 8)], 2: [(2, 4)], 3: []})
    some = replace(whole, column=whole.column.masked_fill(whole.column % 7 > 0, -1))
    assert (
        count_entry_tokens(budget, whole).tolist()
        == count_entry_tokens(budget, some).tolist()
        == budget.total(whole).tolist()
    )


def test_views_of_a_sample_fade_together():
    evidence = make_evidence((FLOW,), {1: [(4, 4), (4, 4)], 2: [(4, 4)]})
    untouched = torch.tensor([128, 64])
    evidence = replace(evidence, layout=replace(evidence.layout, untouched=untouched))
    stage = Aim().stages(Budget(ratio=0.25))[4]
    assert stage.pruner.allocator == LinearSchedule(remaining=4, span=8, entry_budget=Budget(ratio=0.25))
    kept = stage.pruner(evidence, stage.budget).kept
    ends = evidence[FLOW][0].square().mean(1).sqrt()
    best = sorted(((float(ends[v, i]), v, i) for v in (0, 1) for i in range(16)), reverse=True)[:16]
    assert sorted((v, i) for v, i in kept[:2].nonzero().tolist()) == sorted((v, i) for _, v, i in best)
    assert kept[2].sum() == 8
