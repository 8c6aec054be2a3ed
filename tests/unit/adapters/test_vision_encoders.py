import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch.nn import functional as F

from vtcframe import Budget, ClassToken, Features, Keys, RandomPruner, Rows, Text, VtcCls, adapter_for, compress
from vtcframe.allocators import Even
from vtcframe.ensemblers import Mean
from vtcframe.pipeline import Allocator, Pipeline
from vtcframe.scorers import ClsAttention, Random
from vtcframe.selectors import TopK
from vtcframe.testing import check_restored
from vtcframe_backbones.encoders import OpenClip, Timm, extract

SIDE, PATCH, DEPTH = 64, 16, 4
TIMM = {
    "class token": {},
    "class token, no classifier": {"num_classes": 0},
    "class token and registers": {"reg_tokens": 2},
    "average": {"global_pool": "avg", "class_token": False, "fc_norm": True},
    "average beside a class token": {"global_pool": "avg"},
    "average and registers alone": {"global_pool": "avg", "class_token": False, "reg_tokens": 2},
    "attention pooling": {"global_pool": "map", "class_token": False},
}
VISION = {"image_size": SIDE, "patch_size": PATCH, "width": 32, "layers": DEPTH, "head_width": 8}
OPEN_CLIP = {
    "tok": VISION,
    "avg": {**VISION, "pool_type": "avg"},
    "norm behind pooling": {**VISION, "pool_type": "avg", "final_ln_after_pool": True},
    "custom blocks": {**VISION, "block_type": "custom"},
    "timm trunk": {"image_size": SIDE, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
}
WORDS = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}


def shaken(model, seed=0):
    """Random weights that are large enough for every part of the model to matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model.eval()


def timm_vit(name="class token", seed=0, **options):
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 32, "depth": DEPTH, "num_heads": 4, "num_classes": 5}
    return shaken(timm.models.VisionTransformer(**(sizes | TIMM[name] | options)), seed)


def clip(name="tok", seed=0, kind=CLIP):
    if "timm_model_name" in OPEN_CLIP[name]:
        kind = CustomTextCLIP
    model = shaken(kind(24, OPEN_CLIP[name], WORDS), seed)
    if hasattr(model.visual, "trunk"):
        model.visual.trunk.set_input_size(img_size=SIDE)
    return model


MODELS = [("timm", name) for name in TIMM] + [("open_clip", name) for name in OPEN_CLIP]


@pytest.fixture(params=MODELS, ids="-".join)
def adapter(request):
    library, name = request.param
    return Timm(timm_vit(name)) if library == "timm" else OpenClip(clip(name))


def pictures(count=3, seed=0):
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


class Ragged(Allocator):
    """Each view another number of tokens: 3, 7, all, and again."""

    def __call__(self, scores, budget, evidence):
        count = evidence.layout.count
        return torch.tensor([(3, 7, int(n))[int(key) % 3] for key, n in zip(evidence.layout.key, count, strict=True)])


RAGGED = Pipeline((Random(),), Mean(), Ragged(), TopK())


def ragged(adapter, pixels, ids=(0, 1, 2)):
    evidence = adapter.observe({"pixel_values": pixels}, ids=list(ids))
    # keys are hashes: take ones that the allocator above tells apart
    keys = torch.tensor([int(i) for i in ids])
    evidence.layout.key.copy_(keys)
    return evidence, RAGGED(evidence)


def untouched(model, pixels):
    with torch.no_grad():
        return model.encode_image(pixels) if hasattr(model, "encode_image") else model(pixels)


def test_keeping_all_gives_the_models_own_output(adapter):
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
    paid = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).exp() * alive[:, None, None]
    return (paid / paid.sum(-1, keepdim=True) @ value).transpose(1, 2).flatten(2)


def averaged(patches, kept):
    return (patches * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)


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
        own, left = ragged(adapter, pixels[p : p + 1], [p])
        assert torch.equal(left.kept[0], pruned.kept[p])
        assert (adapter.features(own, left)[0] - together[p]).abs().max() <= 1e-5
    assert (together[2] - untouched(adapter.model, pixels)[2]).abs().max() <= 1e-5  # it keeps all, in a ragged batch


def test_what_lies_at_padding_is_not_seen(adapter):
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
def test_evidence_equals_a_twin_from_the_blocks_own_inputs(library, name):
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
    cls = [Rows("cls", layers), Rows("cls", (-1,), of="tower")] if adapter.vit.has_class else []
    needs = [Rows("received", layers), Rows("mean", layers), Keys(layers), Features(), *cls]
    evidence = adapter.observe({"pixel_values": pixels}, needs)
    assert set(evidence.found) == set(needs)
    with torch.no_grad():
        for view in range(2):
            for at, block in enumerate((DEPTH - 2, 0)):  # the last block is behind the site: it does not feed
                paid, key = eager(adapter.vit.blocks[block].attn, inputs[block][view])
                assert torch.allclose(evidence[needs[0]][at, view], paid[:, k:, k:].mean(1), atol=1e-6)
                assert torch.allclose(evidence[needs[2]][at, view], key[:, k:], atol=1e-5)
                if cls:
                    assert torch.allclose(evidence[cls[0]][at, view], paid[:, 0, k:], atol=1e-6)
            if cls:
                paid, _ = eager(adapter.vit.blocks[-1].attn, inputs[DEPTH - 1][view])
                assert torch.allclose(evidence[cls[1]][0, view], paid[:, 0, k:], atol=1e-6)
    assert evidence[needs[1]].shape == evidence[needs[0]].shape
    assert torch.equal(evidence[Features()], evidence.tokens)


def test_the_class_token_is_that_in_front_of_the_remaining_blocks():
    evidence = (adapter := OpenClip(clip())).observe({"pixel_values": pictures(2)}, [ClassToken()])
    assert torch.equal(evidence[ClassToken()], evidence.structural.tokens)
    assert adapter.observe({"pixel_values": pictures(2)}).found == {}


def test_pictures_of_another_size_have_another_grid():
    adapter = Timm(timm_vit(dynamic_img_size=True))
    pixels = F.interpolate(pictures(2), (48, 80), mode="bilinear")
    evidence = adapter.observe({"pixel_values": pixels})
    assert evidence.layout.grid[0, -1].tolist() == [2, 4]
    got = adapter.features(evidence, RandomPruner()(evidence, Budget(ratio=1.0)))
    assert torch.equal(got, untouched(adapter.model, pixels))


def test_nothing_is_left_behind(adapter):
    model, pixels = adapter.model, pictures()
    before = untouched(model, pixels)
    pruner = VtcCls() if adapter.vit.has_class else RandomPruner()
    with check_restored(model):
        extract(model, pixels, pruner, tokens=5)
    assert torch.equal(untouched(model, pixels), before)


def test_zero_shot_classification_with_all_patches_is_the_models_own():
    model, pixels = clip(), pictures(6)
    tokenizer = open_clip.SimpleTokenizer(context_length=12)
    words = model.encode_text(tokenizer(["a dog", "a cat", "two birds"]), normalize=True)
    seen = F.normalize(extract(model, pixels, VtcCls(), ratio=1.0), dim=-1)
    want = (model.encode_image(pixels, normalize=True) @ words.T).argmax(1)
    assert torch.equal((seen @ words.T).argmax(1), want)
    assert extract(model, pixels, VtcCls(), tokens=4).shape == seen.shape


def test_extract_prunes_as_the_parts_do():
    model, pixels = timm_vit(), pictures()
    adapter = Timm(model)
    pruner = Pipeline((ClsAttention(2),), Mean(), Even(), TopK())
    evidence = adapter.observe({"pixel_values": pixels}, pruner.needs)
    want = adapter.features(evidence, pruner(evidence, Budget(tokens=5)))
    assert torch.equal(extract(model, pixels, pruner, tokens=5), want)


@pytest.mark.parametrize(
    ("name", "said"),
    [("test_convnext", "ConvNeXt"), ("test_resnet", "ResNet"), ("test_efficientnet", "EfficientNet")],
)
def test_models_of_timm_without_a_sequence_of_tokens_are_refused(name, said):
    model = timm.create_model(name)
    assert Timm.matches(model)
    with pytest.raises(ValueError, match=f"{said} cannot be pruned: only VisionTransformer"):
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
    with pytest.raises(ValueError, match=r"cannot gather Rows.*it has no class token. Use a proxy"):
        extract(adapter.model, pixels, VtcCls(), tokens=1)
    for need in (ClassToken(), Text(Features()), Rows("last", (0,), "llm")):
        with pytest.raises(ValueError, match="cannot gather"):
            adapter.observe({"pixel_values": pixels}, [need])
    with pytest.raises(ValueError, match=r"beyond the 3 \(feeding\)"):
        adapter.observe({"pixel_values": pixels}, [Keys((3,))])
    for wrong, said in ((None, "is a NoneType"), (pixels[0], "64, 64"), (pixels[:0], r"\[0, 3")):
        with pytest.raises(ValueError, match=said):
            adapter.observe({"pixel_values": wrong})
    with pytest.raises(ValueError, match="2 ids for 3 samples"):
        adapter.observe({"pixel_values": pixels}, ids=[1, 2])
    with pytest.raises(ValueError, match="no language model"):
        adapter.llm_layers()
    evidence = adapter.observe({"pixel_values": pixels})
    pruned = RandomPruner()(evidence, Budget(tokens=2))
    with pytest.raises(ValueError, match="generates nothing"):
        adapter.splice({"pixel_values": pixels}, evidence, pruned)
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
    seen = timm.create_model("vit_tiny_patch16_224", img_size=SIDE, depth=3).eval()
    assert isinstance(adapter_for(seen), Timm)
    assert isinstance(adapter_for(CLIP(24, dict(VISION), dict(WORDS))), OpenClip)
    with pytest.raises(ValueError, match="VisionTransformer generates nothing: call features"):
        compress(seen, VtcCls(), tokens=4)
    with pytest.raises(ValueError, match="ResNet cannot be pruned: only VisionTransformer"):
        adapter_for(timm.create_model("resnet10t"))
