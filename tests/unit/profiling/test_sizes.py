"""The published sizes of models that `vtcframe bench` builds."""

import copy
from types import SimpleNamespace

import pytest
import torch

from support.models import backbone
from support.profiling_cases import CPU, TINY
from vtcframe import adapter_for
from vtcframe.errors import UsageError
from vtcframe.profiling import command, workload
from vtcframe.profiling.sizes import SHAPES
from vtcframe.profiling.workload import build_model, choose_depth, noise_inputs, published_config
from vtcframe.testing.tiny_models.published import on_meta


@pytest.mark.parametrize(
    ("name", "weights", "tokens", "layers"),
    [
        ("llava-1.5-7b", 7_063_427_072, 576, 32),
        ("llava-1.5-13b", 13_351_494_656, 576, 40),
        ("llava-next-7b", 7_063_431_168, 2880, 32),
        ("qwen2.5-vl-7b", 8_292_166_656, 576, 28),
    ],
)
def test_a_shape_has_the_published_weights_and_tokens(name, weights, tokens, layers):
    shape = SHAPES[name]
    model = on_meta(published_config(SHAPES[name]))
    assert sum(weight.numel() for weight in model.parameters()) == weights
    stub = SimpleNamespace(config=model.config, base_model=model.base_model, dtype=torch.bfloat16, device=CPU)
    inputs = noise_inputs(shape, stub, 2)
    adapter = adapter_for(model)
    assert adapter.arrange(inputs).layout.untouched.tolist() == [tokens] * 2
    assert len(adapter.llm_layers()) == layers


def test_every_shape_is_tested_against_published_numbers():
    parameters = next(mark for mark in test_a_shape_has_the_published_weights_and_tokens.pytestmark)
    assert [row[0] for row in parameters.args[1]] == list(SHAPES)


def test_fewer_layers_are_the_first_layers_and_nothing_else_is_missing(tiny):
    tiny("qwen2_5_vl")
    shape = SHAPES[command.DEFAULT_SHAPE]
    few, every = (on_meta(published_config(shape, layers)) for layers in (2, None))
    assert len(adapter_for(few).llm_layers()) == 2
    assert len(few.config.get_text_config().layer_types) == 2
    removed = {name for name in every.state_dict() if ".language_model.layers.2." in name or ".layers.3." in name}
    assert set(every.state_dict()) - set(few.state_dict()) == {name for name in removed if "language_model" in name}


@pytest.mark.parametrize("family", TINY)
def test_random_weights_are_finite_and_buffers_match_an_ordinary_model(family, tiny):
    tiny(family)
    config = published_config(SHAPES[command.DEFAULT_SHAPE])
    ordinary = type(backbone(family)[0])(copy.deepcopy(config))
    model = build_model(config, torch.bfloat16, "eager", CPU)
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert not model.training
    assert all(weight.isfinite().all() and weight.float().abs().max() < 10 for weight in model.parameters())
    assert all(weight.float().std() > 0 for weight in model.parameters() if weight.ndim > 1)
    buffers = dict(model.named_buffers())
    expected = dict(ordinary.named_buffers())
    assert buffers.keys() == expected.keys()
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer, expected[name], check_dtype=False)


def test_as_many_layers_are_built_as_fit_in_two_thirds_of_the_memory(tiny, monkeypatch):
    tiny("llava")
    shape = SHAPES[command.DEFAULT_SHAPE]
    one_layer, two_layers = (
        sum(p.numel() for p in on_meta(published_config(shape, n)).parameters()) * 2 for n in (1, 2)
    )
    sizes = (
        (one_layer, 1),
        (2 * two_layers - one_layer - 1, 2),
        (2 * two_layers - one_layer, 3),
        (99 * two_layers, 4),
    )
    for memory, layers in sizes:
        monkeypatch.setattr(workload, "available_bytes", lambda device, memory=memory: (3 * memory + 1) // 2)
        assert choose_depth(shape, None, torch.bfloat16, torch.device("cuda")) == (layers, 4)
    assert choose_depth(shape, 3, torch.bfloat16, CPU) == (3, 4)
    monkeypatch.setattr(workload, "MAX_CPU_LAYERS", 2)
    assert choose_depth(shape, None, torch.bfloat16, CPU) == (2, 4)
    with pytest.raises(UsageError, match=r"--layers 5: .* has 4"):
        choose_depth(shape, 5, torch.bfloat16, CPU)
    monkeypatch.setattr(workload, "available_bytes", lambda device: one_layer)
    with pytest.raises(UsageError, match=r"do not fit cpu: give a smaller --shape"):
        choose_depth(shape, None, torch.bfloat16, CPU)
