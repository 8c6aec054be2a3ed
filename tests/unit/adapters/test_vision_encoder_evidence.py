"""Encoders of timm and open_clip: evidence, and what is refused."""

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.model import CLIP
from torch.nn import functional as F

from support.vision_encoders import DEPTH, PATCH, SIDE, VISION, WORDS, clip, pictures, shaken, timm_vit, untouched
from vtcframe import (
    AttentionKeys,
    AttentionRows,
    Budget,
    ClassToken,
    HiddenStates,
    RandomPruner,
    TextTokens,
    VtcCls,
    adapter_for,
    compress,
)
from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean
from vtcframe.components.scorers import ClsAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.stages import plan_for
from vtcframe.inference.session import Session
from vtcframe.testing import check_restored
from vtcframe_backbones.encoders.extract import extract
from vtcframe_backbones.encoders.open_clip import OpenClip
from vtcframe_backbones.encoders.timm import Timm


def eager(module, x):
    """[H, T, T] attention of one timm or torch module, T tokens."""
    heads = module.num_heads
    weight, bias = (
        (module.qkv.weight, module.qkv.bias) if hasattr(module, "qkv") else (module.in_proj_weight, module.in_proj_bias)
    )
    qkv = x @ weight.T + bias
    query, key, _ = qkv.unflatten(-1, (3, heads, -1)).movedim(1, 0).transpose(1, 2)
    return (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1), key


@pytest.mark.parametrize(
    ("library", "name"), [("timm", "class token and registers"), ("timm", "attention pooling"), ("open_clip", "tok")]
)
def test_evidence_equals_a_reference_computed_from_the_inputs_of_each_block(library, name):
    model = timm_vit(name) if library == "timm" else clip(name)
    adapter, pixels = (Timm if library == "timm" else OpenClip)(model), pictures(2)
    k, inputs = adapter.vit.prefix, {}
    hooks = [
        block.attn.register_forward_pre_hook(lambda _, args, i=i: inputs.__setitem__(i, args[0]))
        for i, block in enumerate(adapter.vit.blocks)
    ]
    untouched(model, pixels)
    for hook in hooks:
        hook.remove()
    layers = (-1, 0)
    cls = [AttentionRows("cls", layers), AttentionRows("cls", (-1,), blocks="tower")] if adapter.vit.has_class else []
    needs = [
        AttentionRows("received", layers),
        AttentionRows("mean", layers),
        AttentionKeys(layers),
        HiddenStates(),
        *cls,
    ]
    evidence = adapter.observe({"pixel_values": pixels}, needs)
    assert set(evidence.readings) == set(needs)
    with torch.no_grad():
        for view in range(2):
            for at, block in enumerate((DEPTH - 2, 0)):  # the last block is behind the site: it does not feed
                weights, key = eager(adapter.vit.blocks[block].attn, inputs[block][view])
                assert torch.allclose(evidence[needs[0]][at, view], weights[:, k:, k:].mean(1), atol=1e-6)
                assert torch.allclose(evidence[needs[2]][at, view], key[:, k:], atol=1e-5)
                if cls:
                    assert torch.allclose(evidence[cls[0]][at, view], weights[:, 0, k:], atol=1e-6)
            if cls:
                weights, _ = eager(adapter.vit.blocks[-1].attn, inputs[DEPTH - 1][view])
                assert torch.allclose(evidence[cls[1]][0, view], weights[:, 0, k:], atol=1e-6)
    assert evidence[needs[1]].shape == evidence[needs[0]].shape
    assert torch.equal(evidence[HiddenStates()], evidence.tokens)


def test_the_class_token_is_that_in_front_of_the_remaining_blocks():
    evidence = (adapter := OpenClip(clip())).observe({"pixel_values": pictures(2)}, [ClassToken()])
    assert torch.equal(evidence[ClassToken()], evidence.structural.tokens)
    assert adapter.observe({"pixel_values": pictures(2)}).readings == {}


def test_pictures_of_another_size_have_another_grid():
    adapter = Timm(timm_vit(dynamic_img_size=True))
    pixels = F.interpolate(pictures(2), (48, 80), mode="bilinear")
    evidence = adapter.observe({"pixel_values": pixels})
    assert evidence.layout.grid[0, -1].tolist() == [2, 4]
    got = adapter.features(evidence, RandomPruner()(evidence, Budget(ratio=1.0)))
    assert torch.equal(got, untouched(adapter.model, pixels))


def test_the_model_is_restored(adapter):
    model, pixels = adapter.model, pictures()
    before = untouched(model, pixels)
    pruner = VtcCls() if adapter.vit.has_class else RandomPruner()
    with check_restored(model):
        extract(model, pixels, pruner, tokens=5)
    assert torch.equal(untouched(model, pixels), before)


def test_zero_shot_classification_with_all_patches_equals_the_model():
    model, pixels = clip(), pictures(6)
    tokenizer = open_clip.SimpleTokenizer(context_length=12)
    words = model.encode_text(tokenizer(["a dog", "a cat", "two birds"]), normalize=True)
    features = F.normalize(extract(model, pixels, VtcCls(), ratio=1.0), dim=-1)
    want = (model.encode_image(pixels, normalize=True) @ words.T).argmax(1)
    assert torch.equal((features @ words.T).argmax(1), want)
    assert extract(model, pixels, VtcCls(), tokens=4).shape == features.shape


def test_extract_prunes_as_the_parts_do():
    model, pixels = timm_vit(), pictures()
    adapter = Timm(model)
    pruner = Pipeline((ClsAttention(2),), Mean(), Even(), TopK())
    evidence = adapter.observe({"pixel_values": pixels}, pruner.needs)
    want = adapter.features(evidence, pruner(evidence, Budget(tokens=5)))
    assert torch.equal(extract(model, pixels, pruner, tokens=5), want)


@pytest.mark.parametrize(
    ("name", "message"),
    [("test_convnext", "ConvNeXt"), ("test_resnet", "ResNet"), ("test_efficientnet", "EfficientNet")],
)
def test_models_of_timm_without_a_sequence_of_tokens_are_refused(name, message):
    model = timm.create_model(name)
    assert Timm.matches(model)
    with pytest.raises(ValueError, match=f"{message} cannot be pruned: only VisionTransformer"):
        Timm(model)


def test_refusals_say_why():
    pixels = pictures()
    with pytest.raises(ValueError, match="global_pool=''"):
        Timm(timm_vit(global_pool="", num_classes=0))
    with pytest.raises(ValueError, match="pool_type='none'"):
        OpenClip(shaken(CLIP(24, {**VISION, "pool_type": "none"}, WORDS)))
    with pytest.raises(ValueError, match="ModifiedResNet cannot be pruned"):
        OpenClip(CLIP(24, {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 8}, WORDS))
    for rest in (0, DEPTH):
        with pytest.raises(ValueError, match=f"rest={rest} of 4 blocks"):
            Timm(timm_vit(), rest=rest)
    with pytest.raises(ValueError, match="neither a model of timm nor of open_clip"):
        extract(torch.nn.Linear(1, 1), pixels, VtcCls(), tokens=1)
    adapter = Timm(timm_vit("attention pooling"))
    with pytest.raises(ValueError, match=r"cannot gather AttentionRows.*it has no class token. Use a proxy"):
        extract(adapter.model, pixels, VtcCls(), tokens=1)
    for need in (ClassToken(), TextTokens(HiddenStates()), AttentionRows("last", (0,), "llm")):
        with pytest.raises(ValueError, match="cannot gather"):
            adapter.observe({"pixel_values": pixels}, [need])
    with pytest.raises(ValueError, match=r"beyond the 3 \(feeding\)"):
        adapter.observe({"pixel_values": pixels}, [AttentionKeys((3,))])
    for wrong, message in ((None, "is a NoneType"), (pixels[0], "64, 64"), (pixels[:0], r"\[0, 3")):
        with pytest.raises(ValueError, match=message):
            adapter.observe({"pixel_values": wrong})
    with pytest.raises(ValueError, match="2 ids for 3 samples"):
        adapter.observe({"pixel_values": pixels}, ids=[1, 2])
    for plan in (None, plan_for(RandomPruner(), Budget(tokens=2))):
        with pytest.raises(ValueError, match="no language model and generates nothing: call features"):
            Session(adapter, plan)
    generating = timm_vit()
    generating.generate = None
    with pytest.raises(ValueError, match="no language model and generates nothing: call features"):
        compress(generating, RandomPruner(), tokens=2)
    evidence = adapter.observe({"pixel_values": pixels})
    pruned = RandomPruner()(evidence, Budget(tokens=2))
    with pytest.raises(ValueError, match="not of these"):
        adapter.features(adapter.observe({"pixel_values": pixels[:2]}), pruned)
    pruned.place[1] = -1
    with pytest.raises(ValueError, match=r"nothing is left of samples \[1\]"):
        adapter.features(evidence, pruned)


def test_a_bright_patch_lights_up_its_own_token():
    model = timm_vit()
    plain = torch.zeros(1, 3, SIDE, SIDE)
    for row, column in np.ndindex(4, 4):
        lit = plain.clone()
        lit[:, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = 1
        at = int((model.patch_embed(lit) - model.patch_embed(plain)).abs().sum(-1).argmax())
        layout = Timm(model).arrange({"pixel_values": lit}).layout
        assert layout.grid[0, at].tolist() == [row, column]


def test_the_registered_adapters_are_found_for_timm_and_open_clip_models():
    model = timm.create_model("vit_tiny_patch16_224", img_size=SIDE, depth=3).eval()
    assert isinstance(adapter_for(model), Timm)
    assert isinstance(adapter_for(CLIP(24, dict(VISION), dict(WORDS))), OpenClip)
    with pytest.raises(ValueError, match="VisionTransformer generates nothing: call features"):
        compress(model, VtcCls(), tokens=4)
    with pytest.raises(ValueError, match="ResNet cannot be pruned: only VisionTransformer"):
        adapter_for(timm.create_model("resnet10t"))
