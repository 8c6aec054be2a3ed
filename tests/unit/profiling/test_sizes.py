"""The published sizes of models that `vtcframe bench` builds."""

import copy
from types import SimpleNamespace

import pytest
import torch

from support.models import backbone
from support.profiling_cases import CPU, TINY
from vtcframe import adapter_for
from vtcframe.errors import UsageError
from vtcframe.profiling import command
from vtcframe.profiling import workload as subjects
from vtcframe.profiling.sizes import SHAPES
from vtcframe.profiling.workload import built, depth, noise, published
from vtcframe.testing.tiny_models.published import on_meta

# Whose costs


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
    shape, model = SHAPES[name], on_meta(published(SHAPES[name]))
    assert sum(weight.numel() for weight in model.parameters()) == weights
    here = SimpleNamespace(config=model.config, base_model=model.base_model, dtype=torch.bfloat16, device=CPU)
    inputs, adapter = noise(shape, here, 2), adapter_for(model)
    assert adapter.arrange(inputs).layout.untouched.tolist() == [tokens] * 2
    assert len(adapter.llm_layers()) == layers


def test_every_shape_is_held_to_published_numbers():
    told = next(mark for mark in test_a_shape_has_the_published_weights_and_tokens.pytestmark)
    assert [row[0] for row in told.args[1]] == list(SHAPES)


def test_fewer_layers_are_the_first_ones_and_all_else_is_whole(tiny):
    tiny("qwen2_5_vl")
    shape = SHAPES[command.DEFAULT_SHAPE]
    few, every = (on_meta(published(shape, layers)) for layers in (2, None))
    assert len(adapter_for(few).llm_layers()) == 2
    assert len(few.config.get_text_config().layer_types) == 2
    gone = {name for name in every.state_dict() if ".language_model.layers.2." in name or ".layers.3." in name}
    assert set(every.state_dict()) - set(few.state_dict()) == {name for name in gone if "language_model" in name}


@pytest.mark.parametrize("family", TINY)
def test_random_weights_are_finite_and_buffers_those_of_an_ordinary_model(family, tiny):
    tiny(family)
    config = published(SHAPES[command.DEFAULT_SHAPE])
    ordinary = type(backbone(family)[0])(copy.deepcopy(config))
    model = built(config, torch.bfloat16, "eager", CPU)
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert not model.training
    assert all(weight.isfinite().all() and weight.float().abs().max() < 10 for weight in model.parameters())
    assert all(weight.float().std() > 0 for weight in model.parameters() if weight.ndim > 1)
    mine, theirs = (dict(one.named_buffers()) for one in (model, ordinary))
    assert mine.keys() == theirs.keys()
    for name, buffer in mine.items():
        torch.testing.assert_close(buffer, theirs[name], check_dtype=False)


def test_as_many_layers_are_run_as_fit_in_two_thirds_of_the_memory(tiny, monkeypatch):
    tiny("llava")
    shape = SHAPES[command.DEFAULT_SHAPE]
    one, two = (sum(p.numel() for p in on_meta(published(shape, n)).parameters()) * 2 for n in (1, 2))
    for memory, layers in ((one, 1), (2 * two - one - 1, 2), (2 * two - one, 3), (99 * two, 4)):
        monkeypatch.setattr(subjects, "memory", lambda device, memory=memory: (3 * memory + 1) // 2)
        assert depth(shape, None, torch.bfloat16, torch.device("cuda")) == (layers, 4)
    assert depth(shape, 3, torch.bfloat16, CPU) == (3, 4)
    monkeypatch.setattr(subjects, "ON_CPU", 2)
    assert depth(shape, None, torch.bfloat16, CPU) == (2, 4)
    with pytest.raises(UsageError, match=r"--layers 5: .* has 4"):
        depth(shape, 5, torch.bfloat16, CPU)
    monkeypatch.setattr(subjects, "memory", lambda device: one)
    with pytest.raises(UsageError, match=r"do not fit cpu: give a smaller --shape"):
        depth(shape, None, torch.bfloat16, CPU)
