"""SparseVLM: laws, and twins in plain Python."""

import math
from dataclasses import replace

import pytest
import torch

from support.models import backbone
from support.recorded_cases import layout_of
from support.sparsevlm import RATED
from vtcframe import Budget, compress
from vtcframe.core.stages import plan_from_stages
from vtcframe.methods.sparsevlm import Recycle, SparseVlm
from vtcframe.testing import check_merger, check_pruner, make_evidence
from vtcframe.testing.laws.adapters import inputs_for
from vtcframe.testing.tiny_models.samples import SAMPLES

TABLE = {  # of the authors' code
    1.5: {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    2: {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}


COUNTS = {11: [(9, 9)], 29: [(4, 4), (6, 6)], 31: [], 47: [(1, 1)], 50: [(20, 20)]}


@pytest.mark.parametrize("share", [0.3, 0.0, 1.0])
def test_laws_of_the_merger_hold(share):
    check_merger(Recycle(share))


def test_laws_of_a_stage_of_version_2_hold():
    check_pruner(SparseVlm(version=2, heads=3).stages(Budget(64))[0].pruner)
    check_pruner(SparseVlm(recycle=0).stages(Budget(64))[0].pruner)


@pytest.mark.parametrize("budget", [Budget(1), Budget(20), Budget(ratio=0.2), Budget(300), Budget(10**6)], ids=str)
def test_recycled_tokens_come_on_top_and_do_not_depend_on_batch_mates(budget):
    pruner = SparseVlm().stages(Budget(64))[0].pruner
    evidence = make_evidence((RATED,), COUNTS)
    pruned = pruner(evidence, budget)
    kept = budget.total(evidence.layout).tolist()
    for p, (key, grids) in enumerate(COUNTS.items()):
        now = sum(r * c for r, c in grids)
        lost = now - kept[p]
        want = kept[p] + (int(min(int(0.3 * lost) + 1, lost) / 10) + 1 if lost else 0)
        assert int(pruned.total[p]) == want
        assert int(pruned.kept[p].sum()) == want
        if not grids:
            continue
        alone = pruner(make_evidence((RATED,), {key: grids}), budget)
        (tokens, columns), (own, own_columns) = pruned.sequence(p), alone.sequence(0)
        assert columns.tolist() == own_columns.tolist()
        torch.testing.assert_close(tokens, own, atol=1e-6, rtol=1e-6)
        assert tokens.abs().max() < 2  # no poison


def clustered(x, count):
    """Means around the `count` highest density peaks of a list of vectors, in plain Python; the highest first."""
    n, wide = len(x), math.sqrt(len(x[0]))
    away = [[math.dist(a, b) / wide for b in x] for a in x]
    density = [math.exp(-sum(d * d for d in sorted(row)[:count]) / count) for row in away]
    farthest = max(map(max, away))
    peak = [
        density[i] * min([away[i][j] for j in range(n) if density[j] > density[i]], default=farthest) for i in range(n)
    ]
    centres = sorted(range(n), key=lambda i: (-peak[i], i))[:count]
    to = [i if i in centres else min(centres, key=lambda c: away[i][c]) for i in range(n)]
    groups = [[x[i] for i in range(n) if to[i] == c] for c in centres]
    return [[sum(column) / len(group) for column in zip(*group, strict=True)] for group in groups]


@pytest.mark.parametrize("share", [0.3, 0.75])
@pytest.mark.parametrize("tokens", [1, 12, 50])
def test_recycle_equals_its_twin(share, tokens):
    pruner = SparseVlm(recycle=share).stages(Budget(64))[0].pruner
    evidence = make_evidence((RATED,), COUNTS)
    pruned, joined = pruner(evidence, Budget(tokens)), evidence.join_views()
    for p, count in enumerate(joined.layout.count.tolist()):
        scores, x = joined[RATED][0, p, 0, :count].tolist(), joined.tokens[p, :count].tolist()
        rank = sorted(range(count), key=lambda i: (-scores[i], i))
        kept, dropped = sorted(rank[:tokens]), rank[tokens:]
        place = pruned.place[p][pruned.place[p] >= 0].tolist()
        assert place[: len(kept)] == kept
        if not dropped:
            assert place == kept
            continue
        pool = sorted(dropped[: int(share * len(dropped)) + 1])
        means = clustered([x[i] for i in pool], int(len(pool) / 10) + 1)
        assert place[len(kept) :] == sorted(dropped)[-len(means) :]
        made = pruned.tokens[p, len(kept) : len(place)]
        torch.testing.assert_close(made, torch.tensor(means), atol=1e-5, rtol=0)


def test_recycled_tokens_are_read_last_in_the_places_of_the_last_that_go():
    evidence = make_evidence((RATED,), {29: [(4, 4), (12, 6)]})
    pruner = SparseVlm().stages(Budget(64))[0].pruner
    pruned = pruner(evidence, Budget(30))  # 58 go, of which 18 make 2
    tokens, columns = pruned.sequence(0)
    assert len(tokens) == 32
    torch.testing.assert_close(tokens[:30], evidence.join_views().tokens[0, pruned.place[0, :30]])
    dropped = [n for n in range(88) if n not in pruned.place[0, :30].tolist()]
    assert columns.tolist() == [n + 5 for n in (*pruned.place[0, :30].tolist(), *dropped[-2:])]
    assert columns.tolist() != sorted(columns.tolist())
    later = evidence.join_views().restrict_to(pruned)
    again = pruner(replace(later, readings={RATED: -torch.arange(32.0)[None, None, None]}), Budget(31))
    assert again.place[0].tolist() == list(range(32))  # the last one goes, and one is made of it
    torch.testing.assert_close(again.tokens[0], tokens)


def test_equal_tokens_make_no_empty_cluster():
    evidence = make_evidence((RATED,), {3: [(10, 10)]})
    same = replace(evidence, tokens=torch.ones_like(evidence.tokens))
    pruned = SparseVlm().stages(Budget(64))[0].pruner(same, Budget(30))
    torch.testing.assert_close(pruned.tokens, torch.ones(1, 33, 8))


def test_in_a_pipeline_recycled_tokens_come_off_the_budget():
    evidence = make_evidence((RATED,), COUNTS)
    pipeline = SparseVlm(recycle=0).stages(Budget(64))[0].pruner
    pruned = replace(pipeline, merger=Recycle())(evidence, Budget(20))
    assert pruned.total.tolist() == [20, 20, 0, 1, 20]
    assert not torch.equal(pruned.tokens, pipeline(evidence, Budget(20)).tokens)
    merger, count = Recycle(), evidence.join_views().layout.count
    slots = merger.slots(count.clamp(max=20), evidence.join_views().layout)
    assert slots.tolist() == [2, 2, 0, 0, 12]  # of 61, 32, 0, 0 and 380 that go


def test_low_precision_tokens_stay_what_they_are():
    evidence = make_evidence((RATED,), COUNTS)
    half = replace(evidence, tokens=evidence.tokens.bfloat16())
    assert SparseVlm().stages(Budget(64))[0].pruner(half, Budget(20)).tokens.dtype == torch.bfloat16


@pytest.mark.parametrize("version", [1.5, 2])
def test_budgets_are_the_published_ones_or_the_same_as_a_fraction(version):
    method = SparseVlm(version=version)
    for tokens, keeps in TABLE[version].items():
        for budget in (Budget(tokens), Budget(ratio=tokens / 576), Budget(ratio=round(tokens / 576, 3))):
            stages = method.stages(budget)
            assert [stage.at for stage in stages] == ["llm:3", "llm:7", "llm:16"]
            totals = [stage.budget.total(layout_of([(24, 24)])).item() for stage in stages]
            assert totals == list(keeps)
            assert {stage.positions for stage in stages} == {"original"}
        large = [
            stage.budget.total(layout_of([(48, 48)])).item() for stage in method.stages(Budget(ratio=tokens / 576))
        ]
        assert large == [4 * keep for keep in keeps]
        assert [stage.budget.tokens for stage in method.stages(Budget(tokens))] == list(keeps)
    told = r"only for 192 \(ratio 0.333\), 128 \(ratio 0.222\), 96 \(ratio 0.167\), 64 \(ratio 0.111\) tokens in a "
    for budget in (None, Budget(100), Budget(ratio=0.3), Budget(192, per="image"), Budget(576)):
        with pytest.raises(ValueError, match=told):
            method.stages(budget)


def test_versions_ask_differently():
    first, second = (SparseVlm(version=version).stages(Budget(192)) for version in (1.5, 2))
    assert first[0].pruner.needs == (RATED,)
    assert second[0].pruner.needs == (replace(RATED, heads="split", divide_by_rope_prior=True),)
    few = SparseVlm(version=2).stages(Budget(192))[0].pruner
    with pytest.raises(ValueError, match=r"heads=14.*has 4 heads"):
        few(make_evidence(few.needs), Budget(20))
    assert plan_from_stages(first).llm == first
    with pytest.raises(TypeError, match="acts at several stages"):
        SparseVlm().pipeline()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: SparseVlm(layers=(3, 7)), r"layers must be three.*\(3, 7\)"),
        (lambda: SparseVlm(version=1), "version must be one of 1.5, 2, got 1"),
        (lambda: Recycle(1.5), "share is the fraction that is recycled and must lie in 0..1, got 1.5"),
        (lambda: SparseVlm(recycle=-0.1), "share is the fraction that is recycled"),
        (lambda: SparseVlm(heads=0), "heads must be"),
    ],
)
def test_nonsense_is_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize(
    ("family", "version"), [("llava", 1.5), ("llava", 2), ("llava_next", 1.5), ("qwen2_5_vl", 1.5), ("qwen2_5_vl", 2)]
)
def test_a_tiny_model_answers_alone_as_in_a_batch(family, version):
    model, processor = backbone(family)
    compressed = compress(model, SparseVlm((1, 2, 3), version, heads=2), ratio=1 / 3, processor=processor)
    samples = SAMPLES["ragged several"]
    inputs = inputs_for(model, processor, samples)
    options = {"max_new_tokens": 3, "do_sample": False}
    together, after = (
        compressed.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :],
        compressed.last.tokens_after,
    )
    left = compressed.last.layout.untouched.tolist()
    for keep in TABLE[version][192]:
        for p, now in enumerate(left):
            kept = min(max(round(compressed.last.layout.untouched[p].item() * keep / 576), 1), now)
            made = int((int(0.3 * (now - kept)) + 1) / 10) + 1 if now > kept and version == 1.5 else 0
            left[p] = kept + made
    assert after.tolist() == left
    for p, sample in enumerate(samples):
        if sample[1]:
            one = inputs_for(model, processor, [sample])
            alone = compressed.generate(**one, **options)[0, one["input_ids"].shape[1] :]
            assert alone.tolist() == together[p, : len(alone)].tolist()
            assert compressed.last.tokens_after.tolist() == [after[p]]


def test_positions_of_several_axes_are_not_numbered_anew():
    model, processor = backbone("qwen2_5_vl")
    with pytest.raises(ValueError, match=r"M-RoPE.*use 'original' at 'llm:1'"):
        compress(model, SparseVlm((1, 2, 3), positions="compact"), ratio=1 / 3, processor=processor)
