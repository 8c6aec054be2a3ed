import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, SiglipVisionConfig

from conftest import BUILDERS, backbone
from vtcframe import (
    Budget,
    ClassToken,
    Features,
    Keys,
    RandomPruner,
    Rows,
    Similarity,
    VtcCls,
    adapter_for,
)
from vtcframe.testing import check_restored, make_inputs
from vtcframe.testing.backbones import PATCH, SAMPLES, SIDE, draw

CLS = Rows("cls", (-3, -2, -1))


def observed(family, samples="ragged several", needs=(), **options):
    model, processor = backbone(family)
    inputs = make_inputs(processor, SAMPLES[samples])
    return adapter_for(model).observe(inputs, needs, **options), inputs, model


def test_the_layout_tells_whose_each_view_is_and_where_its_tokens_stand(family):
    evidence, inputs, model = observed(family)
    layout = evidence.layout
    views = {"llava": [0, 0, 1], "llava_next": [0] * 5 + [0] * 3 + [1] * 5}[family]
    assert layout.sample.tolist() == views
    assert layout.image.tolist() == {"llava": [0, 1, 0], "llava_next": [0] * 5 + [1] * 3 + [0] * 5}[family]
    for p in range(3):
        own = layout.column[layout.sample == p]
        begin = int((inputs["attention_mask"][p] == 0).sum())
        stands = (inputs["input_ids"][p] == model.config.image_token_id).nonzero()[:, 0] - begin
        structural = (
            set()
            if evidence.structural is None
            else set(evidence.structural.column[evidence.structural.sample == p].tolist())
        )
        assert sorted([*own[own >= 0].tolist(), *structural]) == stands.tolist()
    assert layout.untouched.tolist() == layout.total(layout.count).tolist()
    assert layout.untouched[2] == 0


def test_tokens_are_those_that_the_model_would_read(family):
    evidence, inputs, model = observed(family)
    sizes = {"image_sizes": inputs["image_sizes"]} if family == "llava_next" else {}
    with torch.no_grad():
        packed = torch.cat(list(model.base_model.get_image_features(inputs["pixel_values"], **sizes).pooler_output))
    rebuilt = []
    for p in range(3):
        parts = {}
        for v in (evidence.layout.sample == p).nonzero()[:, 0].tolist():
            for n in evidence.layout.valid[v].nonzero()[:, 0].tolist():
                parts[int(evidence.layout.column[v, n])] = evidence.tokens[v, n]
        if evidence.structural is not None:
            for u in (evidence.structural.sample == p).nonzero()[:, 0].tolist():
                parts[int(evidence.structural.column[u])] = evidence.structural.tokens[u]
        rebuilt += [parts[column] for column in sorted(parts)]
    assert torch.equal(torch.stack(rebuilt), packed)


def test_a_bright_patch_lights_up_the_token_that_covers_it_in_every_view():
    """Through real processor and packing: in each view the token that changes most covers the patch."""
    model, processor = backbone("llava_next")
    height, width = 2 * SIDE, 2 * SIDE  # a canvas of 2 x 2 tiles, no padding
    plain, adapter = np.zeros((height, width, 3), np.uint8), adapter_for(model)
    for row, column in ((0, 0), (3, 6), (7, 7), (5, 2)):
        lit = plain.copy()
        lit[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = 255
        inputs = [make_inputs(processor, [("<image> ?", [Image.fromarray(x)])]) for x in (plain, lit)]
        features = [patch_inputs(model, i) for i in inputs]
        changed = (features[1] - features[0]).abs().sum(-1)  # [views, patches], before any attention
        layout = adapter.observe(inputs[1]).layout
        centre = layout.centre
        target = torch.tensor([(row + 0.5) / 8, (column + 0.5) / 8])
        tile = 1 + (row // 4) * 2 + column // 4
        assert changed[tile].argmax() == (row % 4) * 4 + column % 4
        for v in (0, tile):
            distance = (centre[v] - target).abs().sum(-1)
            assert distance[changed[v].argmax()] == distance.min()
        assert changed[[v for v in range(1, 5) if v != tile]].max() < 1e-6


def patch_inputs(model, inputs):
    with torch.no_grad():
        return model.base_model.vision_tower.embeddings.patch_embedding(inputs["pixel_values"][0]).flatten(2).mT


def test_boxes_of_tiles_tell_where_they_lie_in_the_picture_and_padding_lies_outside():
    model, processor = backbone("llava_next")
    wide = make_inputs(processor, [("<image> ?", [draw(56, 112)])])
    assert adapter_for(model).observe(wide).layout.box.tolist() == [[0, 0, 1, 1], [0, 0, 1, 0.5], [0, 0.5, 1, 1]]
    narrow = make_inputs(processor, [("<image> ?", [draw(112, 90)])])  # 2 x 2 tiles, 22 pixels of padding at the sides
    layout = adapter_for(model).observe(narrow).layout
    assert layout.count.tolist() == [16, 12, 12, 12, 12]  # one column of tokens off each side
    assert layout.box[1].tolist() == pytest.approx([0, -1 / 6, 0.5, 0.5])
    assert layout.box[4].tolist() == pytest.approx([0.5, 0.5, 1, 7 / 6])
    inside = layout.centre[layout.valid]
    assert inside.min() > 0
    assert inside.max() < 1


def test_a_newline_stays_while_any_token_of_its_row_stays():
    evidence, inputs, model = observed("llava_next")
    pruned = RandomPruner()(evidence, Budget(tokens=6))
    spliced = adapter_for(model).splice(inputs, evidence, pruned)
    newline = model.base_model.image_newline
    read = torch.cat(spliced["mm_encoder_outputs"]["image"].pooler_output)
    want = 0
    for p in (0, 1):
        kept = set(pruned.sequence(p)[1].tolist())
        mine = evidence.structural.sample == p
        ends = evidence.structural.column[mine].tolist()
        layout = evidence.layout
        base = layout.column[(layout.sample == p) & (layout.box == torch.tensor([0.0, 0, 1, 1])).all(1)]
        for end in ends:  # by hand: walk back from a newline to the one before, or to the overview
            at, any_left = end - 1, False
            while at not in ends and not (base == at).any() and at >= 0:
                any_left |= at in kept
                at -= 1
            want += any_left
    assert int((read == newline).all(1).sum()) == want
    assert 0 < want < len(evidence.structural.sample)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_evidence_equals_what_the_eager_tower_shows(family, attention):
    needs = (CLS, Rows("cls", (0,), logits=True), Rows("cls", (-1,), of="tower"), Keys((1,)), Features(), ClassToken())
    model, processor = backbone(family, attention)
    eager, _ = backbone(family, "eager")
    inputs = make_inputs(processor, SAMPLES["ragged several"])
    evidence = adapter_for(model).observe(inputs, needs)
    sizes = {"image_sizes": inputs["image_sizes"]} if family == "llava_next" else {}
    keys = []
    hook = eager.base_model.vision_tower.encoder.layers[1].self_attn.k_proj.register_forward_hook(
        lambda module, args, out: keys.append(out)
    )
    with torch.no_grad():
        out = eager.base_model.get_image_features(
            inputs["pixel_values"], **sizes, output_attentions=True, output_hidden_states=True
        )
    hook.remove()
    for i, layer in enumerate((0, 1, 2)):  # three blocks feed the projector, the fourth does not
        assert (evidence[CLS][i] - out.attentions[layer][:, :, 0, 1:]).abs().max() <= 1e-6
    assert (evidence[needs[2]][0] - out.attentions[3][:, :, 0, 1:]).abs().max() <= 1e-6
    logits = evidence[needs[1]][0]
    shift = logits - out.attentions[0][:, :, 0, 1:].log()
    assert (shift - shift.mean(-1, keepdim=True)).abs().max() <= 1e-5  # equal up to the softmax's own constant
    torch.testing.assert_close(evidence[needs[3]][0].transpose(1, 2).flatten(2), keys[0][:, 1:])
    torch.testing.assert_close(evidence[Features()], out.hidden_states[-2][:, 1:])
    torch.testing.assert_close(evidence[ClassToken()], out.hidden_states[-2][:, 0])
    projected = evidence.project(evidence[Features()])
    valid = evidence.layout.valid
    torch.testing.assert_close(projected[valid], evidence.tokens[valid])


def test_a_block_nobody_reads_is_not_run_and_the_tower_is_whole_again(family):
    model, processor = BUILDERS[family]()  # fresh: transformers has not hooked its blocks yet
    inputs, ran = make_inputs(processor, SAMPLES["one"]), []
    blocks = model.base_model.vision_tower.encoder.layers
    hooks = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(blocks)]
    adapter = adapter_for(model)
    adapter.observe(inputs, (CLS,))
    assert ran == [0, 1, 2]
    ran.clear()
    adapter.observe(inputs, (Rows("cls", (-1,), of="tower"),))
    assert ran == [0, 1, 2, 3]
    assert list(model.base_model.vision_tower.encoder.layers) == list(blocks)
    for hook in hooks:
        hook.remove()
    sizes = {"image_sizes": inputs["image_sizes"]} if family == "llava_next" else {}
    with torch.no_grad():
        out = model.base_model.get_image_features(inputs["pixel_values"], **sizes, output_hidden_states=True)
    assert len(out.hidden_states) == 5  # a hook that transformers missed on the hidden block would make it 4


def test_only_what_is_asked_for_is_captured(family):
    evidence, *_ = observed(family, needs=(Rows("cls", (-1,)),))
    assert list(evidence.found) == [Rows("cls", (-1,))]
    assert evidence[Rows("cls", (-1,))].shape[:3] == (1, len(evidence.layout.sample), 4)


def test_one_observation_may_be_pruned_many_times(family):
    evidence, inputs, model = observed(family, needs=VtcCls(2).needs)
    before = {need: x.clone() for need, x in evidence.found.items()}
    adapter = adapter_for(model)
    counts = []
    for budget in (Budget(1), Budget(9), Budget(ratio=0.5)):
        spliced = adapter.splice(inputs, evidence, VtcCls(2)(evidence, budget))
        counts.append(spliced["attention_mask"].sum().item())
        model.generate(**spliced, max_new_tokens=2)
    assert counts == sorted(counts)
    assert all(torch.equal(evidence[need], x) for need, x in before.items())


def test_keys_of_samples_depend_on_their_ids_or_else_on_prompt_and_pixels(family):
    model, processor = backbone(family)
    adapter = adapter_for(model)
    batch, side = SAMPLES["ragged several"], "right"
    keys = adapter.arrange(make_inputs(processor, batch)).layout.key.tolist()
    assert len(set(keys)) == 3
    assert all(0 <= key < 2**63 for key in keys)
    alone = [int(adapter.arrange(make_inputs(processor, [sample], side)).layout.key) for sample in batch[:2]]
    assert alone == keys[:2]
    other = [(batch[1][0], [draw(60, 64, 5)])]  # same prompt and size, another picture
    assert int(adapter.arrange(make_inputs(processor, other)).layout.key) != keys[1]
    named = adapter.arrange(make_inputs(processor, batch), ids=["a", 7, "c"]).layout.key
    assert named.tolist() == adapter.arrange(make_inputs(processor, batch, side), ids=["a", 7, "c"]).layout.key.tolist()
    with pytest.raises(ValueError, match="2 ids for 3 samples"):
        adapter.arrange(make_inputs(processor, batch), ids=["a", "b"])


def test_caller_positions_are_kept_with_the_tokens():
    evidence, inputs, model = observed("llava", "one")
    inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1])[None] + 100
    pruned = RandomPruner()(evidence, Budget(4))
    spliced = adapter_for(model).splice(inputs, evidence, pruned)
    kept = set(pruned.sequence(0)[1].tolist())
    visual = (inputs["input_ids"][0] == model.config.image_token_id).tolist()
    assert spliced["position_ids"][0].tolist() == [100 + i for i, v in enumerate(visual) if not v or i in kept]


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
        (Rows("cls", (-4,)), "beyond the 3 \\(feeding\\) of CLIPVisionModel"),
        (Rows("cls", (4,), of="tower"), "beyond the 4 \\(tower\\)"),
        (Rows("cls", (1,), tower="llm"), "the language model is asked by 'last'"),
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
    with pytest.raises(ValueError, match=r"cannot gather Rows.*from SiglipVisionModel"):
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
    from vtcframe.adapter import _require_transformers

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
