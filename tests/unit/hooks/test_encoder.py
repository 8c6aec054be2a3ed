"""Stages inside the encoder: their mechanism beside plain references, and their laws."""

from dataclasses import dataclass, replace

import pytest
import torch

from support.encoder_stages import BLOCKS, GREEDY, METHODS, OPENED, RANDOM, at, taken, within
from support.models import backbone
from vtcframe import (
    AttentionKeys,
    AttentionRows,
    Budget,
    ClassToken,
    ClsAttention,
    Even,
    HiddenStates,
    Mean,
    Pipeline,
    RandomPruner,
    Stage,
    TopK,
    VtcCls,
    compress,
)
from vtcframe.core.token_merging import EncoderEvidence
from vtcframe.errors import ComponentError
from vtcframe.methods.mctf import AttentionReceived
from vtcframe.methods.tome import ToMe
from vtcframe.ops.compose import compose_prunings
from vtcframe.testing import check_restored, make_inputs, samples_of
from vtcframe.testing.tiny_models.llava_families import SAMPLES


def by_hand(model, pixels, stages, size=False):
    """[V, 1 + N, C] after the last feeding block with dropped tokens masked, and the tokens that remain.

    `stages` is block -> [V, N] bool, what is alive from its MLP on. Plain products over the weights.
    """
    tower = model.base_model.vision_tower
    x = tower.pre_layrnorm(tower.embeddings(pixels))
    alive = torch.ones(x.shape[:2], dtype=torch.bool)
    for k, block in enumerate(tower.encoder.layers[:BLOCKS]):
        attention, normed = block.self_attn, block.layer_norm1(x)
        query, key, value = (
            layer(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        attention_weights = (query @ key.transpose(-1, -2) * attention.scale).exp() * alive[:, None, None]
        attention_weights = attention_weights / attention_weights.sum(-1, keepdim=True)
        x = x + attention.out_proj((attention_weights @ value).transpose(1, 2).flatten(2))
        if k in stages:
            alive = torch.cat([torch.ones(len(x), 1, dtype=torch.bool), stages[k]], 1)
        x = x + block.mlp(block.layer_norm2(x))
    return x, alive


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("sites", [[0], [1], [2], [0, 1], [0, 2], [0, 1, 2]])
@torch.no_grad()
def test_removed_equals_masked_out_of_attention_from_the_blocks_mlp_on(sites, attention):
    model, adapter, inputs = taken("llava", attention=attention)
    alive, stages = {}, []
    layout = adapter.arrange(inputs).layout
    for i, k in enumerate(sites):
        stages.append(Stage(f"encoder:{k}", RANDOM, Budget(12 - 4 * i)))
        # a hash of place and sample is nested over budgets: each stage keeps the best of what was left
        evidence = adapter.observe(inputs)
        alive[k] = RANDOM(evidence, stages[-1].budget).kept
    evidence, pruned = within(adapter, inputs, stages)
    assert torch.equal(pruned.kept, alive[sites[-1]])
    hidden, _ = by_hand(model, inputs["pixel_values"], alive)
    want = model.base_model.multi_modal_projector(hidden[:, 1:])
    kept = alive[sites[-1]]
    got = pruned.tokens[pruned.place >= 0]
    assert (got - want[kept]).abs().max() <= 1e-5
    whole = adapter.observe(inputs).tokens
    if sites != [BLOCKS - 1]:  # there those that stay have read all already
        assert (got - whole[kept]).abs().max() > 1e-3
    assert evidence.layout.untouched.tolist() == layout.untouched.tolist()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", OPENED)
def test_a_stage_that_keeps_all_changes_no_bit(family, attention):
    for name in samples_of(family):
        if name == "image and video":
            continue
        _, adapter, inputs = taken(family, name, attention)
        keep = [Stage(f"encoder:{k}", RANDOM, Budget(ratio=1.0)) for k in range(BLOCKS)]
        want = adapter.observe(inputs, VtcCls(2).needs)
        evidence, pruned = within(adapter, inputs, keep, VtcCls(2).needs)
        assert torch.equal(evidence.tokens, want.tokens)
        assert torch.equal(pruned.tokens, want.tokens)
        assert torch.equal(evidence[VtcCls(2).needs[0]], want[VtcCls(2).needs[0]])
        for field in ("column", "grid", "centre", "sample", "image", "frame", "box"):
            assert torch.equal(getattr(evidence.layout, field), getattr(want.layout, field))
        if want.structural is not None:
            assert torch.equal(evidence.structural.tokens, want.structural.tokens)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_methods_that_merge_nothing_change_no_bit(method):
    _, adapter, inputs = taken("llava")
    steps = [replace(stage, budget=Budget(ratio=1.0)) for stage in method.stages(Budget(ratio=1.0))]
    assert torch.equal(within(adapter, inputs, steps)[1].tokens, adapter.observe(inputs).tokens)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["ragged several", "videos"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_sample_has_the_same_answer_alone_and_in_a_batch(method, name, attention):
    family = "video_llava" if "video" in name else "llava"
    model, processor = backbone(family, attention)
    compressed = compress(model, method, ratio=0.4)
    samples = SAMPLES[name]
    inputs = make_inputs(processor, samples)
    together = compressed.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    pruned, arranged = compressed.last.pruned, compressed.last.layout
    assert compressed.last.tokens_after.tolist() == Budget(ratio=0.4).total(arranged).tolist()
    for p, sample in enumerate(samples):
        if not sample[1]:
            continue
        single = make_inputs(processor, [sample])
        alone = compressed.generate(**single, **GREEDY)[:, single["input_ids"].shape[1] :]
        assert torch.equal(alone[0], together[p])
        (tokens, column), (tokens_alone, column_alone) = pruned.sequence(p), compressed.last.pruned.sequence(0)
        assert torch.equal(column, column_alone)
        assert (tokens - tokens_alone).abs().max() <= 1e-5


@pytest.mark.parametrize("family", OPENED)
@pytest.mark.parametrize("method", [*METHODS, RandomPruner()], ids=lambda method: type(method).__name__)
def test_the_model_is_restored_also_after_an_exception(method, family):
    model, processor = backbone(family)
    inputs = make_inputs(processor, SAMPLES["one"])
    compressed = compress(model, stages=[*(method.stages(Budget(4)) if method in METHODS else at("encoder:1"))])
    want = model.generate(**inputs, **GREEDY)
    with check_restored(model):
        compressed.generate(**inputs, **GREEDY)

        @dataclass(frozen=True)
        class Failing(RandomPruner):
            def __call__(self, evidence, budget=None):
                raise RuntimeError("on purpose")

        with pytest.raises(ComponentError, match="on purpose"):
            compress(model, stages=at("encoder:1", pruner=Failing())).generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY), want)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_beams_answer_as_by_splicing(options):
    model, processor = backbone("llava")
    inputs = make_inputs(processor, SAMPLES["ragged several"])
    compressed = compress(model, ToMe(blocks=(0, 1)), ratio=0.5)
    out = compressed.generate(**inputs, **GREEDY, **options)
    plan = compressed.plan
    evidence, pruned = within(compressed.adapter, inputs, plan.encoder)
    spliced = compressed.adapter.splice(inputs, evidence, pruned)
    width, times = spliced["input_ids"].shape[1], len(out) // len(inputs["input_ids"])
    want = model.generate(**spliced, **GREEDY, **options)[:, width:]
    assert torch.equal(out[:, inputs["input_ids"].shape[1] :], want)
    assert torch.equal(out[:, : inputs["input_ids"].shape[1]], inputs["input_ids"].repeat_interleave(times, 0))


def test_evidence_of_a_stage_is_that_of_its_own_block():
    _, adapter, inputs = taken("llava")
    needs = (
        AttentionRows("cls", (-1,)),
        AttentionRows("cls", (1,), blocks="tower"),
        AttentionRows("cls", (-2, -1)),
        AttentionKeys((-1,)),
        HiddenStates(),
    )
    stage_evidence = []

    @dataclass(frozen=True)
    class Look(RandomPruner):
        @property
        def needs(self):
            return (*needs, ClassToken(), AttentionReceived())

        def __call__(self, evidence, budget=None):
            stage_evidence.append(evidence)
            return super().__call__(evidence, budget)

    within(adapter, inputs, at("encoder:1", pruner=Look()))
    whole = adapter.observe(
        inputs, [AttentionRows("cls", (0, 1)), AttentionKeys((1,)), AttentionRows("received", (1,), heads="mean")]
    )
    (evidence,) = stage_evidence
    rows = whole[AttentionRows("cls", (0, 1))]
    for need, want in zip(needs, (rows[1:], rows[1:], rows, whole[AttentionKeys((1,))]), strict=False):
        assert torch.allclose(evidence[need], want, atol=1e-6)
    n = rows.shape[-1]
    received = whole[AttentionRows("received", (1,), heads="mean")][0, :, 0] * n + rows[1].mean(1)
    assert torch.allclose(evidence[AttentionReceived()][0, :, 0], received / (n + 1), atol=1e-6)
    assert torch.equal(evidence[HiddenStates()], evidence.tokens)
    assert evidence[ClassToken()].shape == evidence.tokens[:, 0].shape
    assert isinstance(evidence, EncoderEvidence)
    assert evidence.classes == 1


def test_later_evidence_is_of_the_remaining_tokens_for_any_block():
    _, adapter, inputs = taken("llava")
    needs = (
        AttentionRows("cls", (0, 1, 2)),
        AttentionKeys((0,)),
        HiddenStates(),
        ClassToken(),
        AttentionRows("cls", (-1,), blocks="tower"),
    )
    evidence, pruned = within(adapter, inputs, at("encoder:1"), needs)
    whole = adapter.observe(inputs, needs)
    index = pruned.place.clamp(min=0)
    real = pruned.place >= 0

    rows = whole[needs[0]].gather(-1, index[None, :, None].expand(3, -1, whole[needs[0]].shape[2], -1))
    got = evidence[needs[0]]
    mask = real[:, None].expand(got.shape[1:])
    for block in (0, 1):  # seen before anything left: the same numbers
        assert torch.allclose(got[block][mask], rows[block][mask], atol=1e-6)
    assert not torch.allclose(got[2][mask], rows[2][mask], atol=1e-4)  # attention to the remaining tokens only
    assert (got[2].sum(-1) <= 1).all()
    assert (evidence[needs[4]].shape[0], evidence[needs[3]].shape[0]) == (1, len(index))
    assert evidence[HiddenStates()].shape[1] == evidence.tokens.shape[1]
    assert torch.allclose(adapter.project(evidence[HiddenStates()])[real], evidence.tokens[real], atol=1e-5)


@pytest.mark.parametrize("across", ["view", "sample"])
def test_stages_compose_and_a_stage_at_the_projector_gets_the_remaining_tokens(across):
    model, adapter, inputs = taken("llava")
    last = Pipeline((ClsAttention(1),), Mean(), Even(), TopK(), across=across)
    stages = [*at("encoder:0", tokens=20), *at("encoder:2", tokens=12), Stage("projector", last, Budget(5))]
    compressed = compress(model, stages=stages)
    compressed.generate(**inputs, **GREEDY)
    result = compressed.last
    assert (result.tokens_before.tolist(), result.tokens_after.tolist()) == ([32, 16, 0], [5, 5, 0])
    evidence, pruned = within(adapter, inputs, stages[:2], last.needs)
    assert pruned.total.tolist() == [12, 12, 0]
    then = last(evidence, Budget(5))
    for p in (0, 1):
        tokens, column = then.sequence(p)
        assert torch.equal(column, result.pruned.sequence(p)[1])
        assert torch.equal(tokens, result.pruned.sequence(p)[0])
        assert set(column.tolist()) <= set(pruned.sequence(p)[1].tolist())
    assert result.kept.sum() == 10
    assert result.kept.shape == ((3, 16) if across == "view" else (3, 32))
    assert torch.equal(compose_prunings(pruned, then).kept, result.kept)
    scores = result.scores[result.kept].flatten()  # of those judged last: their attention, no random number
    want = torch.cat([then.scores[then.kept]])
    assert torch.equal(scores.sort().values, want.sort().values)
    assert (result.scores[0] > -torch.inf).sum() == (16 if across == "view" else 32)


def test_positions_are_those_of_the_last_stage():
    model, adapter, inputs = taken("llava")
    answers = []
    for positions in ("original", "compact"):
        stage = replace(at("encoder:1")[0], positions=positions)
        answers.append(compress(model, stages=[stage]).generate(**inputs, **GREEDY))
    assert not torch.equal(*answers)
    evidence, pruned = within(adapter, inputs, at("encoder:1"))
    spliced = adapter.splice(inputs, evidence, pruned)
    assert torch.equal(model.generate(**spliced, **GREEDY)[:, spliced["input_ids"].shape[1] :], answers[0][:, -5:])


def test_a_budget_that_covers_everything_calls_the_model_untouched(monkeypatch):
    model, _, inputs = taken("llava")
    compressed = compress(model, ToMe(blocks=(0, 1)), ratio=1.0)
    monkeypatch.setattr(compressed.adapter, "encode_with_stages", lambda *_: pytest.fail("the encoder was pruned"))
    assert torch.equal(compressed.generate(**inputs, **GREEDY), model.generate(**inputs, **GREEDY))
    assert compressed.last.tokens_after.tolist() == compressed.last.tokens_before.tolist()
