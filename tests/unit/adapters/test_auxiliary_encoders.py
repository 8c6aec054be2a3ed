"""Auxiliary encoders: attention, features and text beside independent references."""

import math

import pytest
import torch
from torch.nn import functional as F

from support.auxiliary_encoders import CONTEXT, LONG, MEAN, SIDE, STD, pictures
from vtcframe.adapters.auxiliary_base import AuxiliaryEncoder
from vtcframe.adapters.auxiliary_encoders import auxiliary_encoder, resampled
from vtcframe.adapters.text_segments import segments
from vtcframe.testing import check_restored


def prepared():
    resized = [
        F.interpolate(picture[None], (SIDE, SIDE), mode="bicubic", antialias=True)[0].clamp(0, 1)
        for picture in pictures()
    ]
    return torch.stack([torch.stack([(x[c] - MEAN[c]) / STD[c] for c in range(3)]) for x in resized])


def inputs_of(modules, run):
    """Return the input of each module."""
    inputs = [None] * len(modules)
    hooks = [
        module.register_forward_pre_hook(lambda _, args, i=i: inputs.__setitem__(i, args[0]))
        for i, module in enumerate(modules)
    ]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return inputs


def class_token_logits(module, x, joined=False):
    """[I, H, T] attention of query 0, from the module's weights and input."""
    weight, bias = (
        (module.qkv.weight, module.qkv.bias) if hasattr(module, "qkv") else (module.in_proj_weight, module.in_proj_bias)
    )
    heads = 1 if joined else module.num_heads
    query, key, _ = (x @ weight.T + bias).unflatten(-1, (3, heads, -1)).movedim(2, 0).transpose(2, 3)
    return (query[:, :, :1] @ key.transpose(-1, -2) * query.shape[-1] ** -0.5)[:, :, 0]


@pytest.mark.parametrize(("which", "prefix"), [("timm", 1), ("registers", 3), ("open_clip", 1)])
def test_rows_are_the_class_tokens_attention_over_the_whole_picture(saved, which, prefix):
    name, model = saved[which]
    vit = model.visual if which == "open_clip" else model
    modules = [block.attn for block in (vit.transformer.resblocks if which == "open_clip" else vit.blocks)]
    inputs = inputs_of(modules, lambda: vit(prepared()))
    layers = (-1, 0, 2)
    with torch.no_grad():
        logits = torch.stack([class_token_logits(modules[layer], inputs[layer]) for layer in layers])
        joined = torch.stack([class_token_logits(modules[layer], inputs[layer], joined=True) for layer in layers])
    encoder = auxiliary_encoder(name)
    with check_restored(encoder.model):
        rows = encoder.rows(pictures(), layers)
    assert rows.shape == (3, 3, 4, 4, 4)
    assert rows.dtype == torch.float32
    want = logits.softmax(-1)[..., prefix:].unflatten(-1, (4, 4))
    assert (rows - want).abs().max() <= 1e-6
    assert (encoder.rows(pictures(), layers, heads="mean") - want.mean(2, keepdim=True)).abs().max() <= 1e-6
    want = logits[..., prefix:].unflatten(-1, (4, 4))
    assert (encoder.rows(pictures(), layers, logits=True) - want).abs().max() <= 1e-5
    want = joined.softmax(-1)[..., prefix:].unflatten(-1, (4, 4))
    assert (encoder.rows(pictures(), layers, heads="joined") - want).abs().max() <= 1e-6
    alone = torch.cat([encoder.rows([picture], layers) for picture in pictures()], 1)
    assert (rows - alone).abs().max() <= 1e-6


def test_rows_run_only_the_blocks_that_are_needed(saved):
    encoder = auxiliary_encoder(saved["timm"][0])
    blocks_run = []
    hooks = [
        b.register_forward_pre_hook(lambda *_, i=i: blocks_run.append(i)) for i, b in enumerate(encoder.model.blocks)
    ]
    encoder.rows(pictures(), (-3, 0))
    for hook in hooks:
        hook.remove()
    assert blocks_run == [0, 1]


def test_an_auxiliary_encoder_is_loaded_once_frozen_and_in_float32(saved):
    for name, model in saved.values():
        encoder = auxiliary_encoder(name)
        assert encoder is auxiliary_encoder(name)
        assert not encoder.model.training
        weights = dict(encoder.model.named_parameters())
        assert not any(weight.requires_grad or weight.dtype != torch.float32 for weight in weights.values())
        assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())


def test_autocast_around_an_auxiliary_encoder_changes_nothing(saved):
    encoder, clip = auxiliary_encoder(saved["open_clip"][0]), auxiliary_encoder(saved["clip"][0])
    patches = torch.rand(2, 5, 32)

    def everything():
        (words,) = encoder.text([LONG])
        dense = encoder.dense(pictures())
        return encoder.rows(pictures(), (-1,)), dense, words, clip.embed(patches), encoder.similarity(dense, words)

    want = everything()
    with torch.autocast("cpu", torch.bfloat16):
        got = everything()
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_dense_is_the_last_block_but_one_normed_and_projected(saved):
    name, model = saved["open_clip"]
    (last,) = inputs_of([model.visual.transformer.resblocks[-1]], lambda: model.encode_image(prepared()))
    with torch.no_grad():
        want = F.layer_norm(last[:, 1:], (32,), model.visual.ln_post.weight, model.visual.ln_post.bias)
        want = (want @ model.visual.proj).unflatten(1, (4, 4))
    got = auxiliary_encoder(name).dense(pictures())
    assert got.shape == (3, 4, 4, 24)
    assert (got - want).abs().max() <= 1e-5
    assert (auxiliary_encoder(name).embed(last[:, 1:]).unflatten(1, (4, 4)) - want).abs().max() <= 1e-5


def test_a_transformers_clip_embeds_the_backbones_own_patches(saved):
    name, model = saved["clip"]
    patches = torch.rand(2, 3, 5, 32)
    with torch.no_grad():
        norm = model.vision_model.post_layernorm
        want = F.layer_norm(patches, (32,), norm.weight, norm.bias, norm.eps) @ model.visual_projection.weight.T
    assert (auxiliary_encoder(name).embed(patches) - want).abs().max() <= 1e-6
    with pytest.raises(ValueError, match="32 wide, the patches are 31 wide"):
        auxiliary_encoder(name).embed(patches[..., :31])


@pytest.mark.parametrize("which", ["open_clip", "clip"])
def test_a_short_question_is_one_segment_with_the_embedding_of_the_model(saved, which):
    name, model = saved[which]
    encoder = auxiliary_encoder(name)
    texts = ["what is the dog doing", "a red roof ?", ""]
    got = encoder.text(texts)
    assert [len(segment) for segment in got] == [1, 1, 1]
    with torch.no_grad():
        for text, (segment,) in zip(texts, got, strict=True):
            if which == "open_clip":
                want = model.encode_text(encoder.tokenizer([text], context_length=CONTEXT))[0]
            else:
                want = model.get_text_features(**encoder.tokenizer(text, return_tensors="pt")).pooler_output[0]
            assert (segment - want / want.norm()).abs().max() <= 1e-5
    assert encoder.text([]) == []


@pytest.mark.parametrize("which", ["open_clip", "clip"])
def test_a_long_question_is_cut_between_words_and_none_is_lost(saved, which):
    encoder = auxiliary_encoder(saved[which][0])
    (got,) = encoder.text([LONG])
    words, parts = LONG.split(), []
    while words:  # 12 tokens: begin, end, and ten words of one token each
        parts, words = [*parts, " ".join(words[: CONTEXT - 2])], words[CONTEXT - 2 :]
    assert len(parts) == 2
    want = torch.cat([encoder.text([part])[0] for part in parts])
    assert (got - want).abs().max() <= 1e-6


def letters(text, length):
    """Tokenise to one token for each letter, without spaces, truncated and with an end token like CLIP."""
    ids = [1, *(ord(letter) for letter in text if letter != " "), 2]
    return torch.tensor([*ids[: length - 1], 2] if len(ids) > length else ids + [0] * (length - len(ids)))


def test_segments_hold_as_many_whole_words_as_fit():
    assert segments("ab cd ef gh", letters, 8) == ["ab cd ef", "gh"]
    assert segments("ab cd efg h", letters, 8) == ["ab cd", "efg h"]
    assert segments("a bcdefghijkl m", letters, 6) == ["a", "bcde", "fghi", "jkl m"]
    assert segments("  ", letters, 6) == [""]
    with pytest.raises(ValueError, match="does not fit 'a' into 2 tokens"):
        segments("a", letters, 2)


def test_similarity_is_the_cosine_mean_over_segments():
    patches, parts = torch.randn(2, 3, 5), torch.randn(4, 5)
    got = AuxiliaryEncoder.similarity(patches, parts)
    for i in range(2):
        for j in range(3):
            cosines = [
                sum(a * b for a, b in zip(patches[i, j].tolist(), part.tolist(), strict=True))
                / math.hypot(*patches[i, j].tolist())
                / math.hypot(*part.tolist())
                for part in parts
            ]
            assert got[i, j].item() == pytest.approx(sum(cosines) / 4, abs=1e-6)


def resample_point(cells, row, column):
    """Return one value of `resampled`, computed in plain Python; cells is a list of rows."""
    places = []
    for at, count in ((row, len(cells)), (column, len(cells[0]))):
        at = min(max(at * count - 0.5, 0.0), count - 1.0)
        low = min(int(at), count - 1)
        places.append((low, min(low + 1, count - 1), at - low))
    (top, bottom, down), (left, right, across) = places
    upper = cells[top][left] * (1 - across) + cells[top][right] * across
    lower = cells[bottom][left] * (1 - across) + cells[bottom][right] * across
    return upper * (1 - down) + lower * down


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_resampled_equals_a_plain_python_reference(leading):
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(*leading, 2, 3, 5, generator=generator)
    picture = torch.tensor([1, 0, 1, 1])
    centre = torch.rand(4, 7, 2, generator=generator) * 1.2 - 0.1  # some beyond the border
    centre[1, 5:] = torch.nan
    centre[2, 0] = torch.tensor([0.0, 1.0])
    got = resampled(maps, picture, centre)
    assert got.shape == (*leading, 4, 7)
    flat, out = maps.reshape(-1, 2, 3, 5), got.reshape(-1, 4, 7)
    for i in range(len(flat)):
        for view in range(4):
            cells = flat[i, picture[view]].tolist()
            for n in range(7):
                row, column = centre[view, n].tolist()
                want = 0.0 if math.isnan(row) else resample_point(cells, row, column)
                assert out[i, view, n].item() == pytest.approx(want, abs=1e-6)


def test_resampled_onto_the_same_grid_changes_nothing():
    maps = torch.rand(2, 3, 5)
    rows, columns = torch.meshgrid((torch.arange(3) + 0.5) / 3, (torch.arange(5) + 0.5) / 5, indexing="ij")
    centre = torch.stack([rows, columns], -1).flatten(0, 1).expand(2, 15, 2)
    assert (resampled(maps, torch.arange(2), centre) - maps.flatten(1)).abs().max() <= 1e-6


def test_a_bright_cell_of_the_map_lights_up_the_token_under_it():
    maps = torch.zeros(1, 4, 4)
    maps[0, 1, 2] = 1
    centre = torch.tensor([[[(i + 0.5) / 8, (j + 0.5) / 8] for i in range(8) for j in range(8)]])
    lit = resampled(maps, torch.zeros(1, dtype=torch.long), centre).view(8, 8)
    assert {(int(i), int(j)) for i, j in (lit > 0.5).nonzero()} == {(2, 4), (2, 5), (3, 4), (3, 5)}
