"""Methods that judge by a language model's attention: laws, twins in plain Python, and recorded numbers."""

import json
import math
from dataclasses import replace

import pytest
import torch
from test_parity import GOLDEN, layout, read

from conftest import backbone, has_mrope
from vtcframe import Budget, Evidence, Rows, adapter_for, compress, probed
from vtcframe.attention import Call
from vtcframe.methods.llm import (
    Descent,
    Exit,
    FastV,
    ProbeAttention,
    PyramidDrop,
    SinkFilter,
    Sinkless,
    VisualExit,
    ZipCacheSaliency,
)
from vtcframe.needs import Probed
from vtcframe.pipeline import planned
from vtcframe.scorers import KeyNorm, TextAttention
from vtcframe.testing import check_allocator, check_pruner, check_restored, check_scorer, make_evidence
from vtcframe.testing import samples as tiny
from vtcframe.testing.adapters import inputs_for
from vtcframe.testing.llm import check_llm_stages, masked_layers, passage_of

DIMS = (0, 5)
SINKLESS = Sinkless(TextAttention(), DIMS, threshold=1.5)  # of evidence drawn from 0..1: some tokens of each sample
ONCE = [FastV(), ZipCacheSaliency(), SinkFilter(dims=DIMS, threshold=1.5)]
RAGGED = tiny.SAMPLES["ragged several"]  # two pictures, one, none
LAST = Rows("last", (-1,), tower="llm", heads="mean")


@pytest.mark.parametrize("scorer", [ProbeAttention(), SINKLESS, Sinkless(KeyNorm(), DIMS, 1.5)], ids=str)
def test_laws_of_scorers_hold(scorer):
    check_scorer(scorer)


@pytest.mark.parametrize("pruner", [*ONCE, *(PyramidDrop().stages(Budget(5))[-1].pruner,)], ids=str)
def test_laws_of_pruners_hold(pruner):
    check_pruner(pruner)


@pytest.mark.parametrize("stage", PyramidDrop().stages(None), ids=str)
def test_laws_of_a_published_stage_hold(stage):
    check_pruner(stage.pruner, (None,))


def test_laws_of_a_descent_hold():
    check_allocator(Descent(0.5))


@pytest.mark.parametrize("method", ONCE, ids=str)
def test_one_stage_needs_a_budget_and_keeps_positions(method):
    (stage,) = method.stages(Budget(7))
    assert (stage.at, stage.pruner, stage.budget, stage.positions) == ("llm:2", method, Budget(7), "original")
    with pytest.raises(ValueError, match="not how many stay: give tokens or ratio"):
        method.stages(None)
    with pytest.raises(ValueError, match="give 1 or more, got 0"):
        replace(method, layer=0)


def rank(scores, quota):
    """The highest of a list, the earlier of equals, in their order."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:quota])


@pytest.mark.parametrize("budget", [Budget(20), Budget(ratio=0.25)])
def test_fastv_equals_its_twin(budget):
    evidence = make_evidence((LAST,))
    pruned, joined = FastV()(evidence, budget), evidence.joined()
    for p, total in enumerate([144, 432, 0, 360]):
        scores = joined[LAST][0, p, 0, :total].tolist()
        quota = min(total, 20) if budget.ratio is None else round(total * 0.25)
        assert pruned.place[p][pruned.place[p] >= 0].tolist() == rank(scores, quota)


def through(stages, samples):
    """The tokens each sample has after each of the stages, by column; every stage sees attention of its own."""
    evidence, seen = make_evidence((), samples), []
    for stage in stages:
        made = make_evidence(stage.pruner.needs, samples)
        if seen:  # what was made for all tokens, of those that are left
            made = made.joined()
            place = torch.where(evidence.layout.valid, evidence.layout.column - 5, -1)
            take = {need: x.gather(3, place.clamp(min=0)[None, :, None]) for need, x in made.found.items()}
            evidence = replace(evidence, found={**evidence.found, **take})
        else:
            evidence = made
        evidence = evidence.after(stage.pruner(evidence, stage.budget))
        seen.append([row[row >= 0].tolist() for row in evidence.layout.column])
    return seen


SAMPLES = {3: [(24, 24)], 5: [(5, 7), (1, 2)], 8: [], 9: [(1, 3)]}


@pytest.mark.parametrize(
    ("budget", "counts"),
    [
        (None, [[288, 144, 72], [18, 9, 4], [0, 0, 0], [1, 1, 1]]),
        (Budget(ratio=0.125), [[288, 144, 72], [18, 9, 5], [0, 0, 0], [2, 1, 1]]),
        (Budget(64), [[276, 133, 64], [37, 37, 37], [0, 0, 0], [3, 3, 3]]),
        (Budget(8), [[138, 33, 8], [22, 13, 8], [0, 0, 0], [3, 3, 3]]),
    ],
)
def test_a_pyramid_comes_down_as_published_or_to_the_budget(budget, counts):
    stages = PyramidDrop().stages(budget)
    assert [stage.at for stage in stages] == ["llm:8", "llm:16", "llm:24"]
    assert {stage.positions for stage in stages} == {"original"}
    assert {stage.positions for stage in PyramidDrop(positions="compact").stages(budget)} == {"compact"}
    assert {stage.budget for stage in stages} == {budget}
    for p, (n, want) in enumerate(zip([576, 37, 0, 3], counts, strict=True)):
        by_hand = []
        for i in (1, 2, 3):
            if budget is None:
                by_hand.append(min(n, max(1, int(n * 0.5**i))))
            else:
                final = min(n, max(1, budget.tokens or round(n * budget.ratio)))
                by_hand.append(math.floor(n * (final / max(n, 1)) ** (i / 3) + 1e-9) if i < 3 else final)
        assert by_hand == want
        assert [len(columns[p]) for columns in through(stages, SAMPLES)] == want


def test_whole_numbers_on_the_way_are_met_though_their_powers_round():
    steps = PyramidDrop((1, 2, 3, 4, 5)).stages(Budget(1))
    assert [[len(row) for row in left] for left in through(steps, {7: [(4, 8)]})] == [[16], [8], [4], [2], [1]]


def test_each_stage_of_a_pyramid_ranks_what_is_left_by_the_layer_that_comes_next():
    stages = PyramidDrop((2, 3), (0.5, 0.25)).stages(None)
    needs = [need for stage in stages for need in stage.pruner.needs]
    assert needs == [Rows("last", (layer,), tower="llm", heads="mean") for layer in (2, 3)]
    first, second = through(stages, {7: [(4, 5)]})
    evidence = make_evidence(needs, {7: [(4, 5)]})
    scores = [evidence[need][0, 0, 0].tolist() for need in needs]
    left = rank(scores[0], 10)
    assert first == [[5 + i for i in left]]
    again = rank([scores[1][i] for i in left], 5)
    assert second == [[5 + left[i] for i in again]]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: PyramidDrop(()), "layers counts from 0 and ascends, from 1 up, one at least: got ()"),
        (lambda: PyramidDrop((3, 2)), "ascends"),
        (lambda: PyramidDrop((0, 2)), "from 1 up"),
        (lambda: PyramidDrop((1, 2)).stages(None), "3 ratios for 2 layers: give one a layer, or a budget"),
        (lambda: PyramidDrop(ratios=(0.5, 0.6)), "none rising"),
        (lambda: PyramidDrop(ratios=(1.5,)), r"got \(1.5,\)"),
        (lambda: PyramidDrop()(make_evidence()), "acts at several stages"),
        (lambda: VisualExit(()), "layers counts from 0"),
        (lambda: VisualExit(threshold=0), r"must lie in \(0, 1\], got 0"),
        (lambda: VisualExit((2,), 0.1, patience=3), "give 1 to 2, got 3"),
        (lambda: VisualExit().stages(Budget(3)), "takes no budget: leave out Budget"),
        (lambda: ProbeAttention(recent=5), "recent is a share of the prompt and must lie in 0..1, got 5"),
        (lambda: ProbeAttention(random=-1), "random is a share"),
        (lambda: Sinkless(TextAttention(), ()), "one at least"),
        (lambda: Sinkless(TextAttention(), (-1,)), "counted from 0"),
        (lambda: SinkFilter()(make_evidence((LAST,)), Budget(3)), r"dims \(1415, 2533\) are none of a model with 8"),
    ],
)
def test_nonsense_is_told(make, told):
    with pytest.raises(ValueError if "several stages" not in told else TypeError, match=told.replace("()", r"\(\)")):
        make()


def test_lists_are_as_good_as_tuples():
    assert PyramidDrop([8, 16], [0.5, 0.25]) == PyramidDrop((8, 16), (0.5, 0.25))  # as YAML gives them
    assert VisualExit([3]) == VisualExit((3,))
    assert hash(SinkFilter(dims=[3, 4])) == hash(SinkFilter(dims=(3, 4)))
    assert Sinkless(TextAttention(), [3]) == Sinkless(TextAttention(), (3,))


def test_all_visual_tokens_exit_at_a_fixed_layer():
    (stage,) = VisualExit((4, 9)).stages(None)
    assert (stage.at, stage.budget, stage.pruner.needs) == ("llm:4", None, ())
    pruned = stage.pruner(make_evidence())
    assert pruned.tokens.shape == (6, 0, 8)
    assert pruned.total.tolist() == [0, 0, 0, 0]
    left = make_evidence().after(pruned)
    assert left.layout.count.tolist() == [0] * 6
    assert stage.pruner(left).total.tolist() == [0, 0, 0, 0]


def test_samples_exit_by_themselves_once_little_was_paid_for_long_enough():
    *_, stage = VisualExit((2, 5), threshold=0.3, patience=2).stages(None)
    assert [s.at for s in VisualExit((2, 5), threshold=0.3).stages(None)] == ["llm:2", "llm:5"]
    need = Rows("last", (-2, -1), tower="llm", heads="mean")
    assert stage.pruner.needs == (need,)
    evidence = make_evidence((need,))  # samples 0, 1, 1, 1, 3, 3
    paid = torch.zeros_like(evidence[need])
    for layer, masses in enumerate([[0.29, 0.2, 0.05, 0.06, 0.1, 0.1], [0.29, 0.1, 0.05, 0.01, 0.2, 0.11]]):
        for v, mass in enumerate(masses):  # sample 1 is at 0.31 in the first layer, sample 3 in the second
            n = int(evidence.layout.count[v])
            paid[layer, v, 0, :n] = mass / n
    poisoned = paid.masked_fill(~evidence.layout.valid[None, :, None], torch.nan)
    evidence = replace(evidence, found={need: poisoned})
    pruned = stage.pruner(evidence)
    assert pruned.total.tolist() == [0, 432, 0, 360]
    assert torch.equal(pruned.kept, evidence.layout.valid & (evidence.layout.sample > 0)[:, None])
    assert (pruned.scores[~evidence.layout.valid] == -torch.inf).all()
    again = Exit(0.3)(replace(make_evidence((LAST,)), found={LAST: poisoned[:1]}))
    assert again.total.tolist() == [0, 432, 0, 0]
    assert Exit(0.5)(replace(make_evidence((LAST,)), found={LAST: poisoned[:1]})).total.tolist() == [0, 0, 0, 0]


def test_attention_that_is_not_finite_lets_nobody_exit():
    paid = make_evidence((LAST,))[LAST].clone()
    paid[0, -1, 0, 3] = torch.nan
    with pytest.raises(ValueError, match=r"samples \[3\] is not finite"):
        Exit(0.3)(replace(make_evidence(), found={LAST: paid}))


def test_sinks_rank_below_all_others_of_their_sample_and_keep_their_order():
    evidence = make_evidence(SINKLESS.needs)
    evidence = replace(evidence, tokens=evidence.tokens * 2 - 1)  # channels stand out on either side
    for shift in (0.0, -0.5, -7.0):  # scores need not be positive
        found = {LAST: evidence[LAST] + shift}
        maps, plain = SINKLESS(replace(evidence, found=found))[0], found[LAST][0, :, 0]
        told = 0
        for p, views in enumerate([[0], [1, 2, 3], [], [4, 5]]):
            sinks, others = [], []
            for v in views:
                for n in range(int(evidence.layout.count[v])):
                    h = evidence.tokens[v, n].double().tolist()
                    length = math.sqrt(sum(x * x for x in h) / len(h) + 1e-6)
                    own = sinks if max(abs(h[d]) / length for d in DIMS) > 1.5 else others
                    own.append((float(plain[v, n]), float(maps[v, n])))
            assert bool(views) == bool(sinks) == bool(others), p
            assert all(before == after for before, after in others)
            if views:
                assert max(after for _, after in sinks) < min(after for _, after in others)
            assert [after for _, after in sorted(sinks)] == sorted({after for _, after in sinks})
            told += len(sinks)
        assert told > 20


def test_sinks_of_zero_or_equal_scores_are_below_too():
    evidence = make_evidence((LAST,))
    for level in (0.0, 1e-8, 3.0, -2.0):
        maps = SINKLESS(replace(evidence, found={LAST: torch.full_like(evidence[LAST], level)}))[0]
        sinks = SINKLESS.sinks(evidence.tokens) & evidence.layout.valid
        assert sinks.any()
        assert (maps[sinks] < level).all()
        assert (maps[~sinks & evidence.layout.valid] == level).all()


# On tiny models of four layers


def small(method, family):
    """The stages of a method before layers 2 and 3, which every family allows."""
    if isinstance(method, PyramidDrop) and has_mrope(family):
        method = replace(method, positions="original")
    return method.stages(Budget(3))


@pytest.mark.parametrize("family", ["llava", "llava_next", "gemma3", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("method", [*ONCE, PyramidDrop((2, 3))], ids=lambda method: type(method).__name__)
def test_laws_of_stages_hold(method, family):
    check_llm_stages(*backbone(family), small(method, family))


def exited(family, threshold, samples):
    """Columns that are left before the last layer, new ids and their logits, sample by sample."""
    model, processor = backbone(family)
    compressed = compress(model, VisualExit((2, 3), threshold), processor=processor)
    inputs = inputs_for(model, processor, samples)
    out = compressed.generate(
        **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    return compressed.last.visual, out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_what_has_exited_is_hidden_from_later_layers(family):
    model, processor = backbone(family)
    inputs, options = inputs_for(model, processor, RAGGED), {"max_new_tokens": 3, "do_sample": False}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    adapter, plan = adapter_for(model, processor), planned(VisualExit((2,)).stages(None))
    passage = passage_of(adapter, inputs, plan)
    with check_restored(model), passage:
        got = model.generate(**passage.given, **options)
    assert passage.stages.visual[:, 2:].eq(0).all()
    assert passage.stages.visual[:-1, 1].gt(0).all()
    given = passage_of(adapter, inputs, plan).given
    with masked_layers(adapter, passage.stages):
        want = model.generate(**given, **options)
    assert torch.equal(got.sequences, want.sequences)
    for a, b in zip(got.logits, want.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_sample_exits_alone_as_in_its_batch(family):
    every, *_ = exited(family, 1e-6, RAGGED)
    assert torch.equal(every[:, 3], every[:, 0])  # always some attention is left
    mass = sorted(masses(family))
    apart = sum(mass[-2:]) / 2  # between the two samples that have pictures
    visual, ids, logits = exited(family, apart, RAGGED)
    stays = visual[:, 2] == visual[:, 0]
    assert stays[visual[:, 0] > 0].tolist().count(True) == 1
    for p, sample in enumerate(RAGGED):
        if not sample[1]:
            continue
        alone, own, one = exited(family, apart, [sample])
        assert torch.equal(alone[0], visual[p])
        assert torch.equal(own[0], ids[p, : own.shape[1]])
        torch.testing.assert_close(one[0], logits[p, : one.shape[1]], atol=1e-5, rtol=0)


def masses(family):
    """What the last token of each sample pays its pictures in layer 1, by the eager model's own weights."""
    model, processor = backbone(family, "eager")
    inputs = inputs_for(model, processor, RAGGED)
    with torch.no_grad():
        paid = model(**inputs, output_attentions=True).attentions[1][:, :, -1].mean(1)
    pictures = inputs["input_ids"] == model.config.image_token_id
    return (paid * pictures).sum(1).tolist()


# Probes


def test_probe_attention_is_the_mean_over_heads():
    scorer = ProbeAttention(3, 0.1, 0.2, seed=5)
    (need,) = scorer.needs
    assert need == Probed((3,), 0.1, 0.2, 5)
    evidence = make_evidence(scorer.needs)
    by_hand = sum(float(x) for x in evidence[need][0, 2, :, 9]) / 4
    assert float(scorer(evidence)[0, 2, 9]) == pytest.approx(by_hand, abs=1e-6)


def prompts(lengths, gaps=False, heads=4, groups=2, width=8):
    """A causal call over prompts padded on the left, poison at padding; its columns and the samples' keys."""
    longest = max(lengths)
    query, key = (torch.full((len(lengths), h, longest, width), 1e4) for h in (heads, groups))
    column, keys = torch.full((len(lengths), longest), -1), torch.tensor([1000 + n for n in lengths])
    for b, n in enumerate(lengths):
        generator = torch.Generator().manual_seed(n)
        query[b, :, longest - n :] = torch.randn(heads, n, width, generator=generator)
        key[b, :, longest - n :] = torch.randn(groups, n, width, generator=generator)
        at = torch.arange(n)
        column[b, longest - n :] = at + (at > n // 3) * 7 if gaps else at
    real = column >= 0
    seen = torch.ones(longest, longest, dtype=torch.bool).tril() & real[:, None]
    seen |= torch.eye(longest, dtype=torch.bool)  # a row of padding sees itself
    return Call(query, key, seen[:, None], 0.3, False, None), column, keys


def attention(call, b, h, row):
    """One row of softmax over the keys that it sees, the rest 0."""
    group = h // (call.query.shape[1] // call.key.shape[1])
    q = call.query[b, h, row].double().tolist()
    mask = call.mask[b, 0, row].tolist()
    logits = [
        sum(x * y for x, y in zip(q, k, strict=True)) * call.scaling for k in call.key[b, group].double().tolist()
    ]
    top = max(x for x, m in zip(logits, mask, strict=True) if m)
    weights = [math.exp(x - top) if m else 0.0 for x, m in zip(logits, mask, strict=True)]
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize("need", [Probed((0,), 0.2, 0.3), Probed((0,), 0.0, 0.5, seed=3), Probed((0,), 0.3, 0.0)])
def test_probed_equals_its_twin(need):
    lengths = [23, 40, 3]
    call, column, keys = prompts(lengths)
    got, asking = probed.probed(call, need, column, keys), probed.probes(column, keys, need)
    assert got.dtype == torch.float32
    for b, n in enumerate(lengths):
        rows = asking[b].nonzero()[:, 0].tolist()
        recent = max(1, int(need.recent * n))
        assert rows[-recent:] == list(range(40 - recent, 40))
        assert len(rows) == recent + int(need.random * n)
        assert all(row >= 40 - n for row in rows)
        for h in range(4):
            paid = [attention(call, b, h, row) for row in rows]
            for j in range(40):
                seeing = sum(row >= j >= 40 - n for row in rows)
                want = sum(row[j] for row in paid) / seeing if seeing else 0.0
                assert float(got[b, h, j]) == pytest.approx(want, abs=1e-6), (b, h, j)


def test_probes_of_a_sample_are_the_same_in_any_batch_and_by_no_more_than_its_hash_and_seed():
    need = Probed((0,), 0.1, 0.4)
    call, column, keys = prompts([31, 50, 17], gaps=True)
    whole = probed.probes(column, keys, need)
    paid = probed.probed(call, need, column, keys)
    for b, n in enumerate([31, 50, 17]):
        alone, own, key = prompts([n], gaps=True)
        assert torch.equal(whole[b, 50 - n :], probed.probes(own, key, need)[0])
        assert not whole[b, : 50 - n].any()
        one = probed.probed(alone, need, own, key)
        torch.testing.assert_close(paid[b, :, 50 - n :], one[0], atol=1e-6, rtol=1e-5)
        assert (paid[b, :, : 50 - n] == 0).all()
    assert not torch.equal(whole, probed.probes(column, keys, replace(need, seed=1)))
    assert not torch.equal(whole, probed.probes(column, keys + 1, need))
    everyone = probed.probes(column, keys, Probed((0,), 0.5, 1.0))
    assert torch.equal(everyone, column >= 0)  # never more than there are


def test_masks_of_every_kind_say_the_same_and_chunks_change_nothing(monkeypatch):
    need = Probed((0,), 0.2, 0.3)
    call, column, keys = prompts([40])
    want = probed.probed(call, need, column, keys)
    additive = torch.zeros(call.mask.shape).masked_fill(~call.mask, torch.finfo(torch.float16).min)
    for same in (
        replace(call, mask=additive),
        replace(call, mask=additive.half()),
        replace(call, mask=None, causal=True),
        replace(call, mask=column >= 0, causal=True),
        replace(call, mask=call.mask.expand(-1, 4, -1, -1)),
    ):
        torch.testing.assert_close(probed.probed(same, need, column, keys), want, atol=1e-6, rtol=1e-5)
    monkeypatch.setattr(probed, "ELEMENTS", 500)
    torch.testing.assert_close(probed.probed(call, need, column, keys), want, atol=1e-6, rtol=1e-5)
    free = replace(call, mask=None)  # every query sees every key
    rows = probed.probes(column, keys, need)[0].nonzero()[:, 0]
    _, seen = probed.attended(free, rows)
    assert seen.unique().tolist() == [len(rows)]


def test_no_more_than_probe_rows_are_computed(monkeypatch):
    call, column, keys = prompts([60, 44])
    made = []
    logits = probed.logits_of

    def spied(query, key, scaling):
        made.append(query.shape[2])
        return logits(query, key, scaling)

    monkeypatch.setattr(probed, "logits_of", spied)
    probed.probed(call, Probed((0,)), column, keys)
    assert made == [3 + 3, 2 + 2]


# Recorded numbers


def recorded(method, holding):
    """Parametrise over the recorded cases that hold a tensor; none is an error, not a pass."""
    files = sorted((GOLDEN / method).glob("*.json"))
    files = [path for path in files if holding in json.loads(path.read_text())["tensors"]]
    assert files, f"{GOLDEN} has no recorded case of {method} with {holding}"
    return pytest.mark.parametrize("path", [f.with_suffix(".safetensors") for f in files], ids=lambda path: path.stem)


def one_picture(start, n):
    return layout([(1, n)], columns=start + torch.arange(n)[None])


@recorded("fastv", "kept_indices")
def test_fastv_keeps_what_was_recorded(path):
    tensors, params = read(path)
    row, kept = tensors["attn_last_row"], tensors["kept_indices"]
    start, n = params.get("image_start", params.get("sys_length")), params["image_len"]
    assert row.shape[1] == params["seq_len"]
    if "attention_rank" in params:
        budget, layer = Budget(params["attention_rank"]), params["agg_layer"]
    elif "fastv_r" in params:
        budget, layer = Budget(ratio=1 - params["fastv_r"]), params["fastv_k"]
    else:
        budget, layer = Budget(int(n * params["ratio"])), params["K"]
    (stage,) = FastV(layer).stages(budget)
    assert stage.at == f"llm:{layer}"
    found = {LAST: row.mean(0)[None, None, None, start : start + n]}
    pruned = stage.pruner(Evidence(torch.zeros(1, n, 1), one_picture(start, n), found), stage.budget)
    text = [i for i in range(params["seq_len"]) if not start <= i < start + n]
    assert sorted(text + pruned.column[0].tolist()) == kept.tolist()
    if "position_ids_after" in tensors:  # "original"
        assert torch.equal(tensors["position_ids_after"], kept)
    if "kv_cache_lengths" in tensors:  # 35 text tokens in front, 30 behind; the code runs one layer twice
        lengths = tensors["kv_cache_lengths"].tolist()
        before, after = params["seq_len"], len(text) + pruned.place.shape[1]
        assert lengths == [before] * (layer - 1) + [2 * before] + [after] * (len(lengths) - layer)


@recorded("pyramiddrop", "q_proj")
def test_a_stage_of_pyramid_drop_keeps_what_was_recorded(path):
    tensors, params = read(path)
    heads, width, n = params["heads"], params["head_dim"], params["image_len"]
    x = tensors["features"]
    x = x * (x.square().mean(-1, keepdim=True) + params["rms_norm_eps"]).rsqrt() * tensors["input_layernorm"]
    query, key = (
        (x @ tensors[name].T).unflatten(-1, (-1, width)).transpose(1, 2) for name in ("q_proj", "k_proj")
    )  # [B, H, L, d]
    key = key.repeat_interleave(heads // key.shape[1], 1)
    turn = torch.arange(x.shape[1])[:, None] * params["rope_theta"] ** (-torch.arange(0, width, 2) / width)
    half = torch.cat([turn, turn], -1)

    def rotated(y):
        low, high = y.chunk(2, -1)
        return y * half.cos() + torch.cat([-high, low], -1) * half.sin()

    logits = rotated(query) @ rotated(key).transpose(2, 3) / width**0.5
    seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril() & tensors["attention_mask"].bool()[:, None]
    paid = logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1).mean(1)
    layer, ratio = params["rank_layer"], params["ratio_list"]
    rows, columns = [], []
    for b, (start, asks) in enumerate(zip(params["image_start"], params["query_row"], strict=True)):
        rows.append(paid[b, asks, start : start + n])
        columns.append(start + torch.arange(n))
    stages = PyramidDrop(tuple(range(1, len(ratio))), tuple(ratio[1:])).stages(None)
    where = layout([(1, n)] * len(rows), columns=torch.stack(columns))
    stage = next(stage for stage in stages if stage.layer == layer)
    (need,) = stage.pruner.needs
    assert need == Rows("last", (layer,), tower="llm", heads="mean")
    pruned = stage.pruner(Evidence(torch.zeros(len(rows), n, 1), where, {need: torch.stack(rows)[None, :, None]}))
    for b, start in enumerate(params["image_start"]):
        length = params["prompt_len_without_placeholder"][b] + n
        text = [i for i in range(length) if not start <= i < start + n]
        kept = tensors["kept_indices"][b]
        assert sorted(text + pruned.column[b].tolist()) == kept[kept >= 0].tolist()
        positions = tensors["new_position_ids"][b][: int((kept >= 0).sum())]
        assert positions.tolist() == list(range(len(positions)))  # "compact"


@recorded("zipcache", "saliency")
def test_salience_of_zipcache_with_its_own_probes_and_divisor(path):
    tensors, params = read(path)
    query, key, length = tensors["q"], tensors["k"], params["S"]
    call = Call(query[None], key[None], None, query.shape[-1] ** -0.5, True, None)
    total, seen = probed.attended(call, tensors["probe_ids"])
    later = length - torch.arange(length)  # all queries that see a token, probes or not
    salience = (total[0] / later).unflatten(0, (-1, params["groups"])).sum(1)
    torch.testing.assert_close(salience, tensors["saliency"], atol=2e-6, rtol=2e-5)
    low = salience.argsort(dim=1, stable=True)[:, : params["n_unimportant"]].sort(1).values
    assert torch.equal(low, tensors["unimportant_ids"].sort(1).values)
    assert seen[0, 0].tolist() == [int((tensors["probe_ids"] >= j).sum()) for j in range(length)]


@recorded("var", "sink_indices")
def test_sinks_are_those_recorded(path):
    tensors, params = read(path)
    dims, width = tensors["sink_dims"].tolist(), 4096
    own, square = tensors["hidden_sink_dims"].double(), tensors["hidden_mean_square"].double()
    rest = (square * width - own.square().sum(1)) / (width - len(dims))  # what the other channels must have held
    hidden = rest.sqrt()[:, None].repeat(1, width)
    hidden[:, dims] = own
    sinks = Sinkless(TextAttention(), tuple(dims), params["tau"]).sinks(hidden.float())
    assert sinks.nonzero()[:, 0].tolist() == sorted(tensors["sink_indices"].tolist())


def test_plans_say_the_method_and_not_its_steps():
    plan = planned(PyramidDrop().stages(Budget(ratio=0.125)), PyramidDrop())
    assert str(plan) == "PyramidDrop(layers=(8, 16, 24), ratios=(0.5, 0.25, 0.125), positions='original')"
