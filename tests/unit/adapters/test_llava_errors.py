"""The LLaVA adapters: errors for wrong inputs and models, and precision."""

import pytest
import torch
from transformers import CLIPVisionConfig, SiglipVisionConfig

from support.llava_cases import CLS, observed
from support.models import BUILDERS, backbone
from vtcframe import AttentionRows, Budget, RandomPruner, Similarity, VtcCls, adapter_for
from vtcframe.testing import check_restored, make_inputs
from vtcframe.testing.tiny_models.llava_families import PATCH, SAMPLES, SIDE, draw


def test_placeholders_that_do_not_match_the_pictures_are_an_error_not_an_answer(family):
    model, processor = backbone(family)
    adapter, inputs = adapter_for(model), make_inputs(processor, SAMPLES["ragged several"])
    cut = {k: v[:, 8:] if k in ("input_ids", "attention_mask") else v for k, v in inputs.items()}
    fewer = {k: v[:-1] if k in ("pixel_values", "image_sizes") else v for k, v in inputs.items()}
    for bad in (cut, fewer):
        with pytest.raises(ValueError, match="image placeholders, but the pictures make"):
            adapter.observe(bad)


def test_prompts_that_are_swapped_against_their_pictures_are_an_error():
    model, processor = backbone("llava_next")
    inputs = make_inputs(processor, [("<image> what ?", [draw(56, 112)]), ("<image> what ?", [draw(112, 112)])])
    swapped = {k: v.flip(0) if k in ("input_ids", "attention_mask") else v for k, v in inputs.items()}
    with pytest.raises(
        ValueError, match=r"hold \[88, 52\] image placeholders, but the pictures make \[52, 88\] tokens"
    ):
        adapter_for(model).observe(swapped)


def test_one_placeholder_moved_from_a_sample_to_its_neighbour_is_an_error():
    model, processor = backbone("llava")
    inputs = make_inputs(processor, [("<image> what ?", [draw(56, 56)]), ("<image> what ?", [draw(56, 56)])])
    ids, image = inputs["input_ids"].clone(), model.config.image_token_id
    ids[0, (ids[0] == image).nonzero()[0]] = 5
    ids[1, (ids[1] != image).nonzero()[0]] = image
    with pytest.raises(ValueError, match=r"the prompts hold \[15, 17\] image placeholders"):
        adapter_for(model).observe(inputs | {"input_ids": ids})


def test_inputs_without_pictures_or_ids_are_errors_saying_what_to_do(family):
    model, processor = backbone(family)
    text = make_inputs(processor, [("USER : where are they ?", [])])
    with pytest.raises(ValueError, match="no pixel_values, so there is nothing to prune: call the model itself"):
        adapter_for(model).observe(text)
    inputs = make_inputs(processor, SAMPLES["one"])
    with pytest.raises(ValueError, match="no input_ids"):
        adapter_for(model).observe({k: v for k, v in inputs.items() if k != "input_ids"})
    with pytest.raises(ValueError, match="attention_mask is"):
        adapter_for(model).observe(inputs | {"attention_mask": inputs["attention_mask"][:, 1:]})
    if family == "llava_next":
        with pytest.raises(ValueError, match="no image_sizes"):
            adapter_for(model).observe({k: v for k, v in inputs.items() if k != "image_sizes"})


def test_evidence_of_another_batch_is_refused_by_splice(family):
    evidence, _, model = observed(family, "several")
    _, processor = backbone(family)
    inputs, pruned = make_inputs(processor, SAMPLES["one"]), RandomPruner()(evidence, Budget(9))
    with pytest.raises(ValueError, match="not of these inputs"):
        adapter_for(model).splice(inputs, evidence, pruned)


@pytest.mark.parametrize(
    ("need", "says"),
    [
        (AttentionRows("cls", (-4,)), "beyond the 3 \\(feeding\\) of CLIPVisionModel"),
        (AttentionRows("cls", (4,), blocks="tower"), "beyond the 4 \\(tower\\)"),
        (AttentionRows("cls", (1,), tower="llm"), "the queries of the language model are 'last'"),
        (Similarity(), "cannot gather Similarity"),
    ],
)
def test_a_need_that_cannot_be_served_is_an_error_naming_it(family, need, says):
    with pytest.raises(ValueError, match=says):
        observed(family, needs=(need,))


def test_another_feature_layer_is_read_as_the_caller_says():
    model, processor = backbone("llava")
    inputs, adapter = make_inputs(processor, SAMPLES["one"]), adapter_for(model)
    for layer in (-1, 2, -3, [1, 3]):
        if isinstance(layer, list):
            continue  # a projector as wide as several layers is another model
        with torch.no_grad():
            want = model.base_model.get_image_features(inputs["pixel_values"], vision_feature_layer=layer).pooler_output
        evidence = adapter.observe(inputs | {"vision_feature_layer": layer})
        assert torch.equal(evidence.tokens[0], want[0])
    with pytest.raises(ValueError, match=r"'full' makes \[CLS\] a token.*use 'default'"):
        adapter.observe(inputs | {"vision_feature_select_strategy": "full"})


def test_a_tower_without_a_class_token_has_no_cls_row_but_can_be_pruned():
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    llava, processor = backbone("llava")
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=llava.config.text_config,
        image_token_index=llava.config.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaForConditionalGeneration(config).eval()
    adapter, inputs = adapter_for(model), make_inputs(processor, SAMPLES["ragged one"])
    with pytest.raises(ValueError, match=r"cannot gather AttentionRows.*from SiglipVisionModel"):
        adapter.observe(inputs, VtcCls(1).needs)
    evidence = adapter.observe(inputs)
    assert evidence.layout.untouched.tolist() == [16, 0, 16]
    model.generate(**adapter.splice(inputs, evidence, RandomPruner()(evidence, Budget(3))), max_new_tokens=1)


def test_an_unknown_model_is_an_error_listing_the_adapters():
    class Other(torch.nn.Module):
        config = type("Config", (), {"model_type": "other_vl"})()

    with pytest.raises(LookupError, match=r"no adapter knows Other \(model_type 'other_vl'\). Installed: Llava "):
        adapter_for(Other())
    with pytest.raises(LookupError, match="no adapter knows Linear"):
        adapter_for(torch.nn.Linear(1, 1))
    llava, _ = backbone("llava")
    other = type("Other", (torch.nn.Module,), {"config": type("Config", (), {"model_type": "llava"})()})()
    other.config.vision_config = type("Config", (), {"model_type": "other_tower"})()
    with pytest.raises(LookupError):
        adapter_for(other)
    assert CLIPVisionConfig.model_type == llava.config.vision_config.model_type


def test_old_transformers_are_refused_with_a_clear_error():
    from vtcframe.adapters.base import _require_transformers

    with pytest.raises(ImportError, match=r"needs transformers >= 5.18 .*, found 5.17.2"):
        _require_transformers("5.17.2")
    with pytest.raises(ImportError, match=r"found 4\.57"):
        _require_transformers("4.57.0")
    for fine in ("5.18.0", "5.23.0", "6.0.0.dev0"):
        _require_transformers(fine)


def test_half_precision_models_keep_the_same_tokens_alone_and_in_a_batch(family):
    model, processor = BUILDERS[family]()
    model = model.to(torch.bfloat16)
    adapter, batch = adapter_for(model), SAMPLES["ragged several"]
    pruned = VtcCls(2)(adapter.observe(make_inputs(processor, batch), VtcCls(2).needs), Budget(6))
    assert pruned.scores.dtype == torch.float32
    for p in (0, 1):
        evidence = adapter.observe(make_inputs(processor, [batch[p]]), VtcCls(2).needs)
        assert evidence.tokens.dtype == torch.bfloat16
        assert torch.equal(VtcCls(2)(evidence, Budget(6)).sequence(0)[1], pruned.sequence(p)[1])


def test_observing_changes_nothing(family):
    model, processor = backbone(family)
    inputs = make_inputs(processor, SAMPLES["one"])
    copies = {k: v.clone() for k, v in inputs.items()}
    with check_restored(model):
        evidence = adapter_for(model).observe(inputs, (CLS,))
        adapter_for(model).splice(inputs, evidence, VtcCls(3)(evidence, Budget(3)))
    assert all(torch.equal(inputs[k], v) for k, v in copies.items())
