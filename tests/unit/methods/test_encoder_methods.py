"""Methods that act inside the encoder: schedules, budgets, laws and errors."""

import math
import random
from pathlib import Path

import pytest
import torch

from support.encoder_stages import GREEDY, GRIDS, METHODS, drawn, taken, within
from support.models import backbone
from vtcframe import Budget, RandomPruner, VtcCls, adapter_for, compress
from vtcframe.assets import bundled
from vtcframe.components.mergers import Fuse
from vtcframe.core.token_merging import fuse_attention, merge, token_sizes
from vtcframe.data.decode import load_sample
from vtcframe.data.formats import read_samples
from vtcframe.data.progress import RunProgress
from vtcframe.inference.checkpoint import Backbone
from vtcframe.methods.diffrate import DiffRate
from vtcframe.methods.evit import EVit, KeepRate
from vtcframe.methods.mctf import Mctf, MctfStep
from vtcframe.methods.tome import ToMe, ToMeStep
from vtcframe.runs.comparison import Comparison
from vtcframe.runs.predictor import Predictor
from vtcframe.testing import check_pruner, make_evidence, make_inputs
from vtcframe.testing.tiny_models.llava_families import SAMPLES, tiny_llava

QUESTIONS = Path(bundled("vtcframe:questions"))


def test_a_fused_map_is_summed_over_keys_and_averaged_over_queries():
    step = MctfStep(0.4, pooling="size")
    evidence = drawn(step.needs, 0, classes=1)
    merged = step(evidence)
    views, n = evidence.layout.column.shape
    paid = torch.rand(views, 2, 1 + n, 1 + n)
    got = fuse_attention(paid, merged, 1)
    for v in range(views):
        rows = [[0]]
        for row in range(int((merged.place[v] >= 0).sum())):
            rows.append([1 + i for i in range(n) if int(merged.group[v, i]) == row])
        weight = [1.0, *evidence.size[v].tolist()]
        for a, queries in enumerate(rows):
            total = sum(weight[q] for q in queries)
            for b, keys in enumerate(rows):
                want = sum(weight[q] / total * float(paid[v, 1, q, k]) for q in queries for k in keys)
                assert float(got[v, 1, a, b]) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_keep_rate_is_rounded_up_and_falls_by_equal_ratios_towards_a_budget(seed):
    rng = random.Random(seed)
    count, left, budget = rng.randrange(5, 600), rng.randrange(1, 6), rng.randrange(1, 5)
    evidence = make_evidence(samples={1: [(1, count)]})
    scores = torch.zeros(1, count)
    assert KeepRate(0.7)(scores, None, evidence).tolist() == [math.ceil(0.7 * count)]
    now, steps = count, []
    for to_go in range(left, 0, -1):
        now = int(KeepRate(0.7, to_go)(scores, torch.tensor([budget]), make_evidence(samples={1: [(1, now)]})))
        steps.append(now)
    assert steps[-1] == budget
    before = [count, *steps]
    for to_go, old, new in zip(range(left, 1, -1), before, steps, strict=False):
        assert new == math.ceil(old * (budget / old) ** (1 / to_go) - 1e-9)
    assert KeepRate(0.55)(scores[:, :1].expand(1, 100), None, make_evidence(samples={1: [(1, 100)]})).tolist() == [56]


@pytest.mark.parametrize("kind", [ToMeStep, MctfStep])
def test_every_budget_that_halving_can_reach_is_met_exactly_and_others_are_errors(kind):
    for count in (1, 2, 7, 16, 33):
        for budget in range(1, count + 1):
            for blocks in (1, 2, 3, 5):
                column, reached = count, True
                for left in range(blocks, 0, -1):
                    step = kind(remaining_stages=left)
                    evidence = make_evidence(step.needs, {1: [(1, column)]})
                    if -(-count // 2**blocks) > budget:
                        with pytest.raises(ValueError, match=rf"cannot become {budget} in {blocks} blocks"):
                            step(evidence, Budget(budget))
                        reached = False
                        break
                    column = step(evidence, Budget(budget)).place.shape[1]
                assert not reached or column == budget


@pytest.mark.parametrize(
    "method", [EVit((0,)), EVit((0,), fuse=False), ToMe(blocks=(0,)), DiffRate(blocks=(0,)), Mctf(blocks=(0,))]
)
def test_laws_hold_for_the_last_step_of_every_method(method):
    budget = Budget(ratio=0.8)  # one block merges half at most
    (stage,) = method.stages(budget)
    check_pruner(stage.pruner, [budget])
    if not isinstance(method, ToMe | Mctf):
        check_pruner(stage.pruner, [Budget(20), Budget(1)])


def test_merge_leaves_single_tokens_as_they_are_bit_for_bit_and_padding_out():
    evidence = make_evidence(samples=GRIDS)
    index = torch.arange(15).expand(evidence.layout.column.shape)
    weight = torch.rand(index.shape) + 0.1
    merged = merge(evidence, index, index, evidence.layout.count, weight, weight)
    real = merged.place >= 0
    assert torch.equal(merged.tokens[real], evidence.tokens[evidence.layout.valid])
    assert (merged.tokens[~real] == 0).all()
    assert torch.equal(token_sizes(evidence), torch.ones_like(weight))
    assert (merged.scores[~evidence.layout.valid] == -torch.inf).all()


# Options and runs


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: EVit(()), "blocks are numbered from 0"),
        (lambda: EVit((3, 1)), "must ascend"),
        (lambda: ToMe(blocks=(-1,)), "are numbered from 0"),
        (lambda: EVit(keep=0), r"lie in \(0, 1\], got 0"),
        (lambda: ToMe(-1), "r must not be negative"),
        (lambda: ToMe(inflect=2), r"\[-1, 1\]"),
        (lambda: Mctf(1.5), "got 1.5"),
        (lambda: Mctf(temperatures=(1, 2)), "three"),
        (lambda: Mctf(temperatures=(1, 2, -1)), "none negative"),
        (lambda: Mctf(pooling="sum"), "'attention', 'size', 'max' or 'mean', got 'sum'"),
        (lambda: Mctf(when="amid"), "'fused', 'before' or 'after', got 'amid'"),
        (lambda: DiffRate((3,), (3,), blocks=(0, 1)), "for 2 blocks: give one number for each block"),
        (lambda: DiffRate((3,), (1,), blocks=(0,)), "each at least 2"),
        (lambda: DiffRate((3,), (), blocks=(0,)), "give both, or neither and a budget"),
        (lambda: DiffRate().stages(None), "takes either a budget or rates"),
        (lambda: DiffRate((3,), (3,), blocks=(0,)).stages(Budget(3)), "but not both"),
        (lambda: EVit(query="clss").stages(None), "query must be one of"),
    ],
)
def test_nonsense_is_refused_with_the_cure(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_methods_of_several_stages_are_no_pruners_of_one():
    for method in METHODS:
        with pytest.raises(TypeError, match="acts at several stages"):
            method(make_evidence(), Budget(3))


def test_published_schedules_leave_what_they_say():
    model, processor = backbone("llava")
    inputs = make_inputs(processor, SAMPLES["one"])
    for method, after in (
        (EVit((0, 1), keep=0.5), 6),  # 16 -> 8 + 1 -> 5 + 1
        (EVit((0, 1), keep=0.5, fuse=False), 4),
        (ToMe(3, blocks=(0, 1, 2)), 7),
        (ToMe(3, -1.0, blocks=(0, 1, 2)), 16 - 6 - 3),
        (Mctf(4, (1, 2)), 9),  # ten are left, the class token among them
        (Mctf(0.25, (1, 2)), 9),
        (DiffRate((14, 10), (12, 6), blocks=(0, 2)), 5),
    ):
        compressed = compress(model, method)
        compressed.generate(**inputs, **GREEDY)
        assert compressed.last.tokens_after.tolist() == [after], method


@pytest.mark.parametrize("when", ["fused", "before", "after"])
def test_when_mctf_acts_matters(when):
    _, adapter, inputs = taken("llava", "one")
    mine, other = (
        within(adapter, inputs, Mctf(0.4, (1,), when=w).stages(None))[1]
        for w in (when, {"fused": "before", "before": "after", "after": "fused"}[when])
    )
    assert mine.tokens.shape == other.tokens.shape
    assert (mine.tokens - other.tokens).abs().max() > 1e-4


def test_a_fused_token_takes_the_first_free_place_of_its_view():
    _, adapter, inputs = taken("llava", "one")
    (stage,) = EVit((1,), keep=0.5).stages(None)
    assert stage.pruner.merger == Fuse(mean=False)
    fused_too = within(adapter, inputs, [stage])[1]
    alone = within(adapter, inputs, EVit((1,), keep=0.5, fuse=False).stages(None))[1]
    (spare,) = (fused_too.kept & ~alone.kept)[0].nonzero()[:, 0].tolist()
    assert spare == int((~alone.kept[0]).long().argmax())


def test_the_predict_loop_encodes_once_for_all_that_prune_alike_inside(monkeypatch):
    predictor = Predictor(
        Backbone("vtcframe:tiny", "float32"),
        compare=Comparison([ToMe(blocks=(0, 1)), RandomPruner(), VtcCls(1)], [Budget(ratio=0.5), Budget(ratio=0.25)]),
        generation={"max_new_tokens": 2},
        progress=RunProgress.opened(views=True),
    )
    predictor.setup("predict")
    calls = []
    for name in ("encode", "encode_with_stages"):
        own = getattr(predictor.adapter, name)
        monkeypatch.setattr(predictor.adapter, name, lambda *args, o=own, n=name: (calls.append(n), o(*args))[1])
    samples = read_samples(QUESTIONS / "questions.jsonl", QUESTIONS)[:2]
    with torch.no_grad():
        rows = predictor.predict_step([load_sample(sample) for sample in samples], 0)
    assert [row.error for row in rows] == [None] * len(rows)
    assert sorted(calls) == ["encode", "encode_with_stages", "encode_with_stages"]
    of = {(row.label, row.budget and row.budget["ratio"]): row for row in rows}
    for method in (ToMe(blocks=(0, 1)), RandomPruner()):
        for ratio in (0.5, 0.25):
            row = of[str(method), ratio]
            assert row.visual_tokens == round(row.visual_tokens_before * ratio)
            assert sum(cell for view in row.views for line in view["kept"] for cell in line) == row.visual_tokens
            assert row.encode_seconds > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [*METHODS, Mctf(blocks=(0, 1), when="before", pooling="max")], ids=str)
def test_half_precision_and_autocast_leave_as_many(method, dtype):
    model, processor = tiny_llava()
    inputs = make_inputs(processor, SAMPLES["ragged several"])
    adapter = adapter_for(model)
    with torch.autocast("cpu", dtype):
        left = within(adapter, inputs, method.stages(Budget(ratio=0.4)))[1]
    assert left.total.tolist() == [13, 6, 0]
    model = model.to(dtype)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    left = within(adapter_for(model), inputs, method.stages(Budget(ratio=0.4)))[1]
    assert left.total.tolist() == [13, 6, 0]
    assert left.tokens.dtype == dtype
    assert left.tokens[left.place >= 0].isfinite().all()
