"""Stages inside encoders of timm and open_clip."""

from dataclasses import replace

import pytest
import timm
import torch

from support.encoder_stages import BLOCKS, RANDOM, at, taken, tome_by_hand, within
from support.vision_encoders import MODELS, averaged, clip, pictures, timm_vit, untouched
from vtcframe import Budget, Stage
from vtcframe.methods.diffrate import DiffRate
from vtcframe.methods.mctf import Mctf
from vtcframe.methods.tome import ToMe
from vtcframe.testing import check_restored
from vtcframe_backbones.encoders.extract import extract
from vtcframe_backbones.encoders.open_clip import OpenClip
from vtcframe_backbones.encoders.timm import Timm

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
    attention_weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).exp() * alive[:, None, None]
    return x + out(
        (attention_weights / attention_weights.sum(-1, keepdim=True) @ value).transpose(1, 2).flatten(2)
    ), rest


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
    evidence, pruned = within(adapter, inputs, stages, ids=[0, 1, 2])
    got = adapter.features(evidence, pruned)
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
    assert torch.equal(pruned.kept, last)


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
    evidence, pruned = within(adapter, {"pixel_values": pixels}, stages)
    whole = Timm(model, rest=None)
    every = whole.features(*within(whole, {"pixel_values": pixels}, stages))
    assert (adapter.features(evidence, pruned) - every).abs().max() <= 1e-5 * float(every.abs().max())
    without = adapter.features(replace(evidence, size=None), pruned)
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
    """Equals a reference that repeats merged tokens once for each patch in them, without sizes."""
    model, adapter, inputs = taken("llava", "one", attention)
    method = ToMe(3, blocks=(0, 1))
    _, pruned = within(adapter, inputs, method.stages(None))
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
    assert pruned.place[0].tolist() == sorted(places)
    assert (pruned.tokens[0] - want[raster]).abs().max() <= 1e-4
