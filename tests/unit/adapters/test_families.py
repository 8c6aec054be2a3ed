"""Every family of backbones: alignment, proxies for [CLS], positions."""

import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from support.models import SERVED, backbone
from vtcframe import (
    AttentionKeys,
    AttentionRows,
    Budget,
    ClassToken,
    HiddenStates,
    RandomPruner,
    VtcCls,
    adapter_for,
    compress,
)
from vtcframe.adapters.arrangement import Arrangement
from vtcframe.core.pipeline import gather
from vtcframe.testing.laws.adapters import inputs_for
from vtcframe.testing.laws.alignment import check_aligned
from vtcframe.testing.tiny_models.flash import emulated_flash
from vtcframe.testing.tiny_models.other_families import samples_of
from vtcframe.testing.tiny_models.samples import SAMPLES

ALIGNED = {  # size of a picture (height, width), or of the frames of a video
    "llava": [((56, 56), 0), ((80, 160), 0), ((160, 80), 0), ((30, 100), 0)],
    "llava_next": [((112, 112), 0), ((112, 90), 0), ((70, 150), 0), ((160, 80), 0), ((60, 60), 0)],
    "llava_onevision": [((56, 112), 0), ((112, 112), 0), ((112, 90), 0), ((300, 280), 0), ((56, 56), 4)],
    "internvl": [((56, 112), 0), ((112, 56), 0), ((112, 112), 0), ((90, 200), 0), ((56, 168), 0), ((56, 56), 3)],
    "video_llava": [((56, 56), 0), ((80, 160), 0), ((56, 56), 4), ((80, 120), 3)],
    "qwen2_vl": [((56, 112), 0), ((140, 84), 0), ((90, 200), 0), ((56, 84), 4)],
    "qwen2_5_vl": [((56, 112), 0), ((140, 84), 0), ((168, 140), 0), ((84, 140), 4)],
    "qwen3_vl": [((56, 112), 0), ((140, 84), 0), ((90, 200), 0), ((56, 84), 4)],
}


@pytest.mark.parametrize("family", ALIGNED)
def test_a_bright_patch_lights_up_exactly_the_tokens_that_cover_it(family):
    model, processor = backbone(family)
    for size, frames in ALIGNED[family]:
        check_aligned(model, processor, size, frames, reach=int(family == "llava_onevision" and size != (56, 112)))


@pytest.mark.parametrize(
    ("family", "wrong"), [("qwen2_5_vl", "columns"), ("llava_next", "columns"), ("internvl", "box")]
)
def test_alignment_fails_for_a_layout_with_wrong_places(family, wrong, monkeypatch):
    model, processor = backbone(family)
    original_of = Arrangement.of.__func__

    def turned(cls, *arguments):
        arrangement = original_of(cls, *arguments)
        layout = arrangement.layout
        if wrong == "box":
            moved = replace(layout, box=layout.box.roll(1, 0), centre=None)
        else:
            moved = replace(layout, centre=layout.centre.flip(-1))
        return replace(arrangement, layout=moved)

    monkeypatch.setattr(Arrangement, "of", classmethod(turned))
    with pytest.raises(AssertionError, match="was lit"):
        check_aligned(model, processor, (56, 112) if family == "internvl" else (112, 84))


def recorded(family, samples):
    """Run an eager tower and record each call of its attention: {module: [(query, key, weights)]}, and the inputs."""
    model, processor = backbone(family, "eager")
    inputs, calls = inputs_for(model, processor, SAMPLES[samples]), {}
    adapter = adapter_for(model)
    files = {
        sys.modules[type(module).__module__]
        for m in adapter.modalities_in(inputs)
        for module in adapter.tower(m, inputs).attention
    }
    with pytest.MonkeyPatch.context() as patch:
        for file in files:
            original = file.eager_attention_forward

            def attention(module, query, key, *args, original=original, **options):
                out, weights = original(module, query, key, *args, **options)
                calls.setdefault(module, []).append((query, key, weights))
                return out, weights

            patch.setattr(file, "eager_attention_forward", attention)
        adapter.observe(inputs)
    return adapter, inputs, calls


def raster(grid, window):
    """Places of the merged tokens of (t, rows, columns) in the order of Qwen2.5's windows."""
    t, rows, columns = grid
    tokens = [(f, y, x) for f in range(t) for y in range(rows) for x in range(columns)]
    ordered = sorted(tokens, key=lambda at: (at[0], at[1] // window, at[2] // window, at[1] % window, at[2] % window))
    return [tokens.index(token) for token in ordered]


@pytest.mark.parametrize("attention", ["sdpa", "flash"])
@pytest.mark.parametrize("samples", ["ragged several", "videos"])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_proxies_of_qwen_equal_a_reference_from_eager_weights(family, samples, attention):
    adapter, inputs, calls = recorded(family, samples)
    modality = "video" if samples == "videos" else "image"
    tower = adapter.tower(modality, inputs)
    module, layers = tower.feeding[-1], (-1,)
    grids = [(t, h // 2, w // 2) for t, h, w in inputs[f"{modality}_grid_thw"].tolist()]
    received, mean = [], []
    for query, key, weights in calls[module]:  # one call a picture or slice
        received += weights[0].double().mean(1).unflatten(-1, (-1, 4)).mean(-1).T.tolist()  # [tokens][heads]
        pooled = key[0].double().unflatten(1, (-1, 4)).mean(2)
        logits = (query[0].double().mean(1)[:, None] * pooled).sum(-1) * query.shape[-1] ** -0.5
        mean += logits.softmax(-1).T.tolist()
    if family == "qwen2_5_vl":
        window, at = 2, 0
        assert tower.module.window_size == window * 2 * tower.module.patch_size
        for t, h, w in grids:
            for rows in (received, mean):
                part = rows[at : at + t * h * w]
                for place, row in zip(raster((t, h, w), window), part, strict=True):
                    rows[at + place] = row
            at += t * h * w
    model, _ = backbone(family)
    needs = AttentionRows("received", layers), AttentionRows("mean", layers), AttentionRows("proxy", layers)
    with emulated_flash(model) if attention == "flash" else nullcontext():
        evidence = adapter_for(model).observe(inputs, needs)
    valid = evidence.layout.valid
    for need, want in zip(needs, (received, mean, mean), strict=True):
        got = evidence[need][0].transpose(1, 2)[valid]  # views come in the order of their pictures
        torch.testing.assert_close(got.double(), torch.tensor(want, dtype=torch.float64), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("query", ["cls", "received"])
def test_rows_of_internvl_are_the_mean_over_squares_of_patches(query):
    adapter, inputs, calls = recorded("internvl", "ragged several")
    weights = calls[adapter.tower("image", inputs).attention[-2]][0][2].double()  # [tiles, H, 17, 17]
    row = weights[:, :, 0] if query == "cls" else weights[:, :, 1:].mean(2)
    want = torch.zeros(*row.shape[:2], 4, dtype=torch.float64)
    for y in range(4):
        for x in range(4):
            want[..., y // 2 * 2 + x // 2] += row[..., 1 + y * 4 + x] / 4
    model, _ = backbone("internvl")
    need = AttentionRows(query, (-2,))
    torch.testing.assert_close(
        adapter_for(model).observe(inputs, (need,))[need][0].double(), want, atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("family", ["video_llava", "llava_onevision"])
def test_rows_of_video_frames_go_the_way_of_their_features(family):
    adapter, inputs, calls = recorded(family, "videos")
    tower = adapter.tower("video", inputs)
    weights = calls[tower.feeding[-1]][0][2].double()  # [frames, H, K, K]
    query = "cls" if family == "video_llava" else "received"
    want = weights[:, :, 0, 1:] if query == "cls" else weights.mean(2)
    if family == "llava_onevision":  # 4 x 4 patches become 2 x 2 tokens, each the mean of four
        want = want.unflatten(-1, (2, 2, 2, 2)).mean((-1, -3)).flatten(-2)
    model, _ = backbone(family)
    need = AttentionRows(query, (-1,))
    evidence = adapter_for(model).observe(inputs, (need,))
    torch.testing.assert_close(evidence[need][0].double(), want, atol=1e-6, rtol=1e-5)
    assert evidence.layout.frame.tolist() == [0, 1, 2, 3] * 2
    extra = evidence.structural
    assert len(extra.sample) == (8 if family == "video_llava" else 2)
    if family == "video_llava":  # a frame's [CLS] goes with its frame
        pruned = VtcCls(1)(evidence, Budget(1))
        spliced = adapter_for(model).splice(inputs, evidence, pruned)
        assert spliced["mm_encoder_outputs"]["video"].pooler_output.shape[:2] == (4, 1)  # two tokens and their [CLS]


@pytest.mark.parametrize("place", [0, 7, 15])
def test_the_class_token_of_a_frame_stays_with_any_token_of_its_frame(place):
    model, processor = backbone("video_llava")
    adapter, inputs = adapter_for(model), inputs_for(model, processor, SAMPLES["video"])
    evidence = adapter.observe(inputs)
    kept = torch.zeros_like(evidence.layout.valid)
    kept[1, place] = True
    pruned = gather(kept, kept.sum(1), kept.float(), evidence)
    spliced = adapter.splice(inputs, evidence, pruned)
    with torch.no_grad():
        features = model.base_model.get_video_features(inputs["pixel_values_videos"]).pooler_output[1]
    assert torch.equal(spliced["mm_encoder_outputs"]["video"].pooler_output[:, 0], features[[0, place + 1]])


def test_class_tokens_are_those_of_their_views_where_images_and_videos_mix():
    model, processor = backbone("video_llava")
    inputs = inputs_for(model, processor, SAMPLES["image and video"])
    evidence = adapter_for(model).observe(inputs, (ClassToken(), HiddenStates()))
    with torch.no_grad():
        films, images = (
            encode(pixels).hidden_states[-2]
            for encode, pixels in (
                (model.base_model.get_video_features, inputs["pixel_values_videos"]),
                (model.base_model.get_image_features, inputs["pixel_values_images"]),
            )
        )
    want = torch.cat([films, images])  # the video stands first in the first prompt, the second has a picture only
    assert torch.equal(evidence[ClassToken()], want[:, 0])
    assert torch.equal(evidence[HiddenStates()], want[:, 1:])


def test_the_newline_behind_a_onevision_video_always_stays():
    model, processor = backbone("llava_onevision")
    adapter, inputs = adapter_for(model), inputs_for(model, processor, SAMPLES["video"])
    evidence = adapter.observe(inputs)
    for v in range(4):
        kept = torch.zeros_like(evidence.layout.valid)
        kept[v, 1] = True
        spliced = adapter.splice(inputs, evidence, gather(kept, kept.sum(1), kept.float(), evidence))
        want = torch.stack([evidence.tokens[v, 1], model.base_model.image_newline])
        assert torch.equal(spliced["mm_encoder_outputs"]["video"].pooler_output[:, 0], want)


def test_siglip_pooling_heads_are_read_where_the_checkpoint_has_one():
    from transformers import LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    llava, processor = backbone("llava")
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4)
    vision = SiglipVisionConfig(**sizes, image_size=56, patch_size=14)
    config = LlavaConfig(
        vision_config=vision,
        text_config=llava.config.text_config,
        image_token_index=llava.config.image_token_id,
        vision_feature_layer=-2,  # the head reads the last block's output all the same
        vision_feature_select_strategy="full",
    )
    model = LlavaForConditionalGeneration(config).eval()
    inputs, calls = inputs_for(model, processor, SAMPLES["several"]), []
    head = model.base_model.vision_tower.head
    hook = head.attention.register_forward_pre_hook(lambda module, args: calls.append(args))
    need = AttentionRows("head", (-1,))
    with torch.no_grad():
        model.base_model.vision_tower(inputs["pixel_values"])
    evidence = adapter_for(model).observe(inputs, (need,))
    hook.remove()
    with torch.no_grad():
        _, want = head.attention(*calls[0], need_weights=True, average_attn_weights=False)
    torch.testing.assert_close(evidence[need][0], want[:, :, 0], atol=1e-6, rtol=1e-5)
    clip, _ = backbone("llava")
    with pytest.raises(ValueError, match="no attention-pooling head"):
        adapter_for(clip).observe(inputs, (need,))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("samples", ["ragged several", "ragged video", "image and video"])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_m_rope_positions_are_the_full_ones_at_the_kept_columns(family, samples, side):
    model, processor = backbone(family)
    inputs = inputs_for(model, processor, SAMPLES[samples], side)
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids")
    grids = {name: inputs[name] for name in names if name in inputs}
    full, _ = model.base_model.get_rope_index(inputs["input_ids"], attention_mask=inputs["attention_mask"], **grids)
    adapter = adapter_for(model)
    evidence = adapter.observe(inputs)
    pruned = RandomPruner()(evidence, Budget(4))
    spliced = adapter.splice(inputs, evidence, pruned)
    visual = adapter.prompt(inputs).visual
    for p in range(len(visual)):
        real = inputs["attention_mask"][p].bool()
        kept = set(pruned.sequence(p)[1].tolist())
        columns = [c for c in range(int(real.sum())) if not visual[p, c] or c in kept]
        got = spliced["position_ids"][:, p, spliced["attention_mask"][p].bool()]
        assert torch.equal(got[1:], full[:, p, real][:, columns])
        assert got[0].tolist() == list(range(len(columns)))  # a place in the text, as generate counts it
    axes = adapter.splice(inputs | {"position_ids": full + 7}, evidence, pruned)["position_ids"]  # the caller's own
    real = spliced["attention_mask"].bool()
    assert torch.equal(axes[0], spliced["position_ids"][0])
    assert torch.equal(axes[1:, real], spliced["position_ids"][1:, real] + 7)
    with pytest.raises(ValueError, match=r"M-RoPE.*use 'original'"):
        adapter.splice(inputs, evidence, pruned, "compact")


def test_qwen3_adds_to_each_kept_token_what_deepstack_adds_to_it():
    model, processor = backbone("qwen3_vl")
    adapter, inputs = adapter_for(model), inputs_for(model, processor, SAMPLES["image and video"])
    evidence = adapter.observe(inputs)
    assert evidence.deepstack.shape == (2, *evidence.tokens.shape)
    with torch.no_grad():
        levels = model.base_model.get_image_features(
            inputs["pixel_values"], inputs["image_grid_thw"]
        ).deepstack_features
    views = [v for v in range(len(evidence.layout.sample)) if evidence.layout.count[v] == len(levels[0][0])]
    assert any(torch.equal(evidence.deepstack[0, v][evidence.layout.valid[v]], levels[0][0]) for v in views)
    joined = evidence.join_views()
    at = evidence.layout.column[0, 1]
    row = joined.layout.column[evidence.layout.sample[0]] == at
    assert torch.equal(joined.deepstack[:, evidence.layout.sample[0], row][:, 0], evidence.deepstack[:, 0, 1])


def test_beams_over_ragged_counts_are_right_where_the_model_wants_one_tensor():
    """Sample by sample and in a batch, for the models whose features of one tensor beams would mix up."""
    for family, samples in (
        ("internvl", "ragged several"),
        ("video_llava", "image and video"),
        ("llava_onevision", "videos"),
    ):
        model, processor = backbone(family)
        compressed = compress(model, RandomPruner(), ratio=0.4)
        options = {"num_beams": 4, "num_return_sequences": 2, "do_sample": False, "max_new_tokens": 5}
        inputs = inputs_for(model, processor, SAMPLES[samples])
        together = compressed.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        counts = [n for n in compressed.last.tokens_after.tolist() if n]
        assert len(set(counts)) > 1 or family == "llava_onevision"
        for p, sample in enumerate(SAMPLES[samples]):
            if not sample[1]:
                continue
            single = inputs_for(model, processor, [sample])
            alone = compressed.generate(**single, **options)[:, single["input_ids"].shape[1] :]
            assert torch.equal(together[2 * p : 2 * p + 2, : alone.shape[1]], alone)


def test_windowed_blocks_are_refused_where_weights_must_compare():
    model, processor = backbone("qwen2_5_vl")
    inputs = inputs_for(model, processor, SAMPLES["one"])
    with pytest.raises(ValueError, match=r"attends within windows only.*use blocks='feeding'"):
        adapter_for(model).observe(inputs, (AttentionRows("received", (0,), blocks="tower"),))
    adapter_for(model).observe(inputs, (AttentionKeys((0,), blocks="tower"),))
    with pytest.raises(ValueError, match="it has no class token"):
        adapter_for(model).observe(inputs, (AttentionRows("cls", (-1,)),))
    with pytest.raises(ValueError, match="it has no class token"):
        adapter_for(model).observe(inputs, (ClassToken(),))


@pytest.mark.parametrize("family", SERVED)
def test_features_are_what_the_projector_reads(family):
    model, processor = backbone(family)
    for samples in ("several", "video"):
        if samples not in samples_of(family) or family in ("llava_onevision", "llava_next_video"):
            continue  # their packing resamples behind the projector
        evidence = adapter_for(model).observe(inputs_for(model, processor, SAMPLES[samples]), (HiddenStates(),))
        with torch.no_grad():
            projected = evidence.project(evidence[HiddenStates()])
        valid = evidence.layout.valid
        torch.testing.assert_close(projected[valid], evidence.tokens[valid], atol=1e-5, rtol=1e-5)
