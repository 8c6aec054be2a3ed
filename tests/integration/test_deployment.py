"""How models are brought to devices in production: offloaded, compiled, quantised, under autocast."""

import pytest
import torch
from accelerate import disk_offload, dispatch_model

from support.models import backbone
from vtcframe import Budget, VtcCls, compress
from vtcframe.testing import check_restored, make_inputs, tiny_llava
from vtcframe.testing.tiny_models.llava_families import SAMPLES

GREEDY = {"do_sample": False, "max_new_tokens": 5}


def answer(model, twice=False):
    _, processor = backbone("llava")
    inputs, compressed = make_inputs(processor, SAMPLES["ragged several"]), compress(model, VtcCls(last=2), tokens=5)
    out = compressed.generate(**inputs, **GREEDY)
    if twice:
        assert torch.equal(compressed.generate(**inputs, **GREEDY), out)
    return out


@pytest.fixture(scope="module")
def want():
    return answer(backbone("llava")[0])


def test_a_device_map_changes_nothing(want):
    model, _ = tiny_llava()
    model = dispatch_model(model, {"": "cpu"}, force_hooks=True)
    assert torch.equal(answer(model), want)
    with check_restored(model):  # accelerate's hooks stay as they are
        answer(model)


def test_weights_offloaded_to_disk_change_nothing(want, tmp_path):
    model, _ = tiny_llava()
    disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    assert torch.equal(answer(model), want)


@pytest.mark.parametrize("part", ["language model", "vision tower", "whole"])
def test_compiled_models_answer_the_same(want, part):
    """Through dynamo, with the backend that runs what was traced; inductor was tried by hand (docs/limits.md)."""
    torch.compiler.reset()
    model, _ = tiny_llava()
    if part == "whole":
        model = torch.compile(model, backend="eager")
    else:
        tower = model.model.language_model if part == "language model" else model.model.vision_tower
        tower.compile(backend="eager")
    assert torch.equal(answer(model, twice=True), want)


def test_rows_under_autocast_are_float32():
    model, processor = tiny_llava()
    compressed = compress(model, VtcCls(last=2), tokens=5)
    with torch.autocast("cpu", torch.bfloat16):
        compressed.generate(**make_inputs(processor, SAMPLES["one"]), **GREEDY)
    assert compressed.last.scores.dtype == torch.float32
    assert compressed.last.tokens_after.tolist() == [5]


def test_the_budget_of_a_batch_may_keep_all_of_some_samples():
    model, processor = backbone("llava")
    compressed = compress(model, VtcCls(last=2), tokens=20)  # of 32 and of 16
    inputs = make_inputs(processor, SAMPLES["ragged several"])
    out = compressed.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    assert compressed.last.tokens_after.tolist() == [20, 16, 0]
    for p in (1, 2):
        alone = make_inputs(processor, [SAMPLES["ragged several"][p]])
        untouched = model.generate(**alone, **GREEDY)[0, alone["input_ids"].shape[1] :]
        assert torch.equal(out[p], untouched)
    assert Budget(20).total(compressed.last.layout).tolist() == [20, 16, 0]
