"""Each selector compared with a reference in plain Python, on small ragged views padded with NaN."""

import math
import random
from dataclasses import replace

import pytest
import torch

from vtcframe import AttentionKeys, AttentionRows, Grid, HiddenStates, Random, TopK
from vtcframe.components.diverse_selectors import Coverage, Deduplicate, Dpp, MaxMin, Mixed
from vtcframe.components.selectors import LocalGlobal, OutliersThenDraw, WholeRows
from vtcframe.testing import check_selector, make_evidence

RAGGED = {1: [(2, 6), (4, 5)], 2: [(1, 7)], 3: [], 4: [(1, 1), (5, 3)]}
EVERY = (
    WholeRows(),
    MaxMin(),
    Coverage(),
    Dpp(),
    Mixed(TopK()),
    Mixed(Grid(), 0.25),
    Mixed(MaxMin()),
    Mixed(Coverage(), 0.25),
    Mixed(Dpp(), 0.75),
    Deduplicate(),
    Deduplicate(0.0),
    LocalGlobal(),
    LocalGlobal(4, 1.0, layer=0, query="received", each="ceil"),
    OutliersThenDraw(),
)


# the defaults are checked with all that is registered
VARIANTS = (Mixed(Grid(), 0.25), Mixed(MaxMin()), Mixed(Dpp(), 0.75), Deduplicate(0.0))


@pytest.mark.parametrize("selector", [*VARIANTS, LocalGlobal(4, 1.0, layer=0, query="received", each="ceil")], ids=str)
def test_laws_hold(selector):
    check_selector(selector)


def drawn(seed, needs=(), levels=0, samples=RAGGED):
    """Evidence, scores [V, N], and a quota from none to all; `levels` makes ties."""
    rng = random.Random(seed)
    evidence = make_evidence(needs, samples)
    valid = evidence.layout.valid
    scores = torch.tensor([[rng.random() for _ in range(valid.shape[1])] for _ in range(len(valid))])
    scores = (scores * levels).round() if levels else scores
    quota = torch.tensor([rng.randint(0, n) for n in evidence.layout.count.tolist()])
    return evidence, scores.masked_fill(~valid, -torch.inf), quota


def rows(evidence, scores, quota):
    """For each row: its number, its scores, its quota."""
    for v, (n, k) in enumerate(zip(evidence.layout.count.tolist(), quota.tolist(), strict=True)):
        yield v, scores[v, :n].tolist(), k


def cosines(x):
    """[n, D] -> nested lists, in float64."""
    x = [[a / math.sqrt(sum(b * b for b in row)) for a in row] for row in x.double().tolist()]
    return [[sum(a * b for a, b in zip(p, q, strict=True)) for q in x] for p in x]


def best(values, free):
    """The index of the highest value among `free`, the lowest of equals."""
    return max(sorted(free), key=lambda j: (values[j], -j))


def ranked(values, among):
    return sorted(among, key=lambda j: (-values[j], j))


def farthest_by_hand(alike, n, k, kept=()):
    kept = list(kept)
    for _ in range(k):
        free = set(range(n)) - set(kept)
        near = {j: max((alike[j][i] for i in (kept or set(range(n)) - {j})), default=1.0) for j in free}
        kept.append(best({j: -near[j] for j in free}, free))
    return kept


def covered_by_hand(alike, kept):
    """The sum, over all tokens, of the cosine to the nearest of `kept`; -1 where there is none."""
    return sum(max((alike[i][p] for p in kept), default=-1.0) for i in range(len(alike)))


def determinant_by_hand(alike, q, k, kept=()):
    """Pick what makes the determinant of the kernel greatest."""
    kernel = torch.tensor(alike, dtype=torch.float64) * torch.tensor(q)[:, None] * torch.tensor(q)
    kept = list(kept)
    for _ in range(k):
        free = set(range(len(q))) - set(kept)
        kept.append(best({j: float(torch.linalg.det(kernel[[*kept, j]][:, [*kept, j]])) for j in free}, free))
    return kept


def scaled_by_hand(evidence, scores):
    """CDPruner's relevance: over all views of a sample."""
    out = {}
    for v, row, _ in rows(evidence, scores, torch.zeros(len(scores))):
        views = [w for w, s in enumerate(evidence.layout.sample.tolist()) if s == int(evidence.layout.sample[v])]
        every = [x for w in views for x in scores[w].tolist() if x > -math.inf]
        low, high = min(every), max(every)
        out[v] = [(x - low + 1e-6) / max(high - low, 1e-6) for x in row]
    return out


@pytest.mark.parametrize("seed", range(6))
def test_max_min_equals_its_reference_alone_and_after_important_ones(seed):
    evidence, scores, quota = drawn(seed)
    kept, mixed = MaxMin()(scores, quota, evidence), Mixed(MaxMin(), 0.4)(scores, quota, evidence)
    for v, row, k in rows(evidence, scores, quota):
        alike = cosines(evidence.tokens[v, : len(row)])
        assert kept[v].nonzero()[:, 0].tolist() == sorted(farthest_by_hand(alike, len(row), k))
        first = ranked(row, range(len(row)))[: int(k * 0.4)]
        assert mixed[v].nonzero()[:, 0].tolist() == sorted(farthest_by_hand(alike, len(row), k - len(first), first))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_every_pick_of_coverage_adds_the_most(share):
    """Two tokens that are nearest to each other add the same, so that picks are judged by what they add."""
    evidence, scores, _ = drawn(0, samples={1: [(4, 5), (2, 6)], 2: [(1, 7)]})
    for v, n in enumerate(evidence.layout.count.tolist()):
        alike = cosines(evidence.tokens[v, :n])
        first = set(ranked(scores[v, :n].tolist(), range(n))[: int(n * share)])
        kept = set(first)
        for k in range(len(kept) + 1, n + 1):
            count = _only(evidence, v, k - len(first))
            now = Coverage().grow(_mask(evidence, v, first), count, scores, evidence)
            now = set(now[v].nonzero()[:, 0].tolist())
            assert len(now) == k
            assert now > kept
            most = max(covered_by_hand(alike, kept | {j}) for j in set(range(n)) - kept)
            assert covered_by_hand(alike, now) == pytest.approx(most, abs=1e-4)
            kept = now


def _only(evidence, v, k):
    return torch.zeros_like(evidence.layout.count).index_fill(0, torch.tensor([v]), k)


def _mask(evidence, v, places):
    mask = torch.zeros_like(evidence.layout.valid)
    mask[v, sorted(places)] = True
    return mask


@pytest.mark.parametrize("seed", range(6))
def test_dpp_takes_the_greatest_determinant_while_the_kernel_has_rank(seed):
    evidence, scores, quota = drawn(seed)
    quota = quota.clamp(max=4)  # tokens have 8 channels
    kept, mixed = Dpp()(scores, quota, evidence), Mixed(Dpp(), 0.5)(scores, quota, evidence)
    q = scaled_by_hand(evidence, scores)
    for v, row, k in rows(evidence, scores, quota):
        alike = cosines(evidence.tokens[v, : len(row)])
        assert kept[v].nonzero()[:, 0].tolist() == sorted(determinant_by_hand(alike, q[v], k))
        first = ranked(row, range(len(row)))[: int(k * 0.5)]
        assert mixed[v].nonzero()[:, 0].tolist() == sorted(determinant_by_hand(alike, q[v], k - len(first), first))


def test_dpp_fills_up_by_score_where_the_rank_is_used_up():
    evidence, scores, _ = drawn(0, samples={1: [(5, 8)], 2: [(2, 3)]})
    evidence = replace(evidence, tokens=evidence.tokens.clone())
    evidence.tokens[0, :, 3:] = 0  # three directions among forty tokens: the authors' code repeats picks here
    kept = Dpp()(scores, torch.tensor([3, 0]), evidence)[0]
    filled = Dpp()(scores, torch.tensor([20, 6]), evidence)
    assert filled.sum(1).tolist() == [20, 6]
    others = ranked(scores[0].tolist(), set(range(40)) - set(kept.nonzero()[:, 0].tolist()))[:17]
    assert filled[0].nonzero()[:, 0].tolist() == sorted([*kept.nonzero()[:, 0].tolist(), *others])


def deduplicated_by_hand(row, alike, k, share):
    order = ranked(row, range(len(row)))
    first, rest = order[: int(k * share)], order[int(k * share) :]
    want = k - len(first)
    while len(rest) > want > 0:
        even, odd = rest[::2], rest[1::2]
        near = {a: max(alike[a][b] for b in odd) for a in even}
        even.sort(key=lambda a: -near[a])
        rest = even[min(8, len(rest) - want, len(even)) :] + odd
    return first + rest[:want]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_deduplicate_equals_its_reference_for_odd_counts_too(seed, share):
    samples = {1: [(5, 9), (3, 4)], 2: [(7, 5)]}
    evidence, scores, quota = drawn(seed, (HiddenStates(),), samples=samples)
    kept = Deduplicate(share)(scores, quota, evidence)
    for v, row, k in rows(evidence, scores, quota):
        alike = cosines(evidence[HiddenStates()][v, : len(row)])
        assert kept[v].nonzero()[:, 0].tolist() == sorted(deduplicated_by_hand(row, alike, k, share))


@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_whole_rows_go_by_their_mean_and_the_last_by_its_tokens(seed, levels):
    evidence, scores, quota = drawn(seed, levels=levels)
    kept = WholeRows()(scores, quota, evidence)
    for v, row, k in rows(evidence, scores, quota):
        line = evidence.layout.grid[v, : len(row), 0].tolist()
        mean = {
            r: sum(x for x, r_of_x in zip(row, line, strict=True) if r_of_x == r) / line.count(r) for r in set(line)
        }
        order = sorted(range(len(row)), key=lambda j: (-mean[line[j]], line[j], -row[j], j))
        assert kept[v].nonzero()[:, 0].tolist() == sorted(order[:k])


def test_a_row_that_has_lost_tokens_is_judged_by_the_mean_of_the_others():
    evidence = make_evidence(samples={1: [(2, 4)]})
    column = evidence.layout.column.masked_fill(torch.arange(8) < 3, -1)  # one token of the first row is left
    evidence = replace(evidence, layout=replace(evidence.layout, column=column))
    scores = torch.tensor([[-math.inf] * 3 + [3.0, 2.0, 2.0, 1.0, 2.0]])
    assert WholeRows()(scores, torch.tensor([1]), evidence)[0].nonzero()[:, 0].tolist() == [3]
    assert WholeRows()(scores, torch.tensor([3]), evidence)[0].nonzero()[:, 0].tolist() == [3, 4, 5]


def windowed_by_hand(row, shallow, grid, k, window, each):
    high, wide = (max(1, (max(at[i] for at in grid) + 1) // window) for i in (0, 1))
    cell = [min(r // window, high - 1) * wide + min(c // window, wide - 1) for r, c in grid]
    local, count = k // 2, high * wide
    most = local // count if each == "floor" else -(-local // count)
    able = [j for w in range(count) for j in ranked(shallow, [j for j in range(len(row)) if cell[j] == w])[:most]]
    kept = ranked(shallow, able)[:local]
    return kept + ranked(row, set(range(len(row))) - set(kept))[: k - len(kept)]


@pytest.mark.parametrize("each", ["floor", "ceil"])
@pytest.mark.parametrize("seed", range(4))
def test_local_global_equals_its_reference(seed, each):
    need = AttentionRows("cls", (2,))
    samples = {1: [(5, 9), (2, 2)], 2: [(4, 4)]}
    evidence, scores, quota = drawn(seed, (need,), samples=samples)
    kept = LocalGlobal(2, 0.5, layer=2, each=each)(scores, quota, evidence)
    for v, row, k in rows(evidence, scores, quota):
        shallow = evidence[need][0, v, :, : len(row)].mean(0).tolist()
        grid = evidence.layout.grid[v, : len(row)].tolist()
        assert kept[v].nonzero()[:, 0].tolist() == sorted(windowed_by_hand(row, shallow, grid, k, 2, each))


@pytest.mark.parametrize("seed", range(4))
def test_outliers_come_first_and_redundant_tokens_last(seed):
    needs = OutliersThenDraw(1, alike=0.8, seed=seed).needs
    evidence, scores, quota = drawn(seed, needs)
    scores[1, 3], scores[4, 10] = 9.0, 8.0
    kept = OutliersThenDraw(1, alike=0.8, seed=seed)(scores, quota, evidence)
    luck = Random(seed)(evidence)[0]
    for v, row, k in rows(evidence, scores, quota):
        n = len(row)
        low, high = (float(torch.tensor(row).quantile(q)) for q in (0.25, 0.75))
        out = [j for j in range(n) if row[j] > high + 1.5 * (high - low)]
        out = out or [best(row, range(n))]
        alike = cosines(evidence[AttentionKeys((1,))][0, v, :, :n].transpose(0, 1).flatten(1))
        redundant = [any(alike[j][i] > 0.8 for i in range(j)) for j in range(n)]
        shallow = evidence[AttentionRows("cls", (1,))][0, v, :, :n].mean(0).tolist()
        race = [math.log(max(float(luck[v, j]), 1e-7)) / shallow[j] for j in range(n)]
        others = sorted(set(range(n)) - set(out), key=lambda j: (redundant[j], -race[j], j))
        assert kept[v].nonzero()[:, 0].tolist() == sorted((ranked(row, out) + others)[:k])


@pytest.mark.parametrize("selector", EVERY, ids=str)
def test_equal_tokens_and_scores_fill_every_quota_without_repeating(selector):
    evidence = make_evidence(selector.needs, {1: [(3, 4), (1, 5)]})
    readings = {need: torch.full_like(x, 0.5) for need, x in evidence.readings.items()}
    evidence = replace(evidence, tokens=torch.ones_like(evidence.tokens), readings=readings)
    scores = torch.zeros(2, 12).masked_fill(~evidence.layout.valid, -torch.inf)
    for quota in ((0, 0), (1, 5), (7, 3), (12, 5)):
        kept = selector(scores, torch.tensor(quota), evidence)
        assert kept.sum(1).tolist() == list(quota)
        assert not (kept & ~evidence.layout.valid).any()


def test_nan_at_padding_reaches_nothing():
    for selector in EVERY:
        evidence = make_evidence(selector.needs, RAGGED)
        _, scores, quota = drawn(3)
        want = selector(scores, quota, evidence)
        valid = evidence.layout.valid

        def poisoned(x, axes, valid=valid):
            x = x.clone()
            if "N" in axes:
                x.movedim((axes.index("V"), axes.index("N")), (0, 1))[~valid] = torch.nan
            return x

        readings = {need: poisoned(x, need.axes) for need, x in evidence.readings.items()}
        evidence = replace(evidence, tokens=poisoned(evidence.tokens, "VNC"), readings=readings)
        assert torch.equal(selector(scores, quota, evidence), want), selector


def test_a_mixed_rest_that_is_not_greedy_chooses_among_the_others():
    evidence, scores, _ = drawn(1, samples={1: [(4, 4)]})
    quota = torch.tensor([8])
    first = TopK()(scores, torch.tensor([4]), evidence)
    kept = Mixed(Grid(), 0.5)(scores, quota, evidence)
    assert (kept & first).sum() == 4
    assert kept.sum() == 8
    assert torch.equal(Mixed(TopK(), 0.5)(scores, quota, evidence), TopK()(scores, quota, evidence))


def test_greedy_picks_do_not_wait_for_the_device(monkeypatch):
    """On the CPU a sync is an item(), tolist() or bool(): none within the picks."""
    evidence, scores, quota = drawn(2)
    calls = []
    for name in ("item", "tolist", "__bool__", "__int__", "nonzero"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, name=name, original=original, **kwargs):
            calls.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    for selector in (MaxMin(), Coverage(), Dpp(), Mixed(Dpp())):
        numbers = []
        for k in (1, 5):
            calls.clear()
            selector(scores, quota.clamp(max=k), evidence)
            numbers.append(len(calls))
        assert numbers[0] == numbers[1], selector


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixed(TopK(), 1.5), r"important is a share of the quota and must lie in 0..1, got 1.5"),
        (lambda: Deduplicate(-0.1), "got -0.1"),
        (lambda: LocalGlobal(0), "window counts tokens along a side and must be at least 1, got 0"),
        (lambda: LocalGlobal(share=2), "share is a share of the quota"),
        (lambda: LocalGlobal(each="round"), "each must be 'floor' or 'ceil', got 'round'"),
    ],
)
def test_invalid_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
