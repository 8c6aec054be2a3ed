"""`compress`: generate with pruned prompts, as the caller uses it."""

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from support.models import backbone
from vtcframe import Budget, RandomPruner, Stage, VtcCls, compress
from vtcframe.testing import check_restored, make_inputs
from vtcframe.testing.tiny_models.llava_families import SAMPLES

GREEDY = {"do_sample": False, "max_new_tokens": 5}


@pytest.fixture
def ready(family):
    model, processor = backbone(family)
    return compress(model, VtcCls(last=2), tokens=5), make_inputs(processor, SAMPLES["ragged several"])


def by_splicing(compressed, inputs, **options):
    """Return the generated tokens of splice and generate, without `compress`."""
    adapter, stage = compressed.adapter, compressed.plan.projector
    evidence = adapter.observe(inputs, stage.pruner.needs)
    spliced = adapter.splice(inputs, evidence, stage.pruner(evidence, stage.budget), stage.positions)
    width = spliced["input_ids"].shape[1]
    return compressed.model.generate(**spliced, **options)[:, width:]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 3}])
def test_the_prompt_idiom_yields_the_answer(ready, options):
    compressed, inputs = ready
    want = by_splicing(compressed, inputs, **GREEDY, **options)
    out = compressed.generate(**inputs, **GREEDY, **options)
    assert torch.equal(out[:, inputs["input_ids"].shape[1] :], want)
    rich = compressed.generate(**inputs, **GREEDY, **options, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(rich.sequences, out)
    assert rich["sequences"] is rich.sequences
    assert len(rich.scores) == out.shape[1] - inputs["input_ids"].shape[1]


def test_sampling_with_several_sequences_keeps_prompts_with_their_answers(ready):
    compressed, inputs = ready
    out = compressed.generate(**inputs, do_sample=True, num_return_sequences=2, max_new_tokens=3)
    prompt = inputs["input_ids"].repeat_interleave(2, 0)
    assert torch.equal(out[:, : prompt.shape[1]], prompt)


def test_inputs_may_be_positional_or_come_without_a_mask(ready):
    compressed, inputs = ready
    want = compressed.generate(**inputs, **GREEDY)
    rest = {k: v for k, v in inputs.items() if k != "input_ids"}
    assert torch.equal(compressed.generate(inputs["input_ids"], **rest, **GREEDY), want)
    assert torch.equal(compressed.generate(inputs["input_ids"], GenerationConfig(**GREEDY), **rest), want)
    no_mask = {k: v for k, v in inputs.items() if k != "attention_mask"}
    assert torch.equal(compressed.generate(**no_mask, **GREEDY), want)  # padding is known by its token
    assert torch.equal(compressed.generate(**no_mask, attention_mask=None, position_ids=None, **GREEDY), want)
    with pytest.raises(ValueError, match="not both"):
        compressed.generate(inputs["input_ids"], **inputs, **GREEDY)


def test_lengths_are_those_of_the_callers_prompt(ready):
    compressed, inputs = ready
    width = inputs["input_ids"].shape[1]
    plain = {"do_sample": False}
    assert compressed.generate(**inputs, **plain, max_length=width + 4).shape[1] == width + 4
    config = GenerationConfig(max_length=width + 3, do_sample=False)
    assert compressed.generate(**inputs, generation_config=config).shape[1] == width + 3
    assert config.max_length == width + 3  # the caller's object is not changed
    assert compressed.generate(**inputs, **plain, max_new_tokens=2).shape[1] == width + 2
    model = compressed.model
    model.generation_config.max_length = width + 6
    try:
        assert compressed.generate(**inputs, **plain).shape[1] == width + 6
        assert compressed.generate(**inputs, generation_config=GenerationConfig(do_sample=False)).shape[1] == width + 6
    finally:
        model.generation_config.max_length = None
    with pytest.warns(UserWarning, match="default `max_length`"):  # generate's own, and its own 20 new tokens
        assert compressed.generate(**inputs, **plain).shape[1] == width + 20


def test_min_length_holds_off_the_end(ready):
    compressed, inputs = ready
    width = inputs["input_ids"].shape[1]
    first = compressed.generate(**inputs, **GREEDY)[:, width]
    ends = sorted(set(first.tolist()))  # would end at once
    short = compressed.generate(**inputs, **GREEDY, eos_token_id=ends)
    long = compressed.generate(**inputs, **GREEDY, eos_token_id=ends, min_length=width + 3)
    assert short.shape[1] == width + 1
    assert long.shape[1] >= width + 4
    assert not torch.isin(long[:, width : width + 3], torch.tensor(ends)).any()


class Process(LogitsProcessor):
    """Records the ids of each call."""

    def __init__(self):
        self.calls = []

    def __call__(self, input_ids, scores):
        self.calls.append(input_ids.clone())
        return scores


class Stop(StoppingCriteria):
    """Records the ids of each call and never stops."""

    def __init__(self):
        self.calls = []

    def __call__(self, input_ids, scores, **kwargs):
        self.calls.append(input_ids.clone())
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize("beams", [1, 3])
def test_processors_criteria_and_allowed_tokens_get_the_callers_ids(ready, beams):
    compressed, inputs = ready
    processor, criterion, prefixes = Process(), Stop(), []
    ids = inputs["input_ids"]

    def allowed(row, prefix):
        prefixes.append((row, prefix))
        return list(range(200))

    out = compressed.generate(
        **inputs,
        **GREEDY,
        num_beams=beams,
        logits_processor=LogitsProcessorList([processor]),
        stopping_criteria=StoppingCriteriaList([criterion]),
        prefix_allowed_tokens_fn=allowed,
    )
    assert torch.equal(processor.calls[0], ids.repeat_interleave(beams, 0))
    for call in (*processor.calls, *criterion.calls):  # generate scores more candidates than it has beams
        assert torch.equal(call[:, : ids.shape[1]], ids.repeat_interleave(len(call) // len(ids), 0))
    assert all(torch.equal(prefix[: ids.shape[1]], ids[row]) for row, prefix in prefixes)
    assert torch.equal(out, compressed.generate(**inputs, **GREEDY, num_beams=beams))


class Stream(BaseStreamer):
    def __init__(self):
        self.values, self.ended = [], False

    def put(self, value):
        self.values.append(value)

    def end(self):
        self.ended = True


def test_a_streamer_gets_the_callers_prompt_and_then_the_answer(family):
    model, processor = backbone(family)
    inputs, stream = make_inputs(processor, SAMPLES["one"]), Stream()
    out = compress(model, VtcCls(2), tokens=3).generate(**inputs, **GREEDY, streamer=stream)
    assert torch.equal(stream.values[0], inputs["input_ids"])
    assert torch.equal(torch.cat(stream.values[1:]), out[0, inputs["input_ids"].shape[1] :])
    assert stream.ended


def test_the_last_outcome_has_kept_tokens_and_times(family):
    model, processor = backbone(family)
    inputs = make_inputs(processor, SAMPLES["ragged several"])
    compressed = compress(model, VtcCls(2), tokens=5)
    assert compressed.last is None
    compressed.generate(**inputs, **GREEDY)
    result = compressed.last
    assert result.tokens_after.tolist() == [5, 5, 0]
    assert result.tokens_before.tolist() == result.layout.untouched.tolist()
    assert result.kept.sum() == 10
    assert result.scores.shape == result.kept.shape
    assert list(result.seconds) == ["arrange", "encode", "prune", "splice", "generate"]
    assert all(seconds > 0 for seconds in result.seconds.values())
    if family == "llava":
        assert result.structural_before.tolist() == result.structural_after.tolist() == [0, 0, 0]
    else:
        assert all(0 <= a < b for a, b in zip(result.structural_after[:2], result.structural_before[:2], strict=True))


def test_a_budget_that_covers_everything_calls_the_model_untouched(ready, monkeypatch):
    _, inputs = ready
    for budget in ({"tokens": 10**6}, {"ratio": 1.0}):
        compressed = compress(ready[0].model, VtcCls(last=2), **budget)
        want = compressed.model.generate(**inputs, **GREEDY)
        for step in ("encode", "splice"):
            monkeypatch.setattr(compressed.adapter, step, lambda *_, **__: pytest.fail("the model was touched"))
        assert torch.equal(compressed.generate(**inputs, **GREEDY), want)
        result = compressed.last
        assert result.tokens_after.tolist() == result.tokens_before.tolist()
        assert result.scores is None
        assert torch.equal(result.kept, result.layout.valid)


def test_the_model_and_the_inputs_are_unchanged(ready):
    compressed, inputs = ready
    copies = {k: v.clone() for k, v in inputs.items()}
    want = compressed.model.generate(**inputs, **GREEDY)
    with check_restored(compressed.model):
        first = compressed.generate(**inputs, **GREEDY, num_beams=2)
        assert torch.equal(compressed.generate(**inputs, **GREEDY, num_beams=2), first)
    assert all(torch.equal(inputs[k], v) for k, v in copies.items())
    assert torch.equal(compressed.model.generate(**inputs, **GREEDY), want)


def test_positions_come_with_a_stage(ready):
    compressed, inputs = ready
    stages = [Stage("projector", VtcCls(2), Budget(5), positions=positions) for positions in ("original", "compact")]
    model = compressed.model
    answers = [compress(model, stages=[stage]).generate(**inputs, **GREEDY) for stage in stages]
    assert torch.equal(answers[0], compressed.generate(**inputs, **GREEDY))
    assert not torch.equal(answers[0], answers[1])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "a pruner or stages"),
        ({"pruner": VtcCls(), "stages": []}, "a pruner or stages"),
        ({"stages": [Stage("projector", VtcCls(), Budget(3))], "tokens": 3}, "stages have their own budgets"),
        ({"pruner": VtcCls(), "tokens": 3, "ratio": 0.5}, "exactly one"),
        ({"pruner": VtcCls(), "tokens": 0}, "at least 1, got 0"),
        ({"pruner": VtcCls(), "tokens": -1}, "at least 1, got -1"),
        ({"stages": []}, "act at nowhere: this version prunes inside the encoder"),
        ({"stages": [Stage("cache", VtcCls(), Budget(3))]}, "act at cache: this version"),
        ({"stages": [Stage("llm:4", VtcCls(), Budget(3))]}, "before layers 1 to 3 of its language model, not at"),
    ],
)
def test_wrong_arguments_of_compress_are_errors(llava, options, says):
    with pytest.raises(ValueError, match=says):
        compress(llava[0], **options)


def test_a_pruner_without_a_budget_must_be_adaptive(llava):
    model, processor = llava
    with pytest.raises(ValueError, match="give tokens or ratio"):
        compress(model, VtcCls(2)).generate(**make_inputs(processor, SAMPLES["one"]), **GREEDY)


def test_options_of_generate_that_do_not_work_with_pruning_are_errors_before_anything_runs(ready):
    compressed, inputs = ready
    filled = DynamicCache()
    filled.update(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), 0)
    for bad, says in (
        ({"inputs_embeds": torch.zeros(1, 2, 32)}, "inputs_embeds cannot be used"),
        ({"mm_encoder_outputs": {"image": None}}, "give pixel_values"),
        ({"assistant_model": compressed.model}, "assistant"),
        ({"past_key_values": filled}, "past_key_values is filled"),
        ({"pixel_values": None}, "nothing to prune"),
        ({"input_ids": None}, "no input_ids"),
    ):
        with pytest.raises(ValueError, match=says):
            compressed.generate(**inputs | bad, **GREEDY)
    empty = DynamicCache()
    want = compressed.generate(**inputs, **GREEDY)
    assert torch.equal(compressed.generate(**inputs, **GREEDY, past_key_values=empty), want)


def test_a_static_cache_gives_the_same_answer(family):
    model, processor = backbone(family)
    inputs, compressed = make_inputs(processor, SAMPLES["one"]), compress(model, RandomPruner(), tokens=5)
    want = compressed.generate(**inputs, **GREEDY)
    static = compressed.generate(**inputs, **GREEDY, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, want)
