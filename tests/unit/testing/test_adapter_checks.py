"""Deliberately wrong adapters: each check of adapters can fail, and names the broken law."""

from dataclasses import replace

import pytest
import torch

from support.models import backbone
from vtcframe import Budget, RandomPruner, VtcCls
from vtcframe.testing import check_adapter, check_restored, make_inputs
from vtcframe.testing.tiny_models.llava_families import SAMPLES
from vtcframe_backbones.llava import Llava, LlavaNext


def check_with(monkeypatch, family, change, **options):
    """Run check_adapter with one method of the adapter changed."""
    model, processor = backbone(family)
    kind = Llava if family == "llava" else LlavaNext
    name, function = change
    original = getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda self, *args: function(original, self, *args))
    check_adapter(
        model, processor, options.pop("samples", SAMPLES["ragged several"]), (VtcCls(2), RandomPruner()), **options
    )


def splice_with_columns(change):
    """Change what splice returns."""

    def splice(original, adapter, *args):
        out = original(adapter, *args)
        change(out)
        return out

    return "splice", splice


def shift_positions(out):
    out["position_ids"] = out["position_ids"] + 1


def close_gaps(out):
    out["position_ids"] = (out["attention_mask"].cumsum(1) - 1).clamp(min=0)


def open_mask(out):
    out["attention_mask"] = torch.ones_like(out["attention_mask"])


def rotate_features(out):
    image = out["mm_encoder_outputs"]["image"]
    image.pooler_output = [part.roll(1, 0) for part in image.pooler_output]


def swap_samples(out):
    image = out["mm_encoder_outputs"]["image"]
    image.pooler_output = image.pooler_output[::-1]


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("change", [shift_positions, close_gaps, open_mask, rotate_features, swap_samples])
def test_check_adapter_fails_where_splice_is_wrong(monkeypatch, family, change):
    with pytest.raises(AssertionError, match=r"keep all|removed = masked"):
        check_with(monkeypatch, family, splice_with_columns(change))


def test_check_adapter_fails_for_original_in_place_of_compact_positions(monkeypatch):
    def splice(original, adapter, inputs, evidence, pruned, positions="original"):
        return original(adapter, inputs, evidence, pruned, "original")

    with pytest.raises(AssertionError, match="removed = masked"):
        check_with(monkeypatch, "llava", ("splice", splice), positions="compact")


def test_check_adapter_fails_for_tokens_in_wrong_places_of_their_view(monkeypatch):
    def encode(original, adapter, *args):
        evidence = original(adapter, *args)
        return replace(evidence, tokens=evidence.tokens.roll(1, 1))

    with pytest.raises(AssertionError, match="keep all"):
        check_with(monkeypatch, "llava", ("encode", encode))


def test_check_adapter_fails_for_scores_that_depend_on_the_batch(monkeypatch):
    def encode(original, adapter, inputs, arrangement, needs=()):
        evidence = original(adapter, inputs, arrangement, needs)
        readings = {need: x.roll(1, 1) if len(evidence.tokens) > 2 else x for need, x in evidence.readings.items()}
        return replace(evidence, readings=readings)

    with pytest.raises(AssertionError, match="keeps other tokens in a batch"):
        check_with(monkeypatch, "llava", ("encode", encode))


def test_check_adapter_requires_a_budget_that_drops_something(llava):
    with pytest.raises(AssertionError, match="drops nothing"):
        check_adapter(*llava, SAMPLES["one"], budget=Budget(10**6))


@pytest.mark.parametrize(
    ("says", "disturb"),
    [
        ("a hook", lambda model: model.lm_head.register_forward_hook(lambda *_: None)),
        ("the module tree", lambda model: model.lm_head.register_module("more", torch.nn.Identity())),
        ("an overridden method", lambda model: setattr(model.lm_head, "forward", lambda x: x)),
        ("an attention implementation", lambda model: model.set_attn_implementation("eager")),
    ],
)
def test_check_restored_fails(says, disturb):
    from vtcframe.testing import tiny_llava

    model, _ = tiny_llava()
    with pytest.raises(AssertionError, match=f"{says} was not restored"), check_restored(model):
        disturb(model)


def test_check_restored_fails_for_a_new_entry_in_the_registry(llava):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    try:
        with pytest.raises(AssertionError, match="the attention registry was not restored"), check_restored(llava[0]):
            ALL_ATTENTION_FUNCTIONS["eager"] = lambda *_: None
    finally:
        del ALL_ATTENTION_FUNCTIONS["eager"]


def test_inputs_are_padded_on_the_given_side(llava):
    _, processor = llava
    left, right = (make_inputs(processor, SAMPLES["ragged one"], side)["attention_mask"] for side in ("left", "right"))
    assert left[1, 0] == right[1, -1] == 0
    assert left[1, -1] == right[1, 0] == 1


def test_check_adapter_fails_where_an_exception_is_swallowed(monkeypatch):
    def encode(original, adapter, *args):
        try:
            return original(adapter, *args)
        except RuntimeError:
            return None

    with pytest.raises(AssertionError, match="was swallowed"):
        check_with(monkeypatch, "llava", ("encode", encode))


def test_check_adapter_fails_for_a_hook_that_is_kept_after_an_exception(monkeypatch):
    hooks = []

    def encode(original, adapter, *args):
        hooks.append(adapter.model.base_model.vision_tower.register_forward_hook(lambda *_: None))
        out = original(adapter, *args)
        hooks[-1].remove()  # not in a `finally`
        return out

    with pytest.raises(AssertionError, match="a hook was not restored"):
        check_with(monkeypatch, "llava", ("encode", encode))
    for hook in hooks:
        hook.remove()
