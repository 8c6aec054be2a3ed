"""Stages inside the language model: the KV cache, positions, precision and errors."""

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, StaticCache

from support.llm_stages import GREEDY, LAYOUTS, Keeper, at, ranked, shown
from support.models import backbone
from vtcframe import Budget, VtcCls, compress
from vtcframe.adapters.base import adapter_for
from vtcframe.components.scorers import ClsAttention, Random, TextAttention
from vtcframe.core.needs import AttentionRows, HiddenStates, TextTokens
from vtcframe.core.stages import Stage, plan_from_stages
from vtcframe.testing.laws.adapters import inputs_for
from vtcframe.testing.laws.llm import prepare
from vtcframe.testing.tiny_models.other_families import BACKBONES
from vtcframe.testing.tiny_models.samples import SAMPLES


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "mistral3"])
@pytest.mark.parametrize("layout", ["FastV", "ahead, then behind", "forgetting"])
def test_reported_tokens_and_bytes_are_those_of_the_cache(family, layout):
    model, processor = backbone(family)
    inputs = inputs_for(model, processor, SAMPLES["one"])
    compressed, cache = compress(model, stages=LAYOUTS[layout]), DynamicCache()
    compressed.generate(**inputs, do_sample=False, max_new_tokens=3, min_new_tokens=3, past_key_values=cache)
    outcome, answered = compressed.last, 2  # the last token is not read any more
    cached = sum(x[:, :, answered:].nbytes for layer in cache.layers for x in (layer.keys, layer.values))
    assert outcome.kv_bytes.tolist() == [cached]
    assert outcome.kv_bytes[0] < outcome.kv_bytes_before[0]
    assert outcome.mean_tokens_per_layer[0] == outcome.tokens_per_layer[0].float().mean()
    plain = DynamicCache()
    model.generate(**inputs, do_sample=False, max_new_tokens=1, past_key_values=plain)
    assert outcome.kv_bytes_before[0] == sum(x.nbytes for layer in plain.layers for x in (layer.keys, layer.values))


def test_positions_of_new_tokens_follow_the_prompt_and_never_the_length_of_a_cache(llava):
    model, processor = llava
    inputs, observed = inputs_for(model, processor, SAMPLES["one"]), {}
    rotary = adapter_for(model).decoder().rotary_emb
    length, cache = inputs["input_ids"].shape[1], DynamicCache()
    generate_options = GREEDY | {"min_new_tokens": 4, "past_key_values": cache}
    stages = [at(2, TextAttention(-1), forget=0), at(3, TextAttention(-1), tokens=1, positions="compact")]
    passage = prepare(adapter_for(model), inputs, plan_from_stages(stages))
    with passage:  # hooks run in the order in which they were made: these see what the stages hand on
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, __, kwargs, i=i: observed.setdefault(i, []).append(kwargs["position_embeddings"][0][0, -1]),
                with_kwargs=True,
            )
            for i, layer in enumerate(adapter_for(model).llm_layers())
        ]
        model.generate(**passage.generate_kwargs, **generate_options)
    for hook in hooks:
        hook.remove()
    cached = [layer.get_seq_length() for layer in cache.layers]
    assert len(set(cached)) > 1  # layers hold different numbers of tokens
    text = length - 16
    for i in range(4):
        first = text + 1 - 1 if i == 3 else length - 1  # the last layer counts what is left
        want = [rotary(torch.zeros(1), torch.tensor([[first + n]]))[0][0, 0] for n in range(len(observed[i]))]
        torch.testing.assert_close(torch.stack(observed[i]), torch.stack(want))


# Half precision


def test_scores_are_float32_for_models_in_half_precision():
    model, processor = BACKBONES["llava"]()  # its own: there is no way back from half precision
    half = model.to(torch.bfloat16)
    inputs, keeper = inputs_for(half, processor, SAMPLES["one"]), Keeper(AttentionRows("last", (1,), tower="llm"))
    passage = prepare(adapter_for(half), inputs, plan_from_stages([Stage("llm:2", keeper)]))
    with passage, torch.autocast("cpu", torch.bfloat16):
        half.generate(**passage.generate_kwargs, max_new_tokens=1)
    assert keeper.observed[keeper.read_needs[0]].dtype == torch.float32
    assert len(keeper.observed[keeper.read_needs[0]].unique()) == 16 * 4


def test_half_precision_would_make_one_score_of_many_and_float32_does_not():
    """LOOK-M adds -65516 to the scores of images in half precision, and 576 of them become one."""
    scores = torch.rand(576, generator=torch.Generator().manual_seed(0))
    assert len((scores.half() + torch.tensor(-65504.0).half()).unique()) == 1
    evidence, *_ = shown("llava", [AttentionRows("last", (1,), tower="llm", heads="mean")], samples="one")
    (attention_weights,) = evidence.readings.values()
    assert attention_weights.dtype == torch.float32
    assert len(attention_weights.unique()) == attention_weights.numel()


# What is refused, before anything runs


@pytest.mark.parametrize(
    ("family", "stage", "says"),
    [
        ("llava", at(4, Random()), "before layers 1 to 3 of its language model"),
        ("qwen3_vl", at(1, Random()), "before layers 2 to 3"),
        ("qwen2_vl", at(2, Random(), positions="compact"), "M-RoPE"),
        ("llava", at(2, TextAttention(3)), r"needs layer 3: 0 to 2 can be read at 'llm:2'"),
        ("llava", at(2, TextAttention(-3)), "needs layer -1: 0 to 2"),
        ("llava", Stage("projector", ranked(TextAttention(4)), Budget(2)), "0 to 3 can be read before"),
        ("gemma3", at(2, Random(), forget=0), "sliding windows, whose KV cache evicts by itself"),
    ],
)
def test_unsupported_stages_are_errors(family, stage, says):
    with pytest.raises(ValueError, match=says):
        compress(backbone(family)[0], stages=[stage])


@pytest.mark.parametrize(
    "need", [HiddenStates(2, "llm"), TextTokens(HiddenStates(2, "llm")), AttentionRows("cls", (1,), tower="llm")]
)
def test_evidence_of_later_layers_is_an_error(llava, need):
    with pytest.raises(ValueError, match=r"can be read at|the queries of the language model are"):
        compress(llava[0], stages=[Stage("llm:2", Keeper(need))])


@pytest.mark.parametrize(
    ("at_", "options", "says"),
    [
        ("llm:0", {}, "no layer of the language model runs before"),
        ("llm:2", {"forget": 2}, "forget names a layer before K"),
        ("projector", {"forget": 0}, "forget names a layer before K"),
    ],
)
def test_contradictory_stages_are_errors(at_, options, says):
    with pytest.raises(ValueError, match=says):
        Stage(at_, VtcCls(), Budget(2), **options)


@pytest.mark.parametrize("as_config", [False, True])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_cache", False),
        ("cache_implementation", "static"),
        ("cache_implementation", "quantized"),
        ("prefill_chunk_size", 8),
        ("prompt_lookup_num_tokens", 2),
    ],
)
def test_unusable_options_of_generate_are_errors_before_anything_runs(llava, option, value, as_config):
    model, processor = llava
    compressed = compress(model, stages=LAYOUTS["FastV"])
    generate_options = {"generation_config": GenerationConfig(**{option: value})} if as_config else {option: value}
    with pytest.raises(ValueError, match=f"cannot be run with {option}"):
        compressed.generate(**inputs_for(model, processor, SAMPLES["one"]), **generate_options)
    compress(model, VtcCls(1), tokens=3).generate(  # stages elsewhere can, as far as transformers can
        **inputs_for(model, processor, SAMPLES["one"]),
        max_new_tokens=1,
        **({option: value} if option == "use_cache" else {}),
    )


def test_a_static_cache_is_refused(llava):
    model, processor = llava
    cache = StaticCache(model.config.get_text_config(), max_cache_len=100)
    with pytest.raises(ValueError, match="give a DynamicCache"):
        compress(model, stages=LAYOUTS["FastV"]).generate(
            **inputs_for(model, processor, SAMPLES["one"]), past_key_values=cache
        )


def test_a_prompt_that_is_processed_twice_is_an_error_and_the_model_is_restored(llava):
    model, processor = llava
    inputs = inputs_for(model, processor, SAMPLES["one"])
    passage = prepare(adapter_for(model), inputs, plan_from_stages(LAYOUTS["FastV"]))
    with passage, pytest.raises(ValueError, match="need a KV cache"):
        model.generate(**passage.generate_kwargs, max_new_tokens=3, min_new_tokens=3, use_cache=False)


def test_a_stage_gets_the_tower_evidence_of_the_remaining_tokens():
    model, processor = backbone("llava")
    inputs = inputs_for(model, processor, SAMPLES["ragged several"])
    keeper, scorer = Keeper(*ClsAttention(2).needs), ClsAttention(2)
    adapter = adapter_for(model)
    passage = prepare(
        adapter,
        inputs,
        plan_from_stages([Stage("projector", VtcCls(1), Budget(5)), at(1, Random(), tokens=3), Stage("llm:2", keeper)]),
    )
    with passage:
        model.generate(**passage.generate_kwargs, max_new_tokens=1)
    whole = adapter.observe(inputs, scorer.needs)
    before = {
        (p, c): s
        for p, column, scores in zip(
            whole.layout.sample.tolist(), whole.layout.column.tolist(), scorer(whole)[0].tolist(), strict=True
        )
        for c, s in zip(column, scores, strict=True)
        if c >= 0
    }
    observed = keeper.observed
    for p, column, scores in zip(
        observed.layout.sample.tolist(), observed.layout.column.tolist(), scorer(observed)[0].tolist(), strict=True
    ):
        kept = [(c, s) for c, s in zip(column, scores, strict=True) if c >= 0]
        assert len(kept) in (0, 3)
        assert all(before[p, c] == pytest.approx(s) for c, s in kept)
