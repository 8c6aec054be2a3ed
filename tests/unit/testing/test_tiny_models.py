import functools
from contextlib import suppress

import numpy as np
import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vtcframe.testing import flash
from vtcframe.testing.families import BACKBONES, FLASH, MIXED, RAGGED_VIDEO, VIDEO, samples_of
from vtcframe.testing.flash import attention, emulated_flash
from vtcframe.testing.published import PUBLISHED, on_meta
from vtcframe.testing.samples import SAMPLES, draw, film, make_inputs

CLOSE = 5e-5  # logits of some units, float32: machines round otherwise
GREEDY = {"do_sample": False, "max_new_tokens": 4}
CASES = [(family, name) for family in BACKBONES for name in samples_of(family)]


@functools.cache
def built(family, attention="sdpa"):
    return BACKBONES[family](attention)


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def apart(a, b, inputs):
    """The largest difference of logits at tokens; what stands at padding means nothing."""
    return (a - b)[inputs["attention_mask"].bool()].abs().max().item()


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
    wanted = {model.config.image_token_id, getattr(model.config, "video_token_id", None)}
    return [sum(i in wanted for i in row) for row in ids.tolist()]


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


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "name"), [case for case in CASES if case[0] in FLASH])
def test_emulated_flash_answers_as_sdpa(family, name, side):
    model, processor = built(family)
    inputs = make_inputs(processor, samples_of(family)[name], side)
    want, answer = logits(model, inputs), model.generate(**inputs, **GREEDY)
    with emulated_flash(model):
        got, again = logits(model, inputs), model.generate(**inputs, **GREEDY)
    assert apart(want, got, inputs) <= CLOSE
    # Padded on the right, generate asks a padding token first: sdpa lets it look around, FlashAttention leaves it out.
    whole = inputs["attention_mask"].bool().all(1) if side == "right" else slice(None)
    assert torch.equal(answer[whole], again[whole])


def test_flash_cannot_say_that_pictures_of_gemma_3_see_both_ways():
    model, processor = built("gemma3")
    inputs = make_inputs(processor, SAMPLES["one"])
    with emulated_flash(model):
        assert apart(logits(built("gemma3")[0], inputs), logits(built("gemma3", "eager")[0], inputs), inputs) > 1e-2


@pytest.mark.parametrize("family", sorted(FLASH))
def test_emulated_flash_reaches_every_attention_module_as_flash_attention_would(family, monkeypatch):
    model, processor = built(family)
    calls = []

    def spy(module, query, key, value, attention_mask, **options):
        calls.append((module, attention_mask, options.get("cu_seq_lens_q")))
        return attention(module, query, key, value, attention_mask, **options)

    monkeypatch.setattr(flash, "attention", spy)
    inputs = make_inputs(processor, SAMPLES["ragged one"])
    with emulated_flash(model):
        logits(model, inputs)
    language = [module for module in model.get_decoder().modules() if type(module).__name__.endswith("Attention")]
    assert [module for module, *_ in calls][-len(language) :] == language
    for module, mask, bounds in calls:
        if module in language:
            assert torch.equal(mask, inputs["attention_mask"].bool())
            assert bounds is None
        elif "image_grid_thw" in inputs or family == "mistral3":
            assert bounds is not None  # pictures are packed
    towers = [module for module, *_ in calls if module not in language]
    assert len(towers) == len(set(towers)) == 4


def state(model):
    kernels = [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]
    return kernels, model.config.text_config._attn_implementation, dict(ALL_ATTENTION_FUNCTIONS._local_mapping)


@pytest.mark.parametrize("family", sorted(FLASH))
@pytest.mark.parametrize("raising", [False, True])
def test_emulated_flash_leaves_nothing_behind(family, raising):
    model, _ = BACKBONES[family]()
    before = state(model)
    assert set(before[0]) == {"sdpa"}
    with suppress(KeyError), emulated_flash(model):
        assert set(state(model)[0]) == {"flash_attention_2"}
        if raising:
            raise KeyError
    assert state(model) == before


def test_emulated_flash_nests_and_gives_back_what_stood_in_the_registry(monkeypatch):
    model, _ = BACKBONES["qwen2_vl"]()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flash_attention_2", len)
    before = state(model)
    with emulated_flash(model):
        inside = state(model)
        with emulated_flash(model):
            pass
        assert state(model) == inside != before
    assert state(model) == before


class Module:
    is_causal = True


def drawn(batch=1, queries=7, keys=7, heads=4, groups=2):
    generator = torch.Generator().manual_seed(0)
    shapes = (heads, queries), (groups, keys), (groups, keys)
    return [torch.randn(batch, h, n, 8, generator=generator) for h, n in shapes]


def twin(query, key, value, sees):
    """[B, Q, H, d] by plain loops; `sees(b, q, k)` numbers queries as the last keys."""
    batch, heads, queries, width = query.shape
    out = torch.zeros(batch, queries, heads, width)
    for b in range(batch):
        for h in range(heads):
            for q in range(queries):
                seen = [k for k in range(key.shape[2]) if sees(b, q + key.shape[2] - queries, k)]
                if seen:
                    of = h * key.shape[1] // heads
                    paid = (key[b, of, seen] @ query[b, h, q] * width**-0.5).softmax(0)
                    out[b, q, h] = paid @ value[b, of, seen]
    return out


MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])


@pytest.mark.parametrize(
    ("options", "sees"),
    [
        ({}, lambda b, q, k: k <= q),
        ({"is_causal": False}, lambda b, q, k: True),
        ({"sliding_window": 3}, lambda b, q, k: q - 3 < k <= q),
        ({"sliding_window": 7}, lambda b, q, k: k <= q),
        ({"sliding_window": 3, "is_causal": False}, lambda b, q, k: abs(q - k) < 3),
        ({"attention_mask": MASK}, lambda b, q, k: k <= q and MASK[b, k] and MASK[b, q]),
        ({"attention_mask": MASK, "is_causal": False}, lambda b, q, k: MASK[b, k] and MASK[b, q]),
        ({"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]] * 2)}, lambda b, q, k: k <= q),  # a batch is not packed
    ],
)
def test_the_kernel_lets_a_query_see_what_flash_attention_does(options, sees):
    query, key, value = drawn(batch=2)
    got, weights = attention(Module(), query, key, value, options.pop("attention_mask", None), **options)
    assert weights is None
    assert torch.allclose(got, twin(query, key, value, sees), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"cu_seq_lens_q": torch.tensor([0, 3, 7]), "cu_seq_lens_k": torch.tensor([0, 3, 7])},
        {"position_ids": torch.tensor([[4, 5, 6, 4, 5, 6, 7]])},
    ],
)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 2])
def test_packed_sequences_do_not_see_each_other(options, causal, window):
    query, key, value = drawn()

    def sees(b, q, k):
        return (q < 3) == (k < 3) and (k <= q or not causal) and (window is None or abs(q - k) < window)

    got, _ = attention(Module(), query, key, value, None, is_causal=causal, sliding_window=window, **options)
    assert torch.allclose(got, twin(query, key, value, sees), atol=1e-6)


def test_positions_with_gaps_are_one_sequence():
    query, key, value = drawn()
    got, _ = attention(Module(), query, key, value, None, position_ids=torch.tensor([[0, 1, 4, 5, 9, 10, 11]]))
    assert torch.allclose(got, twin(query, key, value, lambda b, q, k: k <= q), atol=1e-6)


def test_a_decoded_token_sees_the_whole_cache_but_no_padding():
    query, key, value = drawn(batch=2, queries=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 1]])
    got, _ = attention(Module(), query, key, value, mask, position_ids=torch.tensor([[4], [3]]))
    assert torch.allclose(got, twin(query, key, value, lambda b, q, k: mask[b, k]), atol=1e-6)


@pytest.mark.parametrize(
    ("error", "says", "options"),
    [
        (TypeError, r"shape \(1, 1, 7, 7\)", {"attention_mask": torch.ones(1, 1, 7, 7)}),
        (NotImplementedError, "softcap=30", {"softcap": 30.0}),
        (
            NotImplementedError,
            "cu_seq_lens_k differ",
            {"cu_seq_lens_q": torch.tensor([0, 3, 7]), "cu_seq_lens_k": torch.tensor([0, 4, 7])},
        ),
    ],
)
def test_the_kernel_refuses_what_it_does_not_emulate(error, says, options):
    with pytest.raises(error, match=says):
        attention(Module(), *drawn(), options.pop("attention_mask", None), **options)


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
