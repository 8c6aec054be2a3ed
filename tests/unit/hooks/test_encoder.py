"""Stages inside the encoder: their mechanism beside plain twins, the laws, and the methods that act there."""

import math
import random
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import timm
import torch
from test_encoders import MODELS, averaged, clip, pictures, timm_vit, untouched
from transformers import SiglipVisionConfig

from conftest import SERVED, backbone
from vtcframe import (
    Budget,
    ClassToken,
    ClsAttention,
    Even,
    Features,
    Keys,
    Mean,
    Pipeline,
    RandomPruner,
    Rows,
    Stage,
    TopK,
    VtcCls,
    adapter_for,
    compress,
)
from vtcframe.backbone import Backbone
from vtcframe.config import bundled
from vtcframe.data import read_samples
from vtcframe.encoder_stage import Attended, Midway, fused, merge, sizes
from vtcframe.faults import ComponentError
from vtcframe.mergers import Fuse
from vtcframe.methods.encoder import DiffRate, DiffRateStep, EVit, KeepRate, Mctf, MctfStep, ToMe, ToMeStep
from vtcframe.pipeline import Plan, planned
from vtcframe.predict import Comparison, Predictor
from vtcframe.remains import composed
from vtcframe.scorers import Random
from vtcframe.testing import check_pruner, check_restored, emulated_flash, make_evidence, make_inputs, samples_of
from vtcframe.testing.backbones import SAMPLES, VISION, randomised, tiny_llava
from vtcframe_backbones.encoders import OpenClip, Timm, extract

QUESTIONS = Path(bundled("vtcframe:questions"))
GREEDY = {"do_sample": False, "max_new_tokens": 5}
OPENED = ("llava", "video_llava")
BLOCKS = 3  # of four feed
METHODS = (EVit((0, 1, 2)), ToMe(blocks=(0, 1, 2)), Mctf(blocks=(0, 1, 2)), DiffRate(blocks=(0, 2)))
RANDOM = Pipeline((Random(3),), Mean(), Even(), TopK())


def at(*sites, pruner=RANDOM, tokens=6):
    return [Stage(site, pruner, Budget(tokens)) for site in sites]


def within(adapter, inputs, stages, needs=(), ids=()):
    return adapter.within(inputs, adapter.arrange(inputs, ids), needs, tuple(stages))


# The mechanism, on transformers' towers


def taken(family, name="ragged several", attention="sdpa"):
    model, processor = backbone(family, attention)
    return model, adapter_for(model), make_inputs(processor, SAMPLES[name])


def by_hand(model, pixels, stages, size=False):
    """[V, 1 + N, C] behind the last feeding block with dropped tokens masked, and what is alive.

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
        paid = (query @ key.transpose(-1, -2) * attention.scale).exp() * alive[:, None, None]
        paid = paid / paid.sum(-1, keepdim=True)
        x = x + attention.out_proj((paid @ value).transpose(1, 2).flatten(2))
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
    evidence, left = within(adapter, inputs, stages)
    assert torch.equal(left.kept, alive[sites[-1]])
    hidden, _ = by_hand(model, inputs["pixel_values"], alive)
    want = model.base_model.multi_modal_projector(hidden[:, 1:])
    kept = alive[sites[-1]]
    got = left.tokens[left.place >= 0]
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
        evidence, left = within(adapter, inputs, keep, VtcCls(2).needs)
        assert torch.equal(evidence.tokens, want.tokens)
        assert torch.equal(left.tokens, want.tokens)
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
def test_a_sample_is_answered_alike_alone_and_in_a_batch(method, name, attention):
    family = "video_llava" if "video" in name else "llava"
    model, processor = backbone(family, attention)
    compressed = compress(model, method, ratio=0.4)
    samples = SAMPLES[name]
    inputs = make_inputs(processor, samples)
    together = compressed.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    left, arranged = compressed.last.pruned, compressed.last.layout
    assert compressed.last.after.tolist() == Budget(ratio=0.4).total(arranged).tolist()
    for p, sample in enumerate(samples):
        if not sample[1]:
            continue
        single = make_inputs(processor, [sample])
        alone = compressed.generate(**single, **GREEDY)[:, single["input_ids"].shape[1] :]
        assert torch.equal(alone[0], together[p])
        (tokens, column), (own_tokens, own) = left.sequence(p), compressed.last.pruned.sequence(0)
        assert torch.equal(column, own)
        assert (tokens - own_tokens).abs().max() <= 1e-5


@pytest.mark.parametrize("family", OPENED)
@pytest.mark.parametrize("method", [*METHODS, RandomPruner()], ids=lambda method: type(method).__name__)
def test_nothing_is_left_behind_also_after_an_exception(method, family):
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
    evidence, left = within(compressed.adapter, inputs, plan.encoder)
    spliced = compressed.adapter.splice(inputs, evidence, left)
    width, times = spliced["input_ids"].shape[1], len(out) // len(inputs["input_ids"])
    want = model.generate(**spliced, **GREEDY, **options)[:, width:]
    assert torch.equal(out[:, inputs["input_ids"].shape[1] :], want)
    assert torch.equal(out[:, : inputs["input_ids"].shape[1]], inputs["input_ids"].repeat_interleave(times, 0))


def test_evidence_of_a_stage_is_that_of_its_own_block():
    _, adapter, inputs = taken("llava")
    needs = (Rows("cls", (-1,)), Rows("cls", (1,), of="tower"), Rows("cls", (-2, -1)), Keys((-1,)), Features())
    seen = []

    @dataclass(frozen=True)
    class Look(RandomPruner):
        @property
        def needs(self):
            return (*needs, ClassToken(), Attended())

        def __call__(self, evidence, budget=None):
            seen.append(evidence)
            return super().__call__(evidence, budget)

    within(adapter, inputs, at("encoder:1", pruner=Look()))
    whole = adapter.observe(inputs, [Rows("cls", (0, 1)), Keys((1,)), Rows("received", (1,), heads="mean")])
    (evidence,) = seen
    rows = whole[Rows("cls", (0, 1))]
    for need, want in zip(needs, (rows[1:], rows[1:], rows, whole[Keys((1,))]), strict=False):
        assert torch.allclose(evidence[need], want, atol=1e-6)
    n = rows.shape[-1]
    asked = whole[Rows("received", (1,), heads="mean")][0, :, 0] * n + rows[1].mean(1)
    assert torch.allclose(evidence[Attended()], asked / (n + 1), atol=1e-6)
    assert torch.equal(evidence[Features()], evidence.tokens)
    assert evidence[ClassToken()].shape == evidence.tokens[:, 0].shape
    assert isinstance(evidence, Midway)
    assert evidence.classes == 1


def test_later_evidence_is_of_what_is_left_whichever_block_showed_it():
    _, adapter, inputs = taken("llava")
    needs = (Rows("cls", (0, 1, 2)), Keys((0,)), Features(), ClassToken(), Rows("cls", (-1,), of="tower"))
    evidence, left = within(adapter, inputs, at("encoder:1"), needs)
    whole = adapter.observe(inputs, needs)
    index = left.place.clamp(min=0)
    real = left.place >= 0

    rows = whole[needs[0]].gather(-1, index[None, :, None].expand(3, -1, whole[needs[0]].shape[2], -1))
    got = evidence[needs[0]]
    mask = real[:, None].expand(got.shape[1:])
    for block in (0, 1):  # seen before anything left: the same numbers
        assert torch.allclose(got[block][mask], rows[block][mask], atol=1e-6)
    assert not torch.allclose(got[2][mask], rows[2][mask], atol=1e-4)  # paid to what is left alone
    assert (got[2].sum(-1) <= 1).all()
    assert (evidence[needs[4]].shape[0], evidence[needs[3]].shape[0]) == (1, len(index))
    assert evidence[Features()].shape[1] == evidence.tokens.shape[1]
    assert torch.allclose(adapter.project(evidence[Features()])[real], evidence.tokens[real], atol=1e-5)


@pytest.mark.parametrize("across", ["view", "sample"])
def test_stages_compose_and_one_at_the_projector_works_on_what_is_left(across):
    model, adapter, inputs = taken("llava")
    last = Pipeline((ClsAttention(1),), Mean(), Even(), TopK(), across=across)
    stages = [*at("encoder:0", tokens=20), *at("encoder:2", tokens=12), Stage("projector", last, Budget(5))]
    compressed = compress(model, stages=stages)
    compressed.generate(**inputs, **GREEDY)
    result = compressed.last
    assert (result.before.tolist(), result.after.tolist()) == ([32, 16, 0], [5, 5, 0])
    evidence, left = within(adapter, inputs, stages[:2], last.needs)
    assert left.total.tolist() == [12, 12, 0]
    then = last(evidence, Budget(5))
    for p in (0, 1):
        tokens, column = then.sequence(p)
        assert torch.equal(column, result.pruned.sequence(p)[1])
        assert torch.equal(tokens, result.pruned.sequence(p)[0])
        assert set(column.tolist()) <= set(left.sequence(p)[1].tolist())
    assert result.kept.sum() == 10
    assert result.kept.shape == ((3, 16) if across == "view" else (3, 32))
    assert torch.equal(composed(left, then).kept, result.kept)
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
    evidence, left = within(adapter, inputs, at("encoder:1"))
    spliced = adapter.splice(inputs, evidence, left)
    assert torch.equal(model.generate(**spliced, **GREEDY)[:, spliced["input_ids"].shape[1] :], answers[0][:, -5:])


def test_a_budget_that_covers_everything_calls_the_model_untouched(monkeypatch):
    model, _, inputs = taken("llava")
    compressed = compress(model, ToMe(blocks=(0, 1)), ratio=1.0)
    monkeypatch.setattr(compressed.adapter, "within", lambda *_: pytest.fail("the encoder was pruned"))
    assert torch.equal(compressed.generate(**inputs, **GREEDY), model.generate(**inputs, **GREEDY))
    assert compressed.last.after.tolist() == compressed.last.before.tolist()


def test_images_and_videos_of_one_batch_have_a_tower_each():
    model, processor = backbone("video_llava")
    (image,), (video,) = SAMPLES["one"], SAMPLES["video"]
    inputs = make_inputs(processor, [video, image])
    compressed = compress(model, EVit((0, 1)), tokens=6)
    both = compressed.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    assert compressed.last.after.tolist() == [6, 6]
    assert compressed.last.structural_after.tolist() == [4, 0]
    for p, sample in enumerate((video, image)):
        single = make_inputs(processor, [sample])
        assert torch.equal(compressed.generate(**single, **GREEDY)[0, single["input_ids"].shape[1] :], both[p])
    inputs = make_inputs(processor, [video, image])  # images are encoded first
    adapter = adapter_for(model)
    left = within(adapter, inputs, at("encoder:0"))[1]
    assert torch.equal(left.scores, RANDOM(adapter.observe(inputs), Budget(6)).scores)
    inputs = make_inputs(processor, SAMPLES["image and video"])
    with pytest.raises(ValueError, match=r"samples \[0\] have images and videos"):
        compressed.generate(**inputs, **GREEDY)


@pytest.mark.parametrize("family", [family for family in SERVED if family not in OPENED])
def test_models_whose_packing_needs_the_whole_grid_refuse_before_anything_runs(family):
    model, _ = backbone(family)
    for stages in (at("encoder:0"), [*at("encoder:0"), *at("projector")]):
        with pytest.raises(ValueError, match=r"cannot be pruned at encoder:0: .*grid.*Use stages at 'projector'"):
            compress(model, stages=stages)


def test_what_cannot_be_done_is_refused_before_anything_runs(monkeypatch):
    model, adapter, inputs = taken("llava")
    monkeypatch.setattr(type(adapter), "features", lambda *_: pytest.fail("the model was run"))
    for stages, says in (
        (at("encoder:3"), "encoder:3 is none of the 3 blocks that make what is read, 0 to 2"),
        (ToMe(16).stages(Budget(4)), "encoder:3 is none of the 3 blocks"),
        ([Stage("encoder:0", VtcCls(2), Budget(4))], r"beyond the 1 that are run"),
        ([Stage("encoder:0", VtcCls(1, "head"), Budget(4))], "no attention-pooling head"),
    ):
        with pytest.raises(ValueError, match=says):
            compress(model, stages=stages).generate(**inputs, **GREEDY)
    with pytest.raises(ValueError, match=r"Attended\(\)"):
        adapter.observe(inputs, [Attended()])
    with pytest.raises(ValueError, match="several lengths"):
        compress(model, stages=at("encoder:0")).generate(**inputs, **GREEDY, vision_feature_layer=[-2, -3])


def test_a_pruner_that_joins_views_is_none_of_an_encoder():
    model, _, inputs = taken("llava", "several")
    compressed = compress(model, stages=at("encoder:0", pruner=replace(RANDOM, across="sample")))
    with pytest.raises(ValueError, match=r"joins a sample's views.*across='view'"):
        compressed.generate(**inputs, **GREEDY)


@pytest.mark.parametrize(
    ("sites", "says"),
    [
        (["encoder:1", "encoder:0"], "in the order in which they act"),
        (["encoder:1", "encoder:1"], "one a block"),
        (["projector", "encoder:1"], "in the order in which they act"),
        (["projector", "projector"], "once at 'projector'"),
        (["encoder:0", "cache"], "act at encoder:0, cache: this version"),
        ([], "act at nowhere"),
    ],
)
def test_plans_that_cannot_be_run_are_refused(sites, says):
    with pytest.raises(ValueError, match=says):
        planned(at(*sites))


def test_a_plan_is_named_after_its_method_or_its_pruners():
    method = ToMe(blocks=(0, 1))
    plan = planned(method.stages(Budget(4)), method)
    assert (str(plan), plan.budget, plan.needs) == (str(method), Budget(4), ())
    assert str(planned([*at("encoder:1"), Stage("projector", VtcCls(2), Budget(3))])) == f"{RANDOM} + VtcCls(last=2)"
    assert isinstance(plan, Plan)
    assert str(ToMe()) == "ToMe(r=16, inflect=0.0, blocks=0-22)".replace("r=16, ", "r=16, ")
    assert str(EVit()) == "EVit(blocks=(3, 6, 9), keep=0.7, fuse=True, query=cls)"


@pytest.fixture(scope="module")
def siglip():
    """A LLaVA on a tower without a class token."""
    model, processor = tiny_llava()
    config = deepcopy(model.config)
    config.vision_config = SiglipVisionConfig(**VISION, image_size=56, patch_size=14, vision_use_head=False)
    config.vision_feature_select_strategy = processor.vision_feature_select_strategy = "full"
    processor.num_additional_image_tokens = 0
    return randomised(type(model)._from_config(config, attn_implementation="sdpa"), 0), processor


@pytest.mark.parametrize("method", [EVit((0, 1), query="received"), DiffRate(blocks=(0, 1), query="received")])
def test_a_picture_may_lose_all_its_tokens_also_without_a_class_token(siglip, method):
    model, processor = siglip
    inputs = make_inputs(processor, SAMPLES["ragged several"])
    compressed = compress(model, method, tokens=1)  # for two pictures
    out = compressed.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    assert compressed.last.after.tolist() == [1, 1, 0]
    assert compressed.last.kept.sum(1).tolist() == [1, 0, 1]
    assert compressed.last.pruned.tokens[compressed.last.pruned.place >= 0].isfinite().all()
    for p, sample in enumerate(SAMPLES["ragged several"][:2]):
        single = make_inputs(processor, [sample])
        assert torch.equal(compressed.generate(**single, **GREEDY)[0, single["input_ids"].shape[1] :], out[p])


def test_flash_attention_gets_padding_but_no_sizes():
    model, processor = backbone("llava")
    inputs = make_inputs(processor, SAMPLES["ragged several"])
    want = compress(model, EVit((0, 2), fuse=False), tokens=5).generate(**inputs, **GREEDY)
    with emulated_flash(model):
        assert torch.equal(compress(model, EVit((0, 2), fuse=False), tokens=5).generate(**inputs, **GREEDY), want)
        with pytest.raises(ValueError, match="FlashAttention cannot add"):
            compress(model, ToMe(blocks=(0, 1)), ratio=0.5).generate(**inputs, **GREEDY)


# timm and open_clip


def two_halves(model, x, i, alive):
    """Run a block of timm or open_clip by plain products, keys that are not alive left out; before and behind MLP."""
    visual = getattr(model, "visual", None)
    if visual is not None and not hasattr(visual, "trunk"):
        block = visual.transformer.resblocks[i]
        attention, normed = block.attn, block.ln_1(x)
        qkv = normed @ attention.in_proj_weight.T + attention.in_proj_bias
        heads, out, rest = attention.num_heads, attention.out_proj, lambda y: y + block.mlp(block.ln_2(y))
    else:
        block = (visual.trunk if visual is not None else model).blocks[i]
        attention = block.attn
        qkv = attention.qkv(block.norm1(x))
        heads, out, rest = attention.num_heads, attention.proj, lambda y: y + block.mlp(block.norm2(y))
    query, key, value = qkv.unflatten(-1, (3, heads, -1)).movedim(2, 0).transpose(2, 3)
    paid = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).exp() * alive[:, None, None]
    return x + out((paid / paid.sum(-1, keepdim=True) @ value).transpose(1, 2).flatten(2)), rest


TOKEN = [
    at
    for at in MODELS
    if at in (("timm", "class token and registers"), ("timm", "average"), ("open_clip", "tok"), ("open_clip", "avg"))
]


@pytest.mark.parametrize(("library", "name"), TOKEN, ids=str)
@pytest.mark.parametrize("sites", [[0], [1, 3], [3]])
@torch.no_grad()
def test_features_equal_those_with_dropped_patches_masked(library, name, sites):
    model, kind = (timm_vit(name), Timm) if library == "timm" else (clip(name), OpenClip)
    pixels = pictures()
    adapter = kind(model, rest=None)
    inputs = {"pixel_values": pixels}
    stages = [Stage(f"encoder:{k}", RANDOM, Budget(9 - 4 * i)) for i, k in enumerate(sites)]
    evidence, left = within(adapter, inputs, stages, ids=[0, 1, 2])
    got = adapter.features(evidence, left)
    prefix = adapter.vit.prefix
    x = adapter.vit.begin(pixels, 1, 1)
    whole = adapter.arrange(inputs, [0, 1, 2]).evidence(torch.zeros(len(pixels) * (16 + prefix), 1), {})
    kept = {k: RANDOM(whole, stage.budget).kept for k, stage in zip(sites, stages, strict=True)}
    visual = getattr(model, "visual", None)
    x = visual._embeds(pixels) if visual is not None else model.norm_pre(model._pos_embed(model.patch_embed(pixels)))
    alive = torch.ones(x.shape[:2], dtype=torch.bool)
    for i in range(4):
        x, rest = two_halves(model, x, i, alive)
        if i in kept:
            alive = torch.cat([alive[:, :prefix], kept[i]], 1)
        x = rest(x)
    last = kept[sites[-1]]
    if visual is not None:
        normed = visual.ln_post(x)
        want = (normed[:, 0] if visual.pool_type == "tok" else averaged(normed[:, 1:], last)) @ visual.proj
    else:
        x = model.norm(x)
        x = x[:, 0] if model.global_pool == "token" else averaged(x[:, prefix:], last)
        want = model.head(model.fc_norm(x))
    scale = max(1, float(want.abs().max()))
    assert (got - want).abs().max() <= 1e-5 * scale
    if sites != [3] or prefix == 0 or name == "avg":  # [CLS] has read all by then
        assert (got - untouched(model, pixels)).abs().max() > 1e-3
    assert torch.equal(left.kept, last)


@pytest.mark.parametrize(("library", "name"), [at for at in MODELS if at[1] != "custom blocks"], ids=str)
@pytest.mark.parametrize("method", [ToMe(blocks=(0, 2)), Mctf(blocks=(1, 3)), DiffRate(blocks=(0, 1), query="proxy")])
def test_extract_prunes_inside_and_a_picture_is_alike_alone(library, name, method):
    model = timm_vit(name) if library == "timm" else clip(name)
    pixels, want = pictures(), None
    with check_restored(model):
        got = extract(model, pixels, method, tokens=6)
    for p in range(3):
        alone = extract(model, pixels[p : p + 1], method, tokens=6)[0]
        assert (alone - got[p]).abs().max() <= 1e-4 * max(1, float(got.abs().max()))
    assert (got - untouched(model, pixels)).abs().max() > 1e-3
    want = untouched(model, pixels)
    assert torch.equal(extract(model, pixels, method, ratio=1.0), want)


def test_sizes_go_on_behind_the_stage_before_the_last_blocks():
    model, pixels = timm_vit(), pictures()
    adapter = Timm(model, rest=1)
    stages = ToMe(blocks=(0, 2)).stages(Budget(6))
    evidence, left = within(adapter, {"pixel_values": pixels}, stages)
    whole = Timm(model, rest=None)
    every = whole.features(*within(whole, {"pixel_values": pixels}, stages))
    assert (adapter.features(evidence, left) - every).abs().max() <= 1e-5 * float(every.abs().max())
    without = adapter.features(replace(evidence, size=None), left)
    assert (without - every).abs().max() > 1e-4


def test_encoders_that_have_nothing_between_attention_and_mlp_are_refused():
    model = timm_vit(block_fn=timm.models.vision_transformer.ParallelScalingBlock)
    with pytest.raises(ValueError, match="ParallelScalingBlock cannot be pruned inside"):
        extract(model, pictures(1), ToMe(blocks=(0,)), tokens=9)
    with pytest.raises(ValueError, match="when='before'"):
        extract(clip("custom blocks"), pictures(1), Mctf(blocks=(0,)), tokens=9)
    assert extract(clip("custom blocks"), pictures(1), Mctf(blocks=(0,), when="before"), tokens=9).isfinite().all()
    with pytest.raises(ValueError, match="encoder:3 is none of the 3 blocks"):
        within(Timm(timm_vit()), {"pixel_values": pictures(1)}, at("encoder:3"))


# Whole towers with sizes, by hand


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_proportional_attention_counts_a_token_as_often_as_it_is_large(attention):
    """A twin in which merged tokens stand as often as patches went into them, with no sizes at all."""
    model, adapter, inputs = taken("llava", "one", attention)
    method = ToMe(3, blocks=(0, 1))
    _, left = within(adapter, inputs, method.stages(None))
    tower = model.base_model.vision_tower
    x = tower.pre_layrnorm(tower.embeddings(inputs["pixel_values"]))[0]
    patches = [x[1 + i] for i in range(16)]
    heads, cls, places = tower.config.num_attention_heads, x[0], list(range(16))
    rows = [[i] for i in range(16)]  # members of each token, in the order in which the encoder has them
    for k, block in enumerate(tower.encoder.layers[:BLOCKS]):
        repeated = torch.stack([cls, *(patches[i] for i, row in enumerate(rows) for _ in row)])
        attention_ = block.self_attn
        normed = block.layer_norm1(repeated)
        query, key, value = (
            layer(normed).unflatten(-1, (heads, -1)).transpose(0, 1)
            for layer in (attention_.q_proj, attention_.k_proj, attention_.v_proj)
        )
        out = (query @ key.transpose(-1, -2) * attention_.scale).softmax(-1) @ value
        behind = repeated + attention_.out_proj(out.transpose(0, 1).flatten(1))
        first = [1 + sum(len(row) for row in rows[:i]) for i in range(len(rows))]
        cls, patches = behind[0], [behind[i] for i in first]
        if k < 2:
            metric = key.mean(0)
            order, leader = tome_by_hand([metric[i].tolist() for i in first], 3, 1)
            merged = [[i for i in range(len(rows)) if leader[i] == lead] for lead in order]
            patches = [
                sum(len(rows[i]) * patches[i] for i in group) / sum(len(rows[i]) for i in group) for group in merged
            ]
            rows = [[m for i in group for m in rows[i]] for group in merged]
            places = [places[lead] for lead in order]
        cls, *patches = (y + block.mlp(block.layer_norm2(y)) for y in (cls, *patches))
    assert max(len(row) for row in rows) > 1
    want = model.base_model.multi_modal_projector(torch.stack(patches))
    raster = torch.tensor(places).argsort()  # what the language model reads; in the encoder the order is another
    assert raster.tolist() != list(range(10))
    assert left.place[0].tolist() == sorted(places)
    assert (left.tokens[0] - want[raster]).abs().max() <= 1e-4


# Steps beside twins, on ragged views with poison at padding

GRIDS = {1: [(1, 7), (2, 6)], 2: [(1, 1)], 3: [(3, 5), (1, 2)]}


def drawn(needs, seed, levels=0, classes=0):
    """Evidence of ragged views; with `levels` full of ties and duplicates. Sizes are whole numbers."""
    evidence = make_evidence(needs, GRIDS, channels=5)
    generator = torch.Generator().manual_seed(seed)
    valid = evidence.layout.valid

    def draw(x, axes):
        fresh = torch.rand(x.shape, generator=generator) + 0.05
        if levels:
            fresh = (fresh * levels).ceil() / levels
        if levels and "C" in axes:  # of few directions, along axes: cosines are 0 or 1 without rounding
            one = torch.randint(
                levels, x.movedim(axes.index("H"), 0).shape[1:-1] if "H" in axes else x.shape[:-1], generator=generator
            )
            fresh = torch.nn.functional.one_hot(one, x.shape[-1]).float()
            fresh = fresh.unsqueeze(axes.index("H")).expand(x.shape) if "H" in axes else fresh
        real = valid if "N" in axes else torch.ones_like(valid[:, :1])
        at = axes.index("V"), axes.index("N")
        moved = torch.where(
            real.view(*real.shape, *[1] * (x.ndim - 2)), fresh.movedim(at, (0, 1)), x.movedim(at, (0, 1))
        )
        return moved.movedim((0, 1), at)

    found = {need: draw(evidence[need], need.axes) for need in needs}
    size = torch.randint(1, 4, valid.shape, generator=generator).float().masked_fill(~valid, 1)
    return Midway(draw(evidence.tokens, "VNC"), evidence.layout, found, size=size, classes=classes)


def cos(a, b):
    norm = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else 0.0


def best_of(pairs, i, others):
    """The first of the best partners, up to rounding."""
    top = max(pairs[i][j] for j in others)
    return next(j for j in others if pairs[i][j] >= top - 1e-6), top


def ranked(members, best):
    """Descending, of equals (up to rounding) the first."""
    rest, order = list(members), []
    while rest:
        top = max(best[i] for i in rest)
        order.append(next(i for i in rest if best[i] >= top - 1e-6))
        rest.remove(order[-1])
    return order


def tome_by_hand(keys, r, classes):
    """Which tokens lead, in their order, and the leader of each."""
    n = len(keys)
    even = [i for i in range(n) if (i + classes) % 2 == 0]
    odd = [i for i in range(n) if (i + classes) % 2]
    r = min(r, n // 2)
    if not r:
        return list(range(n)), list(range(n))
    pairs = {i: {j: cos(keys[i], keys[j]) for j in odd} for i in even}
    to, best = {}, {}
    for i in even:
        to[i], best[i] = best_of(pairs, i, odd)
    order = ranked(even, best)
    leader = [to[i] if i in order[:r] else i for i in range(n)]
    stay = sorted(order[r:]) if classes else order[r:]
    return stay + odd, leader


def mctf_by_hand(step, tokens, attended, size, classes):
    n = len(tokens)
    r = int(n * step.r) if step.r < 1 else min(int(step.r), max(0, n + classes - 10))
    r = min(r, n // 2)
    if not r:
        return list(range(n)), list(range(n))
    even = [i for i in range(n) if (i + classes) % 2 == 0]
    odd = [i for i in range(n) if (i + classes) % 2]
    inverse, small = [1 / a for a in attended], [1 / s for s in size]
    inverse, small = [x / max(inverse) for x in inverse], [x / max(small) for x in small]
    pairs = {i: {} for i in even}
    for i in even:
        for j in odd:
            score = 1.0
            for value, tau in zip(
                ((1 + cos(tokens[i], tokens[j])) / 2, inverse[i] * inverse[j], small[i] * small[j]),
                step.temperatures,
                strict=True,
            ):
                score *= value ** (1 / tau) if tau else 1
            pairs[i][j] = math.log(score)
    forth = r // 2 if step.two_way else r
    to, best = {}, {}
    for i in even:
        to[i], best[i] = best_of(pairs, i, odd)
    order = ranked(even, best)
    gone, stay = order[:forth], order[forth:]
    if classes:
        stay.sort()
    leader = [to[i] if i in gone else i for i in range(n)]
    if not step.two_way:
        return stay + odd, leader
    turned = {j: {i: pairs[i][j] for i in even} for j in odd}
    back, top = {}, {}
    for j in odd:
        back[j], top[j] = best_of(turned, j, sorted(stay))
    rest = ranked(odd, top)
    for j in rest[: r - forth]:
        leader = [back[j] if lead == j else lead for lead in leader]
    return stay + rest[r - forth :], leader


def equal_to_twin(merged, evidence, twin, weight, pooling="mean", gain=None):
    """`twin(v, n)` gives the leaders in order and the leader of each, None = gone."""
    weight = weight.tolist()
    for v in range(len(evidence.layout.sample)):
        n = int(evidence.layout.count[v])
        order, leader = twin(v, n)
        assert merged.place[v, : len(order)].tolist() == order, v
        assert (merged.place[v, len(order) :] == -1).all()
        for row, lead in enumerate(order):
            members = [i for i in range(n) if leader[i] == lead]
            total = sum(weight[v][i] for i in members)
            for c in range(evidence.tokens.shape[2]):
                values = [float(evidence.tokens[v, i, c]) for i in members]
                want = (
                    max(values)
                    if pooling == "max"
                    else sum(weight[v][i] * x for i, x in zip(members, values, strict=True)) / total
                )
                assert float(merged.tokens[v, row, c]) == pytest.approx(want, abs=1e-5)
            grown = sum(float(evidence.size[v, i]) if gain is None else gain(v, i, lead) for i in members)
            assert float(merged.size[v, row]) == pytest.approx(grown, abs=1e-4)
            assert all(int(merged.group[v, i]) == row for i in members)
        assert all(int(merged.group[v, i]) == -1 for i in range(n) if leader[i] is None)
        assert (merged.group[v, n:] == -1).all()


def lists(values, v, n):
    return values[v, :n].tolist()


@pytest.mark.parametrize("levels", [0, 1, 2])
@pytest.mark.parametrize("classes", [0, 1, 2])
@pytest.mark.parametrize("r", [0, 1, 3, 99])
def test_tome_equals_its_twin(r, classes, levels):
    step = ToMeStep(r)
    for seed in range(3):
        evidence = drawn(step.needs, seed, levels, classes)
        keys = evidence[step.needs[0]][0].mean(1)
        equal_to_twin(
            step(evidence), evidence, lambda v, n, k=keys: tome_by_hand(lists(k, v, n), r, classes), evidence.size
        )


@pytest.mark.parametrize("levels", [0, 1, 2])
@pytest.mark.parametrize("classes", [0, 1])
@pytest.mark.parametrize(
    "step",
    [
        MctfStep(0.35),
        MctfStep(0.5, temperatures=(2, 5, 10), pooling="size"),
        MctfStep(16, temperatures=(1, 0, 4), two_way=False, pooling="max"),
        MctfStep(3, temperatures=(0, 3, 2), pooling="mean"),
        MctfStep(0.45, two_way=False),
    ],
    ids=str,
)
def test_mctf_equals_its_twin(step, classes, levels):
    for seed in range(3):
        evidence = drawn(step.needs, seed, levels, classes)
        attended = evidence[step.needs[0]]

        def twin(v, n, evidence=evidence, attended=attended):
            parts = (lists(x, v, n) for x in (evidence.tokens, attended, evidence.size))
            return mctf_by_hand(step, *parts, classes)

        ones = torch.ones_like(attended)
        weight = {"attention": attended * evidence.size, "size": evidence.size}.get(step.pooling, ones)
        equal_to_twin(step(evidence), evidence, twin, weight, step.pooling)


@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.parametrize("classes", [0, 1])
@pytest.mark.parametrize(("prune", "keep"), [(99, 99), (6, 6), (99, 4), (8, 5), (3, 2), (4, 9)])
def test_diffrate_equals_its_twin(prune, keep, classes, levels):
    step = DiffRateStep(prune, keep)
    for seed in range(3):
        evidence = drawn(step.needs, seed, levels, classes)
        evidence = replace(evidence, tokens=evidence.tokens - 0.5 * evidence.layout.valid[..., None])
        scores = evidence[step.needs[0]][0].mean(1)

        def twin(v, n, evidence=evidence, scores=scores):
            tokens = lists(evidence.tokens, v, n)
            order = sorted(range(n), key=lambda i: (-float(scores[v, i]), i))
            kept = order[: min(prune - classes, keep - classes)]
            leader: list = [None] * n
            for i in order[: prune - classes]:
                near = [cos(tokens[i], tokens[k]) for k in kept]
                leader[i] = i if i in kept else kept[next(k for k, x in enumerate(near) if x >= max(near) - 1e-6)]
            return sorted(kept), leader

        def gain(v, i, lead, evidence=evidence):
            alike = 1 if i == lead else max(0, cos(evidence.tokens[v, i].tolist(), evidence.tokens[v, lead].tolist()))
            return alike * float(evidence.size[v, i])

        equal_to_twin(step(evidence), evidence, twin, torch.ones_like(scores), gain=gain)


def test_a_fused_map_is_summed_over_keys_and_averaged_over_queries():
    step = MctfStep(0.4, pooling="size")
    evidence = drawn(step.needs, 0, classes=1)
    merged = step(evidence)
    views, n = evidence.layout.column.shape
    paid = torch.rand(views, 2, 1 + n, 1 + n)
    got = fused(paid, merged, 1)
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
                    step = kind(left=left)
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
    assert torch.equal(sizes(evidence), torch.ones_like(weight))
    assert (merged.scores[~evidence.layout.valid] == -torch.inf).all()


# Options and runs


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: EVit(()), "blocks counts from 0"),
        (lambda: EVit((3, 1)), "ascends"),
        (lambda: ToMe(blocks=(-1,)), "counts from 0"),
        (lambda: EVit(keep=0), r"lie in \(0, 1\], got 0"),
        (lambda: ToMe(-1), "r must not be negative"),
        (lambda: ToMe(inflect=2), r"\[-1, 1\]"),
        (lambda: Mctf(1.5), "got 1.5"),
        (lambda: Mctf(temperatures=(1, 2)), "three"),
        (lambda: Mctf(temperatures=(1, 2, -1)), "none negative"),
        (lambda: Mctf(pooling="sum"), "'attention', 'size', 'max' or 'mean', got 'sum'"),
        (lambda: Mctf(when="amid"), "'fused', 'before' or 'after', got 'amid'"),
        (lambda: DiffRate((3,), (3,), (0, 1)), "for 2 blocks: give one a block"),
        (lambda: DiffRate((3,), (1,), (0,)), "each at least 2"),
        (lambda: DiffRate((3,), (), (0,)), "give prune and merge, or neither"),
        (lambda: DiffRate().stages(None), "takes a budget or rates"),
        (lambda: DiffRate((3,), (3,), (0,)).stages(Budget(3)), "but not both"),
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
        (ToMe(3, -1.0, (0, 1, 2)), 16 - 6 - 3),
        (Mctf(4, (1, 2)), 9),  # ten are left, the class token among them
        (Mctf(0.25, (1, 2)), 9),
        (DiffRate((14, 10), (12, 6), (0, 2)), 5),
    ):
        compressed = compress(model, method)
        compressed.generate(**inputs, **GREEDY)
        assert compressed.last.after.tolist() == [after], method


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
    )
    predictor.setup("predict")
    predictor.viewed = lambda sample: True
    calls = []
    for name in ("encode", "within"):
        own = getattr(predictor.adapter, name)
        monkeypatch.setattr(predictor.adapter, name, lambda *args, o=own, n=name: (calls.append(n), o(*args))[1])
    samples = read_samples(QUESTIONS / "questions.jsonl", QUESTIONS)[:2]
    with torch.no_grad():
        rows = predictor.predict_step([sample.loaded() for sample in samples], 0)
    assert [row.error for row in rows] == [None] * len(rows)
    assert sorted(calls) == ["encode", "within", "within"]
    of = {(row.method, row.budget and row.budget["ratio"]): row for row in rows}
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
