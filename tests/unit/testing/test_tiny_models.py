"""The tiny models of the testing kit."""

import numpy as np
import pytest
import torch

from support.tiny_models import CASES, CLOSE, GREEDY, apart, built, logits
from vtcframe.testing.tiny_models.other_families import BACKBONES, MIXED, RAGGED_VIDEO, VIDEO, samples_of
from vtcframe.testing.tiny_models.published import PUBLISHED, on_meta
from vtcframe.testing.tiny_models.samples import SAMPLES, draw, film, make_inputs


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_backbone_answers_each_kind_of_sample(family, name, side):
    model, processor = built(family)
    inputs = make_inputs(processor, samples_of(family)[name], side)
    assert all(isinstance(value, torch.Tensor) for value in inputs.values())
    assert logits(model, inputs).isfinite().all()
    answer = model.generate(**inputs, **GREEDY)
    assert torch.equal(answer[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    assert answer.shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize("family", BACKBONES)
def test_a_backbone_is_of_its_family_and_the_same_for_the_same_seed(family):
    model, _ = built(family)
    assert model.config.model_type == family
    assert not model.training
    same, other = BACKBONES[family]()[0], BACKBONES[family](seed=1)[0]
    weights = [dict(m.named_parameters()) for m in (model, same, other)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)


@pytest.mark.parametrize("family", BACKBONES)
def test_a_backbone_runs_with_the_attention_asked_for(family):
    eager, processor = built(family, "eager")
    assert {eager.config._attn_implementation, eager.config.text_config._attn_implementation} == {"eager"}
    for samples in samples_of(family).values():
        inputs = make_inputs(processor, samples)
        assert apart(logits(eager, inputs), logits(built(family)[0], inputs), inputs) <= 1e-4


@pytest.mark.parametrize("family", BACKBONES)
def test_what_follows_depends_on_each_picture_and_only_on_those_of_its_sample(family):
    model, processor = built(family)
    (text, pictures), *rest = SAMPLES["ragged several"]
    before = logits(model, make_inputs(processor, [(text, pictures), *rest]))[:, -1]
    for at, picture in enumerate(pictures):
        others = [*pictures[:at], draw(picture.height, picture.width, 99), *pictures[at + 1 :]]
        after = logits(model, make_inputs(processor, [(text, others), *rest]))[:, -1]
        assert (before - after)[0].abs().max() > 1e-2
        assert (before - after)[1:].abs().max() <= CLOSE


@pytest.mark.parametrize("family", sorted(VIDEO))
def test_what_follows_depends_on_each_frame(family):
    model, processor = built(family)
    ((text, (frames,)),) = SAMPLES["video"]
    before = logits(model, make_inputs(processor, [(text, [frames])]))[:, -1]
    for at in range(len(frames)):
        others = [*frames[:at], draw(60, 90, 99), *frames[at + 1 :]]
        assert (before - logits(model, make_inputs(processor, [(text, [others])]))[:, -1]).abs().max() > 1e-2


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_sample_has_the_same_tokens_alone_and_in_a_batch(family, name, side):
    _, processor = built(family)
    inputs = make_inputs(processor, samples_of(family)[name], side)
    for row, mask, sample in zip(
        inputs["input_ids"], inputs["attention_mask"].bool(), samples_of(family)[name], strict=True
    ):
        assert torch.equal(row[mask], make_inputs(processor, [sample])["input_ids"][0])
        count = int(mask.sum())
        assert mask[-count:].all() if side == "left" else mask[:count].all()


def placeholders(family, samples):
    model, processor = built(family)
    ids = make_inputs(processor, samples)["input_ids"]
    visual_ids = {model.config.image_token_id, getattr(model.config, "video_token_id", None)}
    return [sum(i in visual_ids for i in row) for row in ids.tolist()]


@pytest.mark.parametrize(
    ("family", "wide", "square", "video"),
    [  # tokens of 70 x 150 and 60 x 64 pixels, and of 4 frames of 60 x 90
        ("llava", 16, 16, None),
        ("llava_next", 16 + 4 * (8 + 1), 16 + 8 * (8 + 1), None),
        ("llava_next_video", 16 + 4 * (8 + 1), 16 + 8 * (8 + 1), 4 * 4),
        ("llava_onevision", 16 + 4 * (8 + 1), 16 + 5 * (5 + 1), 4 * 4 + 1),  # 8 x 8 shrinks to 5 x 5
        ("video_llava", 16, 16, 4 * 17),
        ("internvl", 3 * 4, 4, 4 * 4),  # two tiles and a thumbnail, one tile
        ("qwen2_vl", 2 * 5, 2 * 2, 2 * 2 * 3),  # two temporal slices
        ("qwen2_5_vl", 2 * 5, 2 * 2, 2 * 2 * 3),
        ("qwen3_vl", 2 * 5, 2 * 2, 2 * 2 * 3),
        ("glm4v", 2 * 5, 2 * 2, 2 * 2 * 3),
        ("idefics3", 3 * 4, 5 * 4, None),
        ("gemma3", 4, 4, None),
        ("mistral3", 2 * 4, 3 * 3, None),
    ],
)
def test_pictures_and_videos_have_as_many_tokens_as_their_geometry_says(family, wide, square, video):
    assert placeholders(family, SAMPLES["ragged one"]) == [wide, 0, square]
    if video is not None:
        assert placeholders(family, SAMPLES["video"]) == [video]
    assert (video is not None) == (family in VIDEO)


def test_a_onevision_sample_of_several_pictures_has_one_tile_each():
    assert placeholders("llava_onevision", SAMPLES["several"]) == [2 * (16 + 1)]


def test_backbones_have_what_makes_their_family_hard():
    assert hasattr(built("internvl")[0].model.vision_tower.encoder.layer[0].attention.q_norm, "weight")
    vision = built("qwen2_5_vl")[0].config.vision_config
    inputs = make_inputs(built("qwen2_5_vl")[1], SAMPLES["one"])
    assert (inputs["image_grid_thw"][0, 1:] * vision.patch_size).max() > vision.window_size
    assert list(vision.fullatt_block_indexes) == [1, 3]
    assert list(built("qwen3_vl")[0].config.vision_config.deepstack_visual_indexes) == [0, 2]
    assert len(built("qwen3_vl")[0].model.visual.deepstack_merger_list) == 2
    assert "sliding_attention" in built("gemma3")[0].config.text_config.layer_types


@pytest.mark.parametrize("family", sorted(VIDEO - RAGGED_VIDEO))
def test_families_left_out_of_ragged_videos_do_not_take_them(family):
    with pytest.raises((ValueError, RuntimeError)):
        make_inputs(built(family)[1], SAMPLES["ragged video"])


@pytest.mark.parametrize("family", sorted(VIDEO - MIXED))
def test_families_left_out_of_mixed_batches_do_not_take_them(family):
    model, processor = built(family)
    with pytest.raises(ValueError, match="do not match"):
        logits(model, make_inputs(processor, SAMPLES["image and video"]))


@pytest.mark.parametrize("family", sorted(BACKBONES.keys() - VIDEO))
def test_a_video_for_a_family_of_pictures_is_an_error(family):
    with pytest.raises(ValueError, match=r"Processor takes no videos: give their frames as pictures"):
        make_inputs(built(family)[1], SAMPLES["video"])


@pytest.mark.parametrize("visuals", [[], [draw(60, 60), draw(60, 60)], [film(2, 60, 60)], [draw(60, 60)] * 3])
def test_a_text_that_does_not_match_its_visuals_is_an_error(visuals):
    with pytest.raises(ValueError, match="USER"):
        make_inputs(built("qwen2_vl")[1], [("USER : <image> what ?", visuals)])


def test_videos_and_pictures_may_not_be_swapped():
    with pytest.raises(ValueError, match="in their order"):
        make_inputs(built("qwen2_vl")[1], [("<video> and <image> ?", [draw(60, 60), film(2, 60, 60)])])


def test_frames_of_a_film_differ():
    first, second = film(2, 20, 30, 1)
    assert first.size == (30, 20)
    assert not np.array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize(
    ("name", "billions", "tower", "depth", "layers", "width"),
    [
        ("llava-hf/llava-1.5-7b-hf", 7.06, "vision_tower", 24, 32, 4096),
        ("llava-hf/llava-v1.6-vicuna-7b-hf", 7.06, "vision_tower", 24, 32, 4096),
        ("llava-hf/llava-onevision-qwen2-7b-ov-hf", 8.03, "vision_tower", 26, 28, 3584),
        ("LanguageBind/Video-LLaVA-7B-hf", 7.37, "video_tower", 24, 32, 4096),
        ("OpenGVLab/InternVL3-8B-hf", 7.94, "vision_tower", 24, 28, 3584),
        ("Qwen/Qwen2-VL-7B-Instruct", 8.29, "visual", 32, 28, 3584),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8.29, "visual", 32, 28, 3584),
        ("Qwen/Qwen3-VL-8B-Instruct", 8.77, "visual", 27, 36, 4096),
    ],
)
def test_a_published_model_has_the_size_it_was_published_with(name, billions, tower, depth, layers, width):
    model = on_meta(PUBLISHED[name]())
    weights = list(model.parameters())
    assert {weight.device.type for weight in weights} == {"meta"}
    assert sum(weight.numel() for weight in weights) / 1e9 == pytest.approx(billions, abs=0.005)
    modules = model.get_submodule(f"model.{tower}").modules()
    assert sum(type(module).__name__.endswith("Attention") for module in modules) == depth
    assert len(model.get_submodule("model.language_model.layers")) == layers
    assert model.lm_head.weight.shape == (model.config.text_config.vocab_size, width)


def test_every_published_configuration_is_tested():
    tested = {case[0] for case in test_a_published_model_has_the_size_it_was_published_with.pytestmark[0].args[1]}
    assert tested == PUBLISHED.keys()
