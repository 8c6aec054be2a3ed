"""Every family of backbones: published sizes, and errors for wrong inputs."""

import copy
import json

import pytest
import torch

from support.models import SERVED, backbone
from vtcframe import AttentionRows, Evidence, RandomPruner, VtcCls, adapter_for, compress
from vtcframe.errors import UsageError
from vtcframe.inference.checkpoint import Backbone
from vtcframe.testing import check_restored
from vtcframe.testing.laws.adapters import inputs_for
from vtcframe.testing.tiny_models.other_families import samples_of
from vtcframe.testing.tiny_models.published import PUBLISHED, on_meta
from vtcframe.testing.tiny_models.samples import SAMPLES


def ids_of(*runs):
    """A prompt: text, then runs of (placeholder, length), text between them."""
    row = [1]
    for placeholder, length in runs:
        row += [placeholder] * length + [5]
    return torch.tensor([row])


PIXELS = torch.zeros


CASES = {  # checkpoint -> inputs of one sample; blocks, blocks that feed; LLM layers; (rows, columns) of each view
    "llava-hf/llava-1.5-7b-hf": (
        {"pixel_values": PIXELS(1, 3, 336, 336)},
        [("image", 576)],
        (24, 23, 32),
        [(24, 24)],
    ),
    "llava-hf/llava-v1.6-vicuna-7b-hf": (
        {"pixel_values": PIXELS(1, 5, 3, 336, 336), "image_sizes": torch.tensor([[672, 672]])},
        [("image", 576 + 48 * 49)],
        (24, 23, 32),
        [(24, 24)] * 5,
    ),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": (
        {
            "pixel_values": PIXELS(1, 37, 3, 384, 384),
            "image_sizes": torch.tensor([[2304, 2304]]),
            "pixel_values_videos": PIXELS(1, 8, 3, 384, 384),
        },
        [("image", 729 + 81 * 82), ("video", 8 * 196 + 1)],
        (26, 26, 28),
        [(27, 27), (81, 81)] + [(14, 14)] * 8,
    ),
    "LanguageBind/Video-LLaVA-7B-hf": (
        {"pixel_values_videos": PIXELS(1, 8, 3, 224, 224)},
        [("video", 8 * 257)],
        (24, 23, 32),
        [(16, 16)] * 8,
    ),
    "OpenGVLab/InternVL3-8B-hf": (
        {"pixel_values": PIXELS(7, 3, 448, 448)},
        [("image", 7 * 256)],
        (24, 24, 28),
        [(16, 16)] * 7,
    ),
    "Qwen/Qwen2-VL-7B-Instruct": (
        {"pixel_values": PIXELS(34 * 46, 1176), "image_grid_thw": torch.tensor([[1, 34, 46]])},
        [("image", 17 * 23)],
        (32, 32, 28),
        [(17, 23)],
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": (
        {"pixel_values_videos": PIXELS(4 * 26 * 36, 1176), "video_grid_thw": torch.tensor([[4, 26, 36]])},
        [("video", 4 * 13 * 18)],
        (32, 4, 28),
        [(13, 18)] * 4,
    ),
    "Qwen/Qwen3-VL-8B-Instruct": (
        {"pixel_values": PIXELS(40 * 30, 1536), "image_grid_thw": torch.tensor([[1, 40, 30]])},
        [("image", 20 * 15)],
        (27, 27, 36),
        [(20, 15)],
    ),
}


def test_every_published_configuration_has_a_case():
    assert set(CASES) == set(PUBLISHED)


@pytest.mark.parametrize("checkpoint", CASES)
def test_a_published_configuration_is_known_by_modules_layers_and_token_grid(checkpoint):
    inputs, runs, (blocks, feeding, layers), grids = CASES[checkpoint]
    model = on_meta(PUBLISHED[checkpoint]())
    adapter = adapter_for(model)
    placeholders = [(getattr(model.config, f"{kind}_token_id"), length) for kind, length in runs]
    inputs = {"input_ids": ids_of(*placeholders), **inputs}
    layout = adapter.arrange(inputs).layout
    assert [tuple(v.tolist()) for v in layout.grid.amax(1) + 1] == grids
    assert int(layout.untouched) == sum(rows * columns for rows, columns in grids)
    assert len(adapter.llm_layers()) == layers
    for modality in adapter.modalities_in(inputs):
        tower = adapter.tower(modality, inputs)
        assert (len(tower.attention), len(tower.feeding)) == (blocks, feeding)
        assert all(module.config._attn_implementation for module in tower.attention)


@pytest.mark.parametrize("family", SERVED)
def test_a_text_only_batch_shows_nothing_and_a_truncated_prompt_is_an_error_saying_what_to_do(family):
    model, processor = backbone(family)
    adapter = adapter_for(model)
    text = inputs_for(model, processor, [("USER : where are they ?", [])])
    with pytest.raises(ValueError, match=r"inputs hold no pixel_values.*: call the model itself"):
        adapter.observe(text)
    compressed = compress(model, RandomPruner(), tokens=2)
    assert torch.equal(
        compressed.generate(**text, max_new_tokens=2, do_sample=False),
        model.generate(**text, max_new_tokens=2, do_sample=False),
    )
    assert compressed.last is None
    inputs = inputs_for(model, processor, SAMPLES["ragged several"])
    width = inputs["input_ids"].shape
    cut = {k: v[:, 8:] if v.shape == width else v for k, v in inputs.items()}
    with pytest.raises(ValueError, match=r"image placeholders, but the pictures make.*not truncated"):
        adapter.arrange(cut)


@pytest.mark.parametrize("family", sorted({"video_llava", "llava_onevision", "qwen2_vl", "qwen3_vl"} & set(SERVED)))
def test_a_video_without_frames_is_an_error(family):
    model, processor = backbone(family)
    inputs = inputs_for(model, processor, SAMPLES["video"])
    if "video_grid_thw" in inputs:
        none = {"video_grid_thw": inputs["video_grid_thw"] * torch.tensor([0, 1, 1])}
    else:
        none = {"pixel_values_videos": inputs["pixel_values_videos"][:, :0]}
    with pytest.raises(ValueError, match=r"videos \[0\] have no frames"):
        adapter_for(model).arrange(inputs | none)


@pytest.mark.parametrize("family", SERVED)
def test_a_budget_below_one_token_a_view_keeps_one_of_the_sample(family):
    model, processor = backbone(family)
    compressed = compress(model, VtcCls(1, "proxy"), tokens=1)
    for samples in ("several", "video"):
        if samples in samples_of(family):
            compressed.generate(**inputs_for(model, processor, SAMPLES[samples]), max_new_tokens=1)
            assert compressed.last.tokens_after.tolist() == [1]


def test_a_missing_description_of_the_pictures_is_an_error_naming_it():
    for family, name in (
        ("qwen2_vl", "image_grid_thw"),
        ("qwen3_vl", "mm_token_type_ids"),
        ("llava_onevision", "image_sizes"),
    ):
        model, processor = backbone(family)
        inputs = inputs_for(model, processor, SAMPLES["one"])
        del inputs[name]
        with pytest.raises(ValueError, match=f"inputs hold no {name}"):
            compress(model, RandomPruner(), tokens=2).generate(**inputs)


def test_a_processor_that_does_not_belong_to_the_model_is_an_error():
    model, processor = backbone("llava")
    other = copy.copy(processor)
    other.image_token_id = processor.image_token_id + 1
    with pytest.raises(
        ValueError, match=r"LlavaProcessor writes tokens \[25\] as placeholders .* expects 24: give the processor"
    ):
        compress(model, RandomPruner(), tokens=2, processor=other)


def test_the_first_qwen_vl_gets_an_error_that_names_the_converted_families():
    class QWenLMHeadModel(torch.nn.Module):
        config = type("Config", (), {"model_type": "qwen", "visual": {}})()

    with pytest.raises(LookupError, match=r"first Qwen-VL.*use Qwen2-VL, Qwen2.5-VL or Qwen3-VL"):
        adapter_for(QWenLMHeadModel())


@pytest.mark.parametrize(
    ("family", "says"), [("qwen", "Qwen2-VL, Qwen2.5-VL or Qwen3-VL"), ("internvl_chat", "-hf"), ("other", "converted")]
)
def test_a_checkpoint_with_custom_code_is_an_error_that_names_converted_ones(family, says, tmp_path):
    config = {"model_type": family, "auto_map": {"AutoConfig": "configuration.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=rf"needs custom code \(model_type '{family}'\).*use .*{says}"):
        Backbone(str(tmp_path)).load()


@pytest.mark.parametrize("samples", ["ragged several", "image and video"])
@pytest.mark.parametrize("family", sorted({"internvl", "video_llava", "qwen2_5_vl", "qwen3_vl", "llava_onevision"}))
def test_views_are_ordered_by_sample_and_position_in_the_prompt(family, samples):
    model, processor = backbone(family)
    inputs = inputs_for(model, processor, SAMPLES[samples])
    layout = adapter_for(model).arrange(inputs).layout
    assert layout.sample.tolist() == sorted(layout.sample.tolist())
    prompt = adapter_for(model).prompt(inputs)
    for p in range(len(layout.key)):
        rows = layout.sample == p
        first = [int(column[column >= 0].min()) for column in layout.column[rows]]
        by_picture = list(zip(layout.image[rows].tolist(), layout.frame[rows].tolist(), strict=True))
        assert by_picture == sorted(by_picture)
        pictures = dict(zip(reversed(layout.image[rows].tolist()), reversed(first), strict=True))
        assert [pictures[i] for i in sorted(pictures)] == sorted(pictures.values())
        columns = layout.column[rows]
        assert prompt.visual[p, columns[columns >= 0]].all()


def test_evidence_with_deepstack_and_ragged_views_is_saved_and_loaded(tmp_path):
    model, processor = backbone("qwen3_vl")
    need = AttentionRows("mean", (-1,))
    evidence = adapter_for(model).observe(inputs_for(model, processor, SAMPLES["ragged several"]), (need,))
    evidence.save(tmp_path / "evidence.safetensors")
    loaded = Evidence.load(tmp_path / "evidence.safetensors")
    assert torch.equal(loaded.deepstack, evidence.deepstack)
    assert torch.equal(loaded[need], evidence[need])


@pytest.mark.parametrize("family", SERVED)
def test_observing_changes_nothing_and_gives_all_visual_tokens(family):
    model, processor = backbone(family)
    for samples in samples_of(family):
        inputs = inputs_for(model, processor, SAMPLES[samples])
        copies = {name: value.clone() for name, value in inputs.items()}
        adapter = adapter_for(model)
        with check_restored(model):
            evidence = adapter.observe(inputs, VtcCls(1, "proxy").needs)
        assert all(torch.equal(inputs[name], value) for name, value in copies.items())
        assert (
            evidence.layout.untouched.tolist()
            == adapter.prompt(inputs)
            .visual.sum(1)
            .sub(
                torch.bincount(evidence.structural.sample, minlength=len(inputs["input_ids"]))
                if evidence.structural
                else 0
            )
            .tolist()
        )
