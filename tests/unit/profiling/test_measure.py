"""What `vtcframe bench` measures is what the product does; no test is about speed."""

from functools import partial

import pytest
import torch

from support.models import backbone
from support.profiling_cases import CPU
from vtcframe import DivPrune, EVit, FastV, RandomPruner, VtcCls, compress
from vtcframe.profiling import measure as measuring
from vtcframe.profiling.measure import (
    answer,
    encode_pictures,
    measure,
    operations,
    oracle,
    peak,
    prompts,
    run_steps,
    stages,
)
from vtcframe.testing.tiny_models.llava_families import SAMPLES, make_inputs


def asked(family, name="one"):
    model, processor = backbone(family)
    return model, dict(make_inputs(processor, SAMPLES[name]))


# What is run


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
@pytest.mark.parametrize("name", ["one", "ragged several"])
def test_the_oracle_reads_as_many_tokens_as_the_pruned_prompt_has(family, name, monkeypatch):
    model, inputs = asked(family, name)
    case = compress(model, RandomPruner(), tokens=5)
    answer(case, inputs, 1)
    told, seen = prompts(inputs, case.last), []
    encoded = case.session.encode(inputs, case.session.arrange(inputs))
    spliced = case.session.prepare(inputs, encoded).generate_kwargs
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **given: seen.append(given) or generate(**given))
    out = oracle(model, inputs, told, 2)
    assert torch.equal(seen[0]["attention_mask"].cpu(), spliced["attention_mask"].cpu())
    assert not (seen[0]["input_ids"] == model.config.image_token_id).any()
    assert out.shape[1] == spliced["input_ids"].shape[1] + 2
    with torch.no_grad():
        apart = operations(partial(encode_pictures, model, inputs)) + operations(partial(model.generate, **seen[0]))
        assert operations(partial(oracle, model, inputs, told, 2)) == apart


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_the_plain_encode_is_all_that_the_model_does_of_vision(family):
    model, inputs = asked(family)
    text = {"input_ids": inputs["input_ids"][:, -1:].expand_as(inputs["input_ids"])}
    text["attention_mask"] = inputs["attention_mask"]
    with torch.no_grad():
        whole, alone = (operations(partial(answer, model, given, 1)) for given in (inputs, text))
        assert operations(partial(encode_pictures, model, inputs)) == whole - alone


def test_answers_have_their_length_even_where_the_model_would_end_at_once(llava, monkeypatch):
    model, inputs = asked("llava")
    width = inputs["input_ids"].shape[1]
    first = answer(model, inputs, 1)[0, width].item()
    monkeypatch.setattr(model.generation_config, "eos_token_id", first)
    assert answer(model, inputs, 4).shape[1] == width + 4
    assert answer(compress(model, VtcCls(), tokens=5), inputs, 4).shape[1] == width + 4


@pytest.mark.parametrize("pruner", [VtcCls(), DivPrune(), FastV(), EVit(blocks=(1,))], ids=str)
def test_the_steps_do_the_work_of_the_product_and_no_other(pruner):
    model, inputs = asked("llava")
    case = compress(model, pruner, tokens=5)
    with torch.no_grad(), measuring.FlopCounterMode(display=False) as counter:
        taken = run_steps(case, inputs, lambda: (counter.get_total_flops(),))
    product = operations(partial(answer, case, inputs, 1))
    assert product > 0
    assert sum(count for step, (count,) in taken.items() if step != "scoring") == product
    assert ("scoring" in taken) == isinstance(pruner, VtcCls | DivPrune)


def test_flops_are_those_of_the_products_and_attentions():
    model, inputs = asked("llava")
    inputs = {name: given[:1] for name, given in inputs.items()}
    length, patches, d, wide, depth = inputs["input_ids"].shape[1], 16, 32, 64, 4
    tower = depth * (4 * (patches + 1) * d * d + 2 * (patches + 1) * d * wide + 2 * (patches + 1) ** 2 * d)
    embedding, projector = patches * d * 3 * 14 * 14, 2 * patches * d * d
    layers = depth * (3 * length * d * d + 3 * length * d * wide + 2 * length**2 * d)  # half as many keys and values
    assert operations(partial(answer, model, inputs, 1)) == 2 * (embedding + tower + projector + layers + d * 200)


# What it is made of


def test_stages_are_differences_of_steps():
    taken = {"arrange": 1, "encode": 20, "scoring": 3, "prune": 5, "splice": 7, "generate": 100}
    told = {"vision": 18, "capture": 3, "scoring": 3, "selection": 2, "splice": 7, "prefill": 100}
    assert stages(taken, 18) == told
    del taken["scoring"], told["scoring"]
    assert stages(taken, 18) == {**told, "selection": 5}
    assert stages({"vision": 18, "whole": 150}, 18) == {"vision": 18, "prefill": 132}


def test_measuring_pairs_every_run_with_the_untouched_one_and_its_oracle():
    model, inputs = asked("llava", "ragged several")
    pruners = VtcCls(), FastV(layer=2), EVit(blocks=(1,))
    batch = measure(model, [compress(model, pruner, tokens=4) for pruner in pruners], inputs, [1, 3], 2)
    vtc, fastv, evit = batch.pruned
    assert batch.size == len(inputs["input_ids"])
    assert [run.method for run in (batch.unpruned, *batch.pruned)] == ["unpruned", *map(str, pruners)]
    for run in (batch.unpruned, *batch.pruned):
        series = [one.times for one in run.answers] + list(run.stages.values())
        series += [one.oracle for one in run.answers if one.oracle]
        assert all(len(one.cpu) == len(one.wall) == 2 for one in series)
        assert [one.length for one in run.answers] == [1, 3]
        assert run.answers[0].peak_bytes is None
        assert sum(run.flops.values()) == run.answers[0].flops
    assert all(one.oracle for one in vtc.answers)
    assert not any(one.oracle for run in (batch.unpruned, fastv, evit) for one in run.answers)
    assert not vtc.no_oracle
    assert "lengths" in fastv.no_oracle
    assert "encoding" in evit.no_oracle
    before = batch.unpruned.tokens
    assert batch.unpruned.layer_tokens == [before] * 4
    assert vtc.layer_tokens == [vtc.tokens] * 4
    assert fastv.layer_tokens == [before] * 2 + [fastv.tokens] * 2
    assert vtc.kv_bytes < fastv.kv_bytes < batch.unpruned.kv_bytes
    assert vtc.answers[0].flops < fastv.answers[0].flops < batch.unpruned.answers[0].flops


def test_peak_memory_is_what_a_call_adds(monkeypatch):
    held = {"now": 100, "peak": 900}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: held.update(peak=held["now"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: held["peak"])
    assert peak(lambda: held.update(peak=max(held["peak"], 350)), torch.device("cuda")) == 250
    assert peak(lambda: None, CPU) is None
