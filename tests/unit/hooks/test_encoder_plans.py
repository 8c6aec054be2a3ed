"""Stages inside the encoder: models and plans that support them, and errors for others."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from transformers import SiglipVisionConfig

from support.encoder_stages import GREEDY, OPENED, RANDOM, at, taken, within
from support.models import SERVED, backbone
from vtcframe import Budget, Stage, VtcCls, adapter_for, compress
from vtcframe.core.stages import Plan, plan_from_stages
from vtcframe.methods.diffrate import DiffRate
from vtcframe.methods.evit import EVit
from vtcframe.methods.tome import ToMe
from vtcframe.testing import emulated_flash, make_inputs
from vtcframe.testing.tiny_models.llava_families import SAMPLES, VISION, randomised, tiny_llava


def test_images_and_videos_of_a_batch_have_separate_towers():
    model, processor = backbone("video_llava")
    (image,), (video,) = SAMPLES["one"], SAMPLES["video"]
    inputs = make_inputs(processor, [video, image])
    compressed = compress(model, EVit((0, 1)), tokens=6)
    both = compressed.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    assert compressed.last.tokens_after.tolist() == [6, 6]
    assert compressed.last.structural_after.tolist() == [4, 0]
    for p, sample in enumerate((video, image)):
        single = make_inputs(processor, [sample])
        assert torch.equal(compressed.generate(**single, **GREEDY)[0, single["input_ids"].shape[1] :], both[p])
    inputs = make_inputs(processor, [video, image])  # images are encoded first
    adapter = adapter_for(model)
    pruned = within(adapter, inputs, at("encoder:0"))[1]
    assert torch.equal(pruned.scores, RANDOM(adapter.observe(inputs), Budget(6)).scores)
    inputs = make_inputs(processor, SAMPLES["image and video"])
    with pytest.raises(ValueError, match=r"samples \[0\] have images and videos"):
        compressed.generate(**inputs, **GREEDY)


@pytest.mark.parametrize("family", [family for family in SERVED if family not in OPENED])
def test_models_whose_packing_needs_the_whole_grid_refuse_before_anything_runs(family):
    model, _ = backbone(family)
    for stages in (at("encoder:0"), [*at("encoder:0"), *at("projector")]):
        with pytest.raises(ValueError, match=r"cannot be pruned at encoder:0: .*grid.*Use stages at 'projector'"):
            compress(model, stages=stages)


def test_unsupported_stages_are_errors_before_anything_runs(monkeypatch):
    model, adapter, inputs = taken("llava")
    monkeypatch.setattr(type(adapter), "features", lambda *_: pytest.fail("the model was run"))
    for stages, says in (
        (at("encoder:3"), "encoder:3 is none of the 3 blocks whose output is read, 0 to 2"),
        (ToMe(16).stages(Budget(4)), "encoder:3 is none of the 3 blocks"),
        ([Stage("encoder:0", VtcCls(2), Budget(4))], r"beyond the 1 that have run"),
        ([Stage("encoder:0", VtcCls(1, "head"), Budget(4))], "no attention-pooling head"),
    ):
        with pytest.raises(ValueError, match=says):
            compress(model, stages=stages).generate(**inputs, **GREEDY)
    with pytest.raises(ValueError, match="different lengths"):
        compress(model, stages=at("encoder:0")).generate(**inputs, **GREEDY, vision_feature_layer=[-2, -3])


def test_a_pruner_that_joins_views_is_an_error():
    model, _, inputs = taken("llava", "several")
    compressed = compress(model, stages=at("encoder:0", pruner=replace(RANDOM, across="sample")))
    with pytest.raises(ValueError, match=r"joins the views of a sample.*across='view'"):
        compressed.generate(**inputs, **GREEDY)


@pytest.mark.parametrize(
    ("sites", "says"),
    [
        (["encoder:1", "encoder:0"], "in the order in which they act"),
        (["encoder:1", "encoder:1"], "one for each block"),
        (["projector", "encoder:1"], "in the order in which they act"),
        (["projector", "projector"], "once at 'projector'"),
        (["encoder:0", "cache"], "act at encoder:0, cache: this version"),
        ([], "act at nowhere"),
    ],
)
def test_plans_that_cannot_be_run_are_refused(sites, says):
    with pytest.raises(ValueError, match=says):
        plan_from_stages(at(*sites))


def test_a_plan_is_named_after_its_method_or_its_pruners():
    method = ToMe(blocks=(0, 1))
    plan = plan_from_stages(method.stages(Budget(4)), method)
    assert (str(plan), plan.budget, plan.needs) == (str(method), Budget(4), ())
    assert (
        str(plan_from_stages([*at("encoder:1"), Stage("projector", VtcCls(2), Budget(3))]))
        == f"{RANDOM} + VtcCls(last=2)"
    )
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
    assert compressed.last.tokens_after.tolist() == [1, 1, 0]
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
