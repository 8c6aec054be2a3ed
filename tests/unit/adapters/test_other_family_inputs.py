"""Further families of backbones: alignment, auxiliary encoders and errors for wrong inputs."""

import pytest
import torch
from PIL import Image
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from support.other_families import FAMILIES, built, calls, members, reference_reading, samples_by_name
from vtcframe import RandomPruner
from vtcframe.adapters.auxiliary_evidence import _original_images
from vtcframe.adapters.base import adapter_for
from vtcframe.core.needs import AttentionRows
from vtcframe.inference.compressed import compress
from vtcframe.testing.laws.adapters import inputs_for
from vtcframe.testing.tiny_models.samples import SAMPLES, make_inputs


def silent(module, query, key, value, *args, **kwargs):
    return torch.zeros_like(query).transpose(1, 2), None


def bright_square(height, width, at=None):
    """A grey picture, with a bright square of 4 x 4 pixels around `at` (row, column)."""
    picture = Image.new("RGB", (width, height), (90, 90, 90))
    if at is not None:
        picture.paste((250, 240, 20), (at[1] - 2, at[0] - 2, at[1] + 2, at[0] + 2))
    return picture


def lit(family, samples, blank):
    """Return the layout, and [V, N] whether its tokens differ from those of the blank samples."""
    model, processor = built(family)
    evidence = [adapter_for(model).observe(make_inputs(processor, batch)) for batch in (samples, blank)]
    assert torch.equal(evidence[0].layout.column, evidence[1].layout.column)
    return evidence[0].layout, (evidence[0].tokens != evidence[1].tokens).any(-1)


def covering(layout, image, at):
    """[V, N] the tokens of a picture, or of one frame of it, whose cell covers the place (row, column), 0..1."""
    size = layout.grid.amax(1) + 1
    half = (layout.box[:, 2:] - layout.box[:, :2]) / size / 2
    inside = ((layout.centre - torch.tensor(at)).abs() < half[:, None]).all(-1)
    return inside & layout.valid & (layout.image == image)[:, None]


@pytest.mark.parametrize(
    ("family", "height", "width", "views"),
    [
        ("idefics3", 56, 112, 3),
        ("idefics3", 112, 56, 3),
        ("idefics3", 112, 112, 5),
        ("smolvlm", 112, 112, 5),
        ("gemma3", 56, 56, 1),
        ("glm4v", 56, 112, 1),
        ("glm4v", 84, 56, 1),
        ("llava_next_video", 112, 112, 5),
    ],
)
def test_a_bright_patch_lights_up_the_tokens_that_cover_it(family, height, width, views, monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", silent)
    other = bright_square(56, 56, (14, 42))
    text = "USER : <image> and <image> ?"
    blank = bright_square(height, width)
    step = 14 if family == "llava_next_video" else 28  # pixels of a token, in a tile
    for row in range(step // 2, height, step):
        for column in range(step // 2, width, step):
            picture = bright_square(height, width, (row, column))
            for nth in range(2):
                order = [other, picture] if nth else [picture, other]
                none = [other, blank] if nth else [blank, other]
                layout, changed = lit(family, [(text, order)], [(text, none)])
                assert int((layout.image == nth).sum()) == views
                want = covering(layout, nth, (row / height, column / width))
                assert torch.equal(changed, want)
                assert int(want.sum()) == (2 if views > 1 else 1)  # in the overview too


@pytest.mark.parametrize(("family", "frames"), [("llava_next_video", 1), ("glm4v", 2)])
def test_a_bright_patch_in_a_frame_lights_up_the_token_that_covers_it(family, frames, monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", silent)
    size = 56 if family == "llava_next_video" else 84
    blank, text = [bright_square(56, size)] * 4, "USER : <video> ?"
    for at in range(4):
        for row in range(14, 56, 28):
            for column in range(14, size, 28):
                video = [*blank[:at], bright_square(56, size, (row, column)), *blank[at + 1 :]]
                samples = [(text, [blank]), (text, [video])]
                layout, changed = lit(family, samples, [(text, [blank])] * 2)
                want = covering(layout, 0, (row / 56, column / size))
                want &= ((layout.frame == at // frames) & (layout.sample == 1))[:, None]
                assert torch.equal(changed, want)
                assert int(want.sum()) == 1


def test_pictures_of_idefics_that_are_not_split_are_one_tile(monkeypatch):
    model, processor = built("idefics3")
    monkeypatch.setattr(processor.image_processor, "do_image_splitting", False)
    layout = adapter_for(model).observe(make_inputs(processor, SAMPLES["ragged several"])).layout
    assert layout.sample.tolist() == [0, 0, 1]
    assert layout.image.tolist() == [0, 1, 0]
    assert layout.box.tolist() == [[0, 0, 1, 1]] * 3


def test_a_tile_of_idefics_lies_where_it_was_cut():
    model, processor = built("idefics3")
    inputs = make_inputs(processor, SAMPLES["ragged several"])  # 60 x 60: 2 x 2 tiles; 160 x 80: 2 x 1; 60 x 64: 2 x 2
    layout = adapter_for(model).observe(inputs).layout
    assert layout.sample.tolist() == [0] * 8 + [1] * 5
    assert layout.image.tolist() == [0] * 5 + [1] * 3 + [0] * 5
    whole = [0, 0, 1, 1]
    square = [[0, 0, 0.5, 0.5], [0, 0.5, 0.5, 1], [0.5, 0, 1, 0.5], [0.5, 0.5, 1, 1], whole]
    assert layout.box.tolist() == [*square, [0, 0, 0.5, 1], [0.5, 0, 1, 1], whole, *square]


def auxiliary_inputs(family, samples):
    """Return the input of auxiliary encoders, [3, h, w] in 0..1 each, and the index of the picture of each view."""
    model, processor = built(family)
    adapter, inputs = adapter_for(model, processor), make_inputs(processor, samples)
    return _original_images(AttentionRows("cls", (-1,), tower="timm:any"), adapter, inputs, adapter.arrange(inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_auxiliary_encoders_get_each_picture(family):
    colours = [(200, 30, 90), (10, 240, 60), (120, 120, 250)]
    first, second, third = (Image.new("RGB", (112, 112), colour) for colour in colours)
    original_images, of = auxiliary_inputs(
        family, [("<image> and <image> ?", [first, second]), ("what ?", []), ("<image> ?", [third])]
    )
    assert [round(255 * float(x)) for p in original_images for x in p.mean((1, 2))] == pytest.approx(
        sum(colours, ()), abs=2
    )
    assert of.tolist() == sorted(of.tolist())
    assert set(of.tolist()) == {0, 1, 2}
    half = Image.new("RGB", (112, 112))
    half.paste((255, 255, 255), (0, 0, 56, 112))
    ((image,), _) = auxiliary_inputs(family, [("<image> ?", [half])])
    left, right = image.chunk(2, 2)
    assert left.mean() > 0.9
    assert right.mean() < 0.1


@pytest.mark.parametrize(("family", "reds"), [("llava_next_video", [0, 60, 120, 180]), ("glm4v", [30, 150])])
def test_auxiliary_encoders_get_each_frame(family, reds):
    original_images, of = auxiliary_inputs(
        family, [("<video> ?", [[Image.new("RGB", (56, 56), (60 * i, 20, 40)) for i in range(4)]])]
    )
    assert of.tolist() == list(range(len(reds)))
    assert [round(255 * float(p[0].mean())) for p in original_images] == pytest.approx(reds, abs=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_pictures_runs_untouched(family):
    model, processor = built(family)
    inputs = make_inputs(processor, [("USER : where are they ?", [])])
    with pytest.raises(ValueError, match="nothing to prune: call the model itself"):
        adapter_for(model).arrange(inputs)
    compressed = compress(model, RandomPruner(), tokens=3)
    answer = compressed.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert torch.equal(answer, model.generate(**inputs, max_new_tokens=2, do_sample=False))
    assert compressed.last is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cut", ["first", "half"])
def test_truncated_placeholders_are_an_error_that_names_the_cause(family, cut):
    model, processor = built(family)
    for samples in samples_by_name(family).values():
        inputs = inputs_for(model, processor, samples)
        visual = inputs["input_ids"] == model.config.image_token_id
        if "pixel_values_videos" in inputs and family == "llava_next_video":
            visual |= inputs["input_ids"] == model.config.video_token_id
        last = int(visual.any(0).nonzero().max())
        end = last if cut == "first" else last - int(visual.sum()) // 2
        for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
            if name in inputs:
                inputs[name] = inputs[name][:, :end]
        with pytest.raises(ValueError, match="model's own processor returned, not truncated"):
            adapter_for(model).observe(inputs)


@pytest.mark.parametrize(
    ("family", "samples", "missing", "says"),
    [
        ("llava_next_video", "one", "image_sizes", "inputs hold no image_sizes"),
        ("glm4v", "one", "image_grid_thw", "inputs hold no image_grid_thw"),
        ("glm4v", "video", "video_grid_thw", "inputs hold no video_grid_thw"),
        ("glm4v", "one", "mm_token_type_ids", "inputs hold no mm_token_type_ids"),
    ],
)
def test_a_missing_output_of_the_processor_is_named(family, samples, missing, says):
    model, processor = built(family)
    inputs = make_inputs(processor, SAMPLES[samples])
    del inputs[missing]
    with pytest.raises(ValueError, match=says):
        compress(model, RandomPruner(), tokens=2).generate(**inputs)


def test_glm_refuses_images_and_videos_in_one_batch():
    model, processor = built("glm4v")
    inputs = make_inputs(processor, SAMPLES["image and video"])
    with pytest.raises(ValueError, match="images and videos in separate batches"):
        compress(model, RandomPruner(), tokens=2).generate(**inputs)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"llava_next_video"}))
def test_a_tower_without_a_class_token_names_the_proxies(family):
    model, processor = built(family)
    with pytest.raises(ValueError, match="it has no class token"):
        adapter_for(model).observe(make_inputs(processor, SAMPLES["one"]), [AttentionRows("cls", (-1,))])


@pytest.mark.parametrize("query", ["mean", "received"])
def test_pictures_packed_in_one_sequence_have_separate_rows(query, monkeypatch):
    model, processor = built("mistral3")
    inputs = make_inputs(processor, SAMPLES["ragged several"])
    need = AttentionRows(query, (0, -1))
    evidence = adapter_for(model).observe(inputs, [need])
    every = calls("mistral3", inputs, monkeypatch)
    sizes = (inputs["image_sizes"] // 14).tolist()
    for at, block in enumerate((0, 3)):
        ((q, k, weights),) = every[block]
        start = 0
        for v, (rows, columns) in enumerate(sizes):
            span = slice(start, start + rows * columns)
            start += rows * columns
            tokens = members("mistral3", columns, rows * columns)
            want = reference_reading(need, q[:, span], k[:, span], weights[:, span, span], tokens, 0)
            assert torch.allclose(evidence[need][at, v, :, : len(tokens)], want, atol=1e-6)
            assert weights[:, span, : span.start].sum() == 0


@pytest.mark.parametrize(("height", "width"), [(56, 112), (84, 56), (112, 112)])
def test_pixtral_lights(height, width, monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", silent)
    other = bright_square(56, 84, (14, 42))
    text = "USER : <image> and <image> ?"
    blank = bright_square(height, width)
    for row in range(14, height, 28):
        for column in range(14, width, 28):
            picture = bright_square(height, width, (row, column))
            for nth in range(2):
                order = [other, picture] if nth else [picture, other]
                none = [other, blank] if nth else [blank, other]
                layout, changed = lit("mistral3", [(text, order)], [(text, none)])
                want = covering(layout, nth, (row / height, column / width))
                assert torch.equal(changed, want)
                assert int(want.sum()) == 1
