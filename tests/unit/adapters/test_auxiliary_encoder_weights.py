"""Auxiliary encoders: weights, names and errors."""

import json
import sys

import open_clip.factory
import pytest
import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file
from transformers import CLIPVisionConfig

from support.auxiliary_encoders import MEAN, SIDE, STD, VISION, WORDS, contiguous, pictures, shaken
from vtcframe.adapters.auxiliary_encoders import auxiliary_encoder


def test_a_tower_without_class_token_names_the_cure(saved):
    encoder = auxiliary_encoder(saved["without class token"][0])
    with pytest.raises(ValueError, match=r"no class token.*AttentionRows\('received'\) or AttentionRows\('mean'\)"):
        encoder.rows(pictures(), (-1,))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tim:vit_tiny_patch16_224", "no kind of auxiliary encoder of vtcframe is called 'tim'. Did you mean 'timm'"),
        ("vit_tiny_patch16_224", "no kind of auxiliary encoder"),
        ("timm:", "names no model"),
        ("timm:vit_tinny_patch16_224", "is called 'vit_tinny_patch16_224'. Did you mean 'vit_tiny_patch16_224'"),
        ("timm:vit_tiny_patch16_224.augreg_in21", "Did you mean 'vit_tiny_patch16_224.augreg_in21k'"),
        ("timm:local-dir:/nowhere", "there is no /nowhere/config.json"),
        ("open_clip:ViT-B-33/openai", "no model of open_clip is called 'ViT-B-33'. Did you mean 'ViT-B-32'"),
        ("open_clip:ViT-B-32/openay", "no weights of open_clip for ViT-B-32 is called 'openay'. Did you mean 'openai'"),
        ("open_clip:ViT-B-32", "Known: .*openai"),
        ("open_clip:local-dir:/nowhere", "there is no /nowhere/open_clip_config.json"),
        ("clip:/nowhere", "clip:/nowhere cannot be loaded"),
    ],
)
def test_unknown_names_are_errors_with_the_nearest_name(name, message):
    with pytest.raises(ValueError, match=message):
        auxiliary_encoder(name)


def test_weights_of_an_architecture_come_from_a_file(tmp_path, saved, monkeypatch):
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": WORDS}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    _, model = saved["open_clip"]
    save_file(contiguous(model), tmp_path / "weights.safetensors")
    encoder = auxiliary_encoder(f"open_clip:tiny/{tmp_path}/weights.safetensors")
    assert torch.equal(encoder.model.visual.proj, model.visual.proj)


def test_an_open_clip_with_a_tower_of_timm_has_rows_and_text_but_no_dense_space(tmp_path):
    vision = {"image_size": SIDE, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear"}
    model = shaken(CustomTextCLIP(24, dict(vision), dict(WORDS)))
    config = {
        "model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": WORDS, "custom_text": True},
        "preprocess_cfg": {"mean": MEAN, "std": STD},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(contiguous(model), tmp_path / "open_clip_model.safetensors")
    encoder = auxiliary_encoder(f"open_clip:local-dir:{tmp_path}")
    assert encoder.text(["a dog"])[0].shape == (1, 24)
    assert encoder.rows(pictures(), (-1,)).shape[:2] == (1, 3)  # test_vit has a class token, whatever pools it
    with pytest.raises(ValueError, match="single patches are not in the embedding"):
        encoder.dense(pictures())


def test_wrong_calls_of_an_auxiliary_encoder_are_errors(saved, tmp_path):
    encoder = auxiliary_encoder(saved["timm"][0])
    for layers in ((), (4,), (-5,)):
        with pytest.raises(ValueError, match="among the 4 blocks"):
            encoder.rows(pictures(), layers)
    with pytest.raises(ValueError, match="give at least one"):
        encoder.rows([], (-1,))
    for wrong in (torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(8, 8, 3), torch.zeros(1, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"floats in 0\.\.1"):
            encoder.rows([wrong], (-1,))
    for call in (
        lambda: encoder.text(["a"]),
        lambda: encoder.dense(pictures()),
        lambda: encoder.embed(torch.zeros(1, 32)),
    ):
        with pytest.raises(ValueError, match="name a 'clip:' or 'open_clip:' model"):
            call()
    with pytest.raises(ValueError, match="encodes no pictures"):
        auxiliary_encoder(saved["clip"][0]).rows(pictures(), (-1,))
    CLIPVisionConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'clip_vision_model' checkpoint"):
        auxiliary_encoder(f"clip:{tmp_path}")


@pytest.mark.parametrize("library", ["timm", "open_clip"])
def test_a_missing_library_says_what_to_install(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"needs .*: pip install vtcframe\[encoders\]"):
        auxiliary_encoder(f"{library}:whatever")


@pytest.mark.parametrize(("tag", "quick"), [("openai", True), ("laion2b_s34b_b79k", False)])
def test_the_activation_is_the_one_that_the_weights_were_trained_with(tag, quick, saved, monkeypatch):
    options_of_call = {}

    def create_model(name, **options):
        options_of_call.update(options, name=name)
        return saved["open_clip"][1]

    monkeypatch.setattr("vtcframe.adapters.auxiliary_encoders._LOADED", {})
    monkeypatch.setattr(open_clip, "create_model", create_model)
    auxiliary_encoder(f"open_clip:ViT-B-32/{tag}")
    assert options_of_call == {
        "name": "ViT-B-32",
        "pretrained": tag,
        "force_quick_gelu": quick,
        "require_pretrained": True,
    }
