"""Encoders of timm and open_clip: features with patches removed, and layouts."""

import pytest
import torch

from support.vision_encoders import MODELS, PATCH, SIDE, averaged, clip, pictures, timm_vit, untouched
from vtcframe import Budget, RandomPruner
from vtcframe.components.ensemblers import Mean
from vtcframe.components.scorers import Random
from vtcframe.components.selectors import TopK
from vtcframe.core.pipeline import Pipeline
from vtcframe.core.verbs import Allocator
from vtcframe_backbones.encoders.extract import extract
from vtcframe_backbones.encoders.open_clip import OpenClip
from vtcframe_backbones.encoders.timm import Timm


class Ragged(Allocator):
    """Give views 3, 7 and all tokens, in turn."""

    def __call__(self, scores, budget, evidence):
        count = evidence.layout.count
        return torch.tensor([(3, 7, int(n))[int(key) % 3] for key, n in zip(evidence.layout.key, count, strict=True)])


RAGGED = Pipeline((Random(),), Mean(), Ragged(), TopK())


def ragged(adapter, pixels, ids=(0, 1, 2)):
    evidence = adapter.observe({"pixel_values": pixels}, ids=list(ids))
    # keys are hashes: replace them by ones that give each picture another quota
    keys = torch.tensor([int(i) for i in ids])
    evidence.layout.key.copy_(keys)
    return evidence, RAGGED(evidence)


def test_keeping_all_gives_the_output_of_the_model(adapter):
    pixels = pictures()
    evidence = adapter.observe({"pixel_values": pixels})
    got = adapter.features(evidence, RandomPruner()(evidence, Budget(ratio=1.0)))
    want = untouched(adapter.model, pixels)
    if adapter.vit.prefix:
        assert torch.equal(got, want)
    assert (got - want).abs().max() <= 1e-6
    assert torch.equal(extract(adapter.model, pixels, RandomPruner(), tokens=10**6), want)


def masked_reference(model, pixels, kept, rest):
    """The full model with the dropped patches masked as keys of the last blocks and left out of pooling.

    Written with plain matrix products over the weights, apart from the adapter's code. kept [P, N] bool.
    """
    x = pixels
    if hasattr(model, "encode_image") and not hasattr(model.visual, "trunk"):
        visual = model.visual
        x = visual._embeds(x)
        blocks = list(visual.transformer.resblocks)
        for block in blocks[: len(blocks) - rest]:
            x = block(x)
        alive = torch.cat([torch.ones(len(x), 1, dtype=torch.bool), kept], 1)
        for block in blocks[len(blocks) - rest :]:
            attention = block.attn
            normed = block.ln_1(x)
            qkv = normed @ attention.in_proj_weight.T + attention.in_proj_bias
            qkv = qkv.unflatten(-1, (3, attention.num_heads, -1)).movedim(2, 0).transpose(2, 3)
            x = x + attention.out_proj(attended(*qkv, alive))
            x = x + block.mlp(block.ln_2(x))
        normed = x if visual.final_ln_after_pool else visual.ln_post(x)
        pooled = normed[:, 0] if visual.pool_type == "tok" else averaged(normed[:, 1:], kept)
        return (visual.ln_post(pooled) if visual.final_ln_after_pool else pooled) @ visual.proj
    vit = model.visual.trunk if hasattr(model, "encode_image") else model
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
    k = vit.num_prefix_tokens
    alive = torch.cat([torch.ones(len(x), k, dtype=torch.bool), kept], 1)
    blocks = list(vit.blocks)
    for block in blocks[: len(blocks) - rest]:
        x = block(x)
    for block in blocks[len(blocks) - rest :]:
        qkv = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.num_heads, -1)).movedim(2, 0).transpose(2, 3)
        x = x + block.ls1(block.attn.proj(attended(*qkv, alive)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    x = vit.norm(x)
    if vit.global_pool == "token":
        x = x[:, 0]
    elif vit.global_pool == "avg":
        x = averaged(x[:, k:], kept)
    else:
        pool, patches = vit.attn_pool, x[:, k:]
        query = pool.q(pool.latent).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2).expand(len(x), -1, -1, -1)
        key, value = pool.kv(patches).unflatten(-1, (2, pool.num_heads, -1)).movedim(2, 0).transpose(2, 3)
        x = pool.proj(attended(query, key, value, kept))
        x = (x + pool.mlp(pool.norm(x)))[:, 0]
    x = vit.head(vit.fc_norm(x))
    return model.visual.head(x) if hasattr(model, "encode_image") else x


def attended(query, key, value, alive):
    weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).exp() * alive[:, None, None]
    return (weights / weights.sum(-1, keepdim=True) @ value).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("rest", [1, 2])
@pytest.mark.parametrize(("library", "name"), [at for at in MODELS if at[1] != "custom blocks"], ids=str)
def test_removed_equals_masked_out_of_attention_and_pooling(library, name, rest):
    model = timm_vit(name) if library == "timm" else clip(name)
    pixels = pictures()
    adapter = (Timm if library == "timm" else OpenClip)(model, rest=rest)
    evidence, pruned = ragged(adapter, pixels)
    assert pruned.kept.sum(1).tolist() == [3, 7, evidence.layout.count[2]]
    got = adapter.features(evidence, pruned)
    with torch.no_grad():
        want = masked_reference(model, pixels, pruned.kept, rest)
    scale = want.abs().max()
    assert (got - want).abs().max() <= 1e-5 * max(1, scale)
    assert (got - untouched(model, pixels)).abs().max() > 1e-3 * scale  # something was dropped


def test_a_picture_gives_the_same_alone_and_in_a_ragged_batch(adapter):
    pixels = pictures()
    evidence, pruned = ragged(adapter, pixels)
    together = adapter.features(evidence, pruned)
    for p in range(3):
        alone, pruned_alone = ragged(adapter, pixels[p : p + 1], [p])
        assert torch.equal(pruned_alone.kept[0], pruned.kept[p])
        assert (adapter.features(alone, pruned_alone)[0] - together[p]).abs().max() <= 1e-5
    assert (together[2] - untouched(adapter.model, pixels)[2]).abs().max() <= 1e-5  # it keeps all, in a ragged batch


def test_values_at_padding_have_no_effect(adapter):
    evidence, pruned = ragged(adapter, pictures())
    want = adapter.features(evidence, pruned)
    pruned.tokens[pruned.place < 0] = torch.nan
    assert torch.equal(adapter.features(evidence, pruned), want)


def test_each_picture_is_a_sample_of_one_view_and_columns_count_patches(adapter):
    evidence = adapter.observe({"pixel_values": pictures(2)})
    layout, n = evidence.layout, (SIDE // PATCH) ** 2
    assert layout.sample.tolist() == [0, 1]
    assert layout.image.tolist() == layout.frame.tolist() == [0, 0]
    assert layout.column.tolist() == [list(range(n))] * 2
    assert layout.grid[1].tolist() == [[i // 4, i % 4] for i in range(n)]
    assert layout.centre[0, 5].tolist() == [0.375, 0.375]
    assert layout.untouched.tolist() == [n, n]
    assert layout.key[0] != layout.key[1]
    assert torch.equal(adapter.arrange({"pixel_values": pictures(2)[1:]}).layout.key, layout.key[1:])
    named = [adapter.arrange({"pixel_values": pictures(2, seed)}, ids=["a", "b"]).layout.key for seed in (0, 1)]
    assert torch.equal(*named)


def test_the_prefix_is_structural_and_stays():
    adapter = Timm(timm_vit("class token and registers"))
    evidence = adapter.observe({"pixel_values": pictures(2)})
    structural = evidence.structural
    assert structural.sample.tolist() == [0] * 3 + [1] * 3
    assert structural.stays(torch.zeros(2, 19, dtype=torch.bool)).all()
    hidden = adapter.model.forward_intermediates(
        pictures(2), indices=[2], intermediates_only=True, return_prefix_tokens=True, output_fmt="NLC"
    )[0]
    assert torch.equal(evidence.tokens, hidden[0])
    assert torch.equal(structural.tokens.view(2, 3, -1), hidden[1])
