"""The LLaVA adapters: layout, evidence and splicing."""

import numpy as np
import pytest
import torch
from PIL import Image

from support.llava_cases import CLS, observed
from support.models import BUILDERS, backbone
from vtcframe import AttentionKeys, AttentionRows, Budget, ClassToken, HiddenStates, RandomPruner, VtcCls, adapter_for
from vtcframe.testing import make_inputs
from vtcframe.testing.tiny_models.llava_families import PATCH, SAMPLES, SIDE, draw


def test_the_layout_has_sample_and_columns_of_each_view(family):
    evidence, inputs, model = observed(family)
    layout = evidence.layout
    views = {"llava": [0, 0, 1], "llava_next": [0] * 5 + [0] * 3 + [1] * 5}[family]
    assert layout.sample.tolist() == views
    assert layout.image.tolist() == {"llava": [0, 1, 0], "llava_next": [0] * 5 + [1] * 3 + [0] * 5}[family]
    for p in range(3):
        columns = layout.column[layout.sample == p]
        begin = int((inputs["attention_mask"][p] == 0).sum())
        stands = (inputs["input_ids"][p] == model.config.image_token_id).nonzero()[:, 0] - begin
        structural = (
            set()
            if evidence.structural is None
            else set(evidence.structural.column[evidence.structural.sample == p].tolist())
        )
        assert sorted([*columns[columns >= 0].tolist(), *structural]) == stands.tolist()
    assert layout.untouched.tolist() == layout.total(layout.count).tolist()
    assert layout.untouched[2] == 0


def test_tokens_equal_the_features_that_the_model_packs(family):
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


def test_boxes_of_tiles_are_their_places_in_the_picture_without_padding():
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
    features = torch.cat(spliced["mm_encoder_outputs"]["image"].pooler_output)
    want = 0
    for p in (0, 1):
        kept = set(pruned.sequence(p)[1].tolist())
        of_sample = evidence.structural.sample == p
        ends = evidence.structural.column[of_sample].tolist()
        layout = evidence.layout
        base = layout.column[(layout.sample == p) & (layout.box == torch.tensor([0.0, 0, 1, 1])).all(1)]
        for end in ends:  # by hand: walk back from a newline to the one before, or to the overview
            at, any_kept = end - 1, False
            while at not in ends and not (base == at).any() and at >= 0:
                any_kept |= at in kept
                at -= 1
            want += any_kept
    assert int((features == newline).all(1).sum()) == want
    assert 0 < want < len(evidence.structural.sample)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_evidence_equals_the_output_of_the_eager_tower(family, attention):
    needs = (
        CLS,
        AttentionRows("cls", (0,), pre_softmax=True),
        AttentionRows("cls", (-1,), blocks="tower"),
        AttentionKeys((1,)),
        HiddenStates(),
        ClassToken(),
    )
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
    torch.testing.assert_close(evidence[HiddenStates()], out.hidden_states[-2][:, 1:])
    torch.testing.assert_close(evidence[ClassToken()], out.hidden_states[-2][:, 0])
    projected = evidence.project(evidence[HiddenStates()])
    valid = evidence.layout.valid
    torch.testing.assert_close(projected[valid], evidence.tokens[valid])


def test_unneeded_blocks_do_not_run_and_the_tower_is_restored(family):
    model, processor = BUILDERS[family]()  # fresh: transformers has not hooked its blocks yet
    inputs, ran = make_inputs(processor, SAMPLES["one"]), []
    blocks = model.base_model.vision_tower.encoder.layers
    hooks = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(blocks)]
    adapter = adapter_for(model)
    adapter.observe(inputs, (CLS,))
    assert ran == [0, 1, 2]
    ran.clear()
    adapter.observe(inputs, (AttentionRows("cls", (-1,), blocks="tower"),))
    assert ran == [0, 1, 2, 3]
    assert list(model.base_model.vision_tower.encoder.layers) == list(blocks)
    for hook in hooks:
        hook.remove()
    sizes = {"image_sizes": inputs["image_sizes"]} if family == "llava_next" else {}
    with torch.no_grad():
        out = model.base_model.get_image_features(inputs["pixel_values"], **sizes, output_hidden_states=True)
    assert len(out.hidden_states) == 5  # a hook that transformers missed on the hidden block would make it 4


def test_only_the_needs_are_captured(family):
    evidence, *_ = observed(family, needs=(AttentionRows("cls", (-1,)),))
    assert list(evidence.readings) == [AttentionRows("cls", (-1,))]
    assert evidence[AttentionRows("cls", (-1,))].shape[:3] == (1, len(evidence.layout.sample), 4)


def test_an_observation_may_be_pruned_many_times(family):
    evidence, inputs, model = observed(family, needs=VtcCls(2).needs)
    before = {need: x.clone() for need, x in evidence.readings.items()}
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
