"""`vtcframe bench` measures the work of `compress(...).generate`; no test depends on speed."""

from functools import partial

import pytest
import torch

from support.models import backbone
from support.profiling_cases import CPU
from vtcframe import DivPrune, EVit, FastV, RandomPruner, VtcCls, compress
from vtcframe.profiling import measure as measuring
from vtcframe.profiling.measure import (
    count_flops,
    encode_pictures,
    generate_answer,
    measure_batch,
    measure_peak_bytes,
    prompt_lengths,
    run_oracle,
    run_steps,
    stages_of,
)
from vtcframe.testing.tiny_models.llava_families import SAMPLES, make_inputs


def model_and_inputs(family, name="one"):
    model, processor = backbone(family)
    return model, dict(make_inputs(processor, SAMPLES[name]))


# Runs


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
@pytest.mark.parametrize("name", ["one", "ragged several"])
def test_the_oracle_prompt_has_the_length_of_the_pruned_prompt(family, name, monkeypatch):
    model, inputs = model_and_inputs(family, name)
    case = compress(model, RandomPruner(), tokens=5)
    generate_answer(case, inputs, 1)
    lengths = prompt_lengths(inputs, case.last)
    calls = []
    arrangement = case.session.arrange(inputs)
    spliced = case.session.prepare(inputs, arrangement, case.session.encode(inputs, arrangement)).generate_kwargs
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **kwargs: calls.append(kwargs) or generate(**kwargs))
    out = run_oracle(model, inputs, lengths, 2)
    assert torch.equal(calls[0]["attention_mask"].cpu(), spliced["attention_mask"].cpu())
    assert not (calls[0]["input_ids"] == model.config.image_token_id).any()
    assert out.shape[1] == spliced["input_ids"].shape[1] + 2
    with torch.no_grad():
        separate = count_flops(partial(encode_pictures, model, inputs)) + count_flops(
            partial(model.generate, **calls[0])
        )
        assert count_flops(partial(run_oracle, model, inputs, lengths, 2)) == separate


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_the_plain_encode_is_all_vision_work_of_the_model(family):
    model, inputs = model_and_inputs(family)
    text = {"input_ids": inputs["input_ids"][:, -1:].expand_as(inputs["input_ids"])}
    text["attention_mask"] = inputs["attention_mask"]
    with torch.no_grad():
        complete = count_flops(partial(generate_answer, model, inputs, 1))
        text_only = count_flops(partial(generate_answer, model, text, 1))
        assert count_flops(partial(encode_pictures, model, inputs)) == complete - text_only


def test_answers_have_the_requested_length_even_if_the_model_would_stop_at_once(llava, monkeypatch):
    model, inputs = model_and_inputs("llava")
    width = inputs["input_ids"].shape[1]
    first = generate_answer(model, inputs, 1)[0, width].item()
    monkeypatch.setattr(model.generation_config, "eos_token_id", first)
    assert generate_answer(model, inputs, 4).shape[1] == width + 4
    assert generate_answer(compress(model, VtcCls(), tokens=5), inputs, 4).shape[1] == width + 4


@pytest.mark.parametrize("pruner", [VtcCls(), DivPrune(), FastV(), EVit(blocks=(1,))], ids=str)
def test_the_steps_do_exactly_the_work_of_generate(pruner):
    model, inputs = model_and_inputs("llava")
    case = compress(model, pruner, tokens=5)
    with torch.no_grad(), measuring.FlopCounterMode(display=False) as counter:
        steps = run_steps(case, inputs, lambda: (counter.get_total_flops(),))
    generate = count_flops(partial(generate_answer, case, inputs, 1))
    assert generate > 0
    assert sum(count for step, (count,) in steps.items() if step != "scoring") == generate
    assert ("scoring" in steps) == isinstance(pruner, VtcCls | DivPrune)


def test_flops_are_those_of_matrix_products_and_attention():
    model, inputs = model_and_inputs("llava")
    inputs = {name: tensor[:1] for name, tensor in inputs.items()}
    length = inputs["input_ids"].shape[1]
    patches, d, wide, depth = 16, 32, 64, 4
    tower = depth * (4 * (patches + 1) * d * d + 2 * (patches + 1) * d * wide + 2 * (patches + 1) ** 2 * d)
    embedding = patches * d * 3 * 14 * 14
    projector = 2 * patches * d * d
    layers = depth * (3 * length * d * d + 3 * length * d * wide + 2 * length**2 * d)  # half as many keys and values
    assert count_flops(partial(generate_answer, model, inputs, 1)) == 2 * (
        embedding + tower + projector + layers + d * 200
    )


# Stages and batches


def test_stages_are_differences_of_steps():
    steps = {"arrange": 1, "encode": 20, "scoring": 3, "prune": 5, "splice": 7, "generate": 100}
    expected = {"vision": 18, "capture": 3, "scoring": 3, "selection": 2, "splice": 7, "prefill": 100}
    assert stages_of(steps, 18) == expected
    del steps["scoring"], expected["scoring"]
    assert stages_of(steps, 18) == {**expected, "selection": 5}
    assert stages_of({"vision": 18, "complete": 150}, 18) == {"vision": 18, "prefill": 132}


def test_every_run_is_paired_with_the_unpruned_run_and_its_oracle():
    model, inputs = model_and_inputs("llava", "ragged several")
    pruners = VtcCls(), FastV(layer=2), EVit(blocks=(1,))
    batch = measure_batch(model, [compress(model, pruner, tokens=4) for pruner in pruners], inputs, [1, 3], 2)
    vtc, fastv, evit = batch.pruned
    assert batch.size == len(inputs["input_ids"])
    assert [run.method for run in (batch.unpruned, *batch.pruned)] == ["unpruned", *map(str, pruners)]
    for run in (batch.unpruned, *batch.pruned):
        series = [answer.times for answer in run.answers] + list(run.stages.values())
        series += [answer.oracle for answer in run.answers if answer.oracle]
        assert all(len(times.cpu) == len(times.wall) == 2 for times in series)
        assert [answer.length for answer in run.answers] == [1, 3]
        assert run.answers[0].peak_bytes is None
        assert sum(run.flops.values()) == run.answers[0].flops
    assert all(answer.oracle for answer in vtc.answers)
    assert not any(answer.oracle for run in (batch.unpruned, fastv, evit) for answer in run.answers)
    assert not vtc.no_oracle
    assert "lengths" in fastv.no_oracle
    assert "encoding" in evit.no_oracle
    before = batch.unpruned.tokens
    assert batch.unpruned.layer_tokens == [before] * 4
    assert vtc.layer_tokens == [vtc.tokens] * 4
    assert fastv.layer_tokens == [before] * 2 + [fastv.tokens] * 2
    assert vtc.kv_bytes < fastv.kv_bytes < batch.unpruned.kv_bytes
    assert vtc.answers[0].flops < fastv.answers[0].flops < batch.unpruned.answers[0].flops


def test_peak_memory_excludes_what_was_allocated_before_the_call(monkeypatch):
    allocated = {"now": 100, "peak": 900}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: allocated.update(peak=allocated["now"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: allocated["peak"])
    assert measure_peak_bytes(lambda: allocated.update(peak=max(allocated["peak"], 350)), torch.device("cuda")) == 250
    assert measure_peak_bytes(lambda: None, CPU) is None
