"""Stages inside the language model: laws over a matrix, twins of what is read there, and what is refused."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, GenerationConfig, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from conftest import SERVED, backbone, has_mrope
from covering import cases, pairs
from vtcframe import Budget, Pipeline, VtcCls, compress
from vtcframe.adapter import adapter_for
from vtcframe.allocators import Even
from vtcframe.ensemblers import Mean, RankFusion
from vtcframe.needs import Features, Flow, Keys, Probed, Rows, Text
from vtcframe.pipeline import Pruner, Stage, planned
from vtcframe.remains import everything
from vtcframe.scorers import ClsAttention, Random, TextAttention
from vtcframe.selectors import TopK
from vtcframe.testing import emulated_flash, samples_of
from vtcframe.testing.adapters import inputs_for, left_padded
from vtcframe.testing.families import BACKBONES, FLASH
from vtcframe.testing.llm import check_llm_stages, passage_of
from vtcframe.testing.samples import SAMPLES

GREEDY = {"do_sample": False, "max_new_tokens": 4}
BEAMS = GREEDY | {"num_beams": 3}


def ranked(*scorers, across="sample"):
    return Pipeline(scorers, RankFusion() if len(scorers) > 1 else Mean(), Even(), TopK(), across=across)


def at(layer, *scorers, tokens=2, **options):
    return Stage(f"llm:{layer}", ranked(*scorers), Budget(tokens), **options)


BEFORE = Stage("projector", ranked(TextAttention(1)), Budget(tokens=4))
LAYOUTS = {
    "FastV": [at(2, TextAttention(-1))],
    "ahead, then behind": [at(2, TextAttention(2), tokens=4), at(3, TextAttention(-1, "text"))],
    "probe, then inside": [BEFORE, at(3, TextAttention(-1, "after", over="max"))],
    "two signals": [at(2, ClsAttention(1, "proxy"), TextAttention(-1, "rated"))],
    "compact": [at(2, TextAttention(-1), tokens=3), at(3, TextAttention(-1), positions="compact")],
    "compact first": [at(2, TextAttention(-1), tokens=3, positions="compact"), at(3, TextAttention(-1))],
    "forgetting": [at(2, TextAttention(-1), tokens=3, forget=0), at(3, Random(1), forget=1)],
}
AXES = {
    "family": SERVED,
    "attention": ["sdpa", "eager", "flash"],
    "samples": ["one", "ragged several", "video", "image and video"],
    "side": ["left", "right"],
    "layout": list(LAYOUTS),
    "options": [GREEDY, BEAMS, BEAMS | {"num_return_sequences": 2}],
}


def possible(case):
    family = case["family"]
    if case["samples"] not in samples_of(family) or (case["attention"] == "flash" and family not in FLASH):
        return False
    if "compact" in case["layout"] and has_mrope(family):
        return False
    if case["layout"] == "forgetting" and family == "gemma3":  # its sliding windows forget by themselves
        return False
    # With beams transformers mixes the features of GLM-4.1V's samples up, untouched too: see test_more_families.
    return not (family == "glm4v" and case["options"] != GREEDY and case["samples"] != "one")


def hold(case):
    attention = "sdpa" if case["attention"] == "flash" else case["attention"]
    model, processor = backbone(case["family"], attention)
    samples = SAMPLES[case["samples"]]
    with emulated_flash(model) if case["attention"] == "flash" else nullcontext():
        check_llm_stages(model, processor, LAYOUTS[case["layout"]], samples, case["side"], case["options"])


def name(case):
    return "-".join(str(value).replace(" ", "_") for value in case.values() if not isinstance(value, dict))


@pytest.mark.parametrize("case", pairs(AXES, possible), ids=name)
def test_laws_hold_for_every_pair_of_axis_values(case):
    hold(case)


@pytest.mark.matrix
@pytest.mark.parametrize("family", SERVED)
def test_laws_hold_over_the_full_product(family):
    axes = {"family": [family], "side": ["left"], "samples": ["one", "ragged several"], "options": [GREEDY, BEAMS]}
    for case in cases(AXES | axes, possible):
        hold(case)


# Twins: what stages are shown, against the eager model's own matrices, in plain Python


class Keeper(Pruner):
    """Keeps all, and what it was shown."""

    def __init__(self, *needs):
        self.asked = needs

    @property
    def needs(self):
        return self.asked

    def __call__(self, evidence, budget=None):
        self.seen = evidence
        return everything(evidence)


def shown(family, needs, layer=2, samples="ragged several", attention="sdpa"):
    """Evidence at "llm:`layer`", and the eager model's own outputs on the same prompts, untouched."""
    model, processor = backbone(family, attention)
    inputs, keeper = inputs_for(model, processor, SAMPLES[samples]), Keeper(*needs)
    adapter = adapter_for(model)
    passage = passage_of(adapter, inputs, planned([Stage(f"llm:{layer}", keeper)]))
    with passage:
        model.generate(**passage.given, max_new_tokens=1)
    eager, _ = backbone(family, "eager")
    states, hook = {}, []
    for i, block in enumerate(adapter_for(eager).llm_layers()):
        hook.append(block.register_forward_hook(lambda _, __, out, i=i: states.__setitem__(i, out)))
    with torch.no_grad():
        out = eager(**left_padded(eager, inputs), output_attentions=True, use_cache=False)
    for one in hook:
        one.remove()
    return keeper.seen, out.attentions, states, left_padded(eager, inputs), adapter


def geometry(evidence, full, p):
    """Of a sample: slot of each column, and the slots of its visual tokens, structural ones too."""
    begin = int((full["attention_mask"][p] == 0).sum())
    own = [v for v in range(len(evidence.layout.sample)) if evidence.layout.sample[v] == p]
    visual = [c + begin for v in own for c in evidence.layout.column[v].tolist() if c >= 0]
    extra = [] if evidence.structural is None else evidence.structural.column[evidence.structural.sample == p].tolist()
    return begin, visual, visual + [c + begin for c in extra]


def raters(full, embeds, visual, text):
    share = [0.0] * len(text)
    for v in visual:
        likes = [float(embeds[v] @ embeds[t]) for t in text]
        top = max(likes)
        weights = [math.exp(x - top) for x in likes]
        share = [s + w / sum(weights) / len(visual) for s, w in zip(share, weights, strict=True)]
    chosen = [t for t, s in zip(text, share, strict=True) if s > sum(share) / len(share)]
    return chosen or [len(embeds) - 1]


def asking(query, view, every, visual, length, full, embeds):
    last = max(every)
    text = list(range(last + 1, length)) or [length - 1]
    if query == "last":
        return [length - 1]
    if query == "after":
        return list(range(max(view) + 1, length)) or [length - 1]
    return text if query == "text" else raters(full, embeds, visual, text)


def crops(layout, v):
    """The views that end with view `v`: all crops of its picture where it is one of several, else itself."""
    boxes = layout.box.tolist()
    own = [
        u for u in range(len(boxes)) if all(getattr(layout, n)[u] == getattr(layout, n)[v] for n in ("sample", "image"))
    ]
    cut = [u for u in own if boxes[u] != [0, 0, 1, 1]]
    return cut if v in cut and len(cut) < len(own) else [v]


@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_text_attention_is_that_of_the_eager_model(family, layer):
    needs = [
        Rows(query, (layer,), tower="llm", heads=heads, over=over)
        for query in ("last", "text", "rated", "after")
        for heads in ("split", "mean")
        for over in ("mean", "max")
    ]
    evidence, attentions, _, full, adapter = shown(family, needs)
    entering = []
    hook = adapter.llm_layers()[0].register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    with torch.no_grad():
        adapter.model(**full, use_cache=False)
    hook.remove()
    paid, layout, length = attentions[layer], evidence.layout, full["input_ids"].shape[1]
    for p in range(len(layout.key)):
        begin, visual, every = geometry(evidence, full, p)
        for v in (layout.sample == p).nonzero()[:, 0].tolist():
            view, end = [c + begin for c in layout.column[v].tolist() if c >= 0], crops(layout, v)
            until = [c + begin for u in end for c in layout.column[u].tolist() if c >= 0]
            for need in needs:
                rows = asking(need.query, until, every, visual, length, full, entering[0][p])
                block = paid[p][:, rows][:, :, view]  # [H, R, n]
                block = block.mean(0, keepdim=True) if need.heads == "mean" else block
                want = block.amax(1) if need.over == "max" else block.mean(1)
                got = evidence[need][0, v, :, : len(view)]
                torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-4, msg=lambda m, need=need: f"{need}: {m}")


def test_raters_are_few_where_some_text_stands_out():
    evidence, *_ = shown("llava", [Rows("rated", (1,), tower="llm"), Rows("text", (1,), tower="llm")])
    rated, text = (evidence[need] for need in evidence.found)
    assert not torch.allclose(rated[0, 0], text[0, 0], atol=1e-4)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "idefics3"])
def test_a_probe_before_the_language_model_shows_what_a_stage_inside_would(family):
    needs = [Rows("last", (0, 1), tower="llm"), Rows("text", (1,), tower="llm"), Keys((1,), "llm"), Features(1, "llm")]
    needs += [Text(Keys((1,), "llm")), Text(Features(0, "llm")), Flow((1,)), Probed((1,), random=0.3)]
    inside, *_ = shown(family, needs, 3)
    model, processor = backbone(family)
    evidence = adapter_for(model).observe(inputs_for(model, processor, SAMPLES["ragged several"]), [*needs, Features()])
    for need in needs:
        torch.testing.assert_close(evidence[need], inside[need], rtol=1e-5, atol=1e-6, equal_nan=True)


def test_hidden_states_keys_and_text_are_the_models_own(llava):
    needs = [Features(1, "llm"), Text(Features(1, "llm")), Keys((1,), "llm"), Text(Keys((1,), "llm"))]
    evidence, _, states, full, adapter = shown("llava", needs)
    normed, layout = adapter.decoder().norm(states[1]), evidence.layout
    cache = DynamicCache()
    with torch.no_grad():
        adapter.model(**full, use_cache=True, past_key_values=cache)
    keys = cache.layers[1].keys
    for p in range(len(layout.key)):
        begin, _, every = geometry(evidence, full, p)
        length = full["input_ids"].shape[1]
        text = list(range(max(every, default=begin - 1) + 1, length))
        said, spoken = evidence[needs[1]][p], evidence[needs[3]][p]
        torch.testing.assert_close(said[: len(text)], normed[p, text], atol=1e-5, rtol=1e-4)
        assert said[len(text) :].isnan().all()
        want = keys[p][:, text].transpose(0, 1).flatten(1)
        torch.testing.assert_close(spoken[: len(text)], want, atol=1e-5, rtol=1e-4)
        for v in (layout.sample == p).nonzero()[:, 0].tolist():
            view = [c + begin for c in layout.column[v].tolist() if c >= 0]
            torch.testing.assert_close(evidence[needs[0]][v, : len(view)], normed[p, view], atol=1e-5, rtol=1e-4)
            want = keys[p][:, view]
            torch.testing.assert_close(evidence[needs[2]][0, v, :, : len(view)], want, atol=1e-5, rtol=1e-4)


def test_tokens_are_the_hidden_states_that_enter_the_layer():
    evidence, _, states, full, _ = shown("llava", [])
    for v, p in enumerate(evidence.layout.sample.tolist()):
        begin = int((full["attention_mask"][p] == 0).sum())
        view = [c + begin for c in evidence.layout.column[v].tolist() if c >= 0]
        torch.testing.assert_close(evidence.tokens[v, : len(view)], states[1][p, view], atol=1e-5, rtol=1e-4)


def test_relative_attention_is_divided_by_what_rotary_positions_alone_would_pay():
    plain, relative = (Rows("last", (1,), tower="llm", relative=r) for r in (False, True))
    evidence, *_, full, adapter = shown("llava", [plain, relative])
    config = adapter.decoder().config
    width = config.hidden_size // config.num_attention_heads
    theta = [config.rope_parameters["rope_theta"] ** (-2 * i / width) for i in range(width // 2)]
    for v, p in enumerate(evidence.layout.sample.tolist()):
        last = int(full["attention_mask"][p].sum()) - 1
        for n, column in enumerate(evidence.layout.column[v].tolist()):
            if column >= 0:
                prior = 2 * sum(math.cos((last - column) * t) for t in theta) / math.sqrt(width)
                want = evidence[plain][0, v, :, n] / prior
                torch.testing.assert_close(evidence[relative][0, v, :, n], want, rtol=1e-3, atol=1e-6)


def test_a_layer_that_is_read_ahead_is_not_run_and_its_cache_stays_empty(llava):
    model, processor = llava
    inputs, ran = inputs_for(model, processor, SAMPLES["one"]), []
    hook = adapter_for(model).llm_layers()[2].mlp.register_forward_hook(lambda *_: ran.append(1))
    compressed = compress(model, stages=[at(2, TextAttention(2))])
    out = compressed.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True)
    hook.remove()
    read = compressed.last.visual[0]
    whole = inputs["input_ids"].shape[1]
    lengths = [layer.get_seq_length() for layer in out.past_key_values.layers]
    assert len(ran) == 1
    assert lengths == [whole - (16 - int(n)) for n in read]
    assert read.tolist() == [16, 16, 2, 2]


# What it costs


class Largest(TorchDispatchMode):
    """The square that would hold the two longest sides of any tensor made."""

    def __init__(self):
        super().__init__()
        self.side = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor) and x.ndim > 1 and "embedding" not in str(func):
                self.side = max(self.side, sorted(s for s in x.shape)[-2])
        return out


@pytest.mark.parametrize("layout", ["FastV", "ahead, then behind", "probe, then inside"])
def test_no_square_of_the_prompt_is_made_and_no_kernel_exchanged(layout, monkeypatch):
    model, processor = backbone("llava")
    words = " ".join(["what is in the image ?"] * 20)
    inputs = inputs_for(model, processor, [(f"<image> {words}", SAMPLES["one"][0][1][:1])])
    length = inputs["input_ids"].shape[1]
    used = []
    kernel = ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setitem(
        ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", lambda *a, **k: (used.append(1), kernel(*a, **k))[1]
    )
    compressed = compress(model, stages=LAYOUTS[layout])
    with Largest() as most:
        compressed.generate(**inputs, **GREEDY)
    assert length > 64 + 16  # wider than any width of the tiny model
    assert most.side < length
    assert used
    assert {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")} == {"sdpa"}


def test_an_eager_model_shows_that_the_measure_finds_squares():
    model, processor = backbone("llava", "eager")
    inputs = inputs_for(
        model, processor, [("<image> " + " ".join(["what is in the image ?"] * 20), SAMPLES["one"][0][1][:1])]
    )
    with Largest() as most:
        model.generate(**inputs, **GREEDY)
    assert most.side >= inputs["input_ids"].shape[1]


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "mistral3"])
@pytest.mark.parametrize("layout", ["FastV", "ahead, then behind", "forgetting"])
def test_tokens_and_bytes_told_are_those_of_the_cache(family, layout):
    model, processor = backbone(family)
    inputs = inputs_for(model, processor, SAMPLES["one"])
    compressed, cache = compress(model, stages=LAYOUTS[layout]), DynamicCache()
    compressed.generate(**inputs, do_sample=False, max_new_tokens=3, min_new_tokens=3, past_key_values=cache)
    told, answered = compressed.last, 2  # the last token is not read any more
    held = sum(x[:, :, answered:].nbytes for layer in cache.layers for x in (layer.keys, layer.values))
    assert told.kv_bytes.tolist() == [held]
    assert told.kv_bytes[0] < told.kv_bytes_before[0]
    assert told.processed[0] == told.visual[0].float().mean()
    plain = DynamicCache()
    model.generate(**inputs, do_sample=False, max_new_tokens=1, past_key_values=plain)
    assert told.kv_bytes_before[0] == sum(x.nbytes for layer in plain.layers for x in (layer.keys, layer.values))


def test_positions_of_new_tokens_follow_the_prompt_and_never_the_length_of_a_cache(llava):
    model, processor = llava
    inputs, seen = inputs_for(model, processor, SAMPLES["one"]), {}
    rotary = adapter_for(model).decoder().rotary_emb
    length, cache = inputs["input_ids"].shape[1], DynamicCache()
    given = GREEDY | {"min_new_tokens": 4, "past_key_values": cache}
    stages = [at(2, TextAttention(-1), forget=0), at(3, TextAttention(-1), tokens=1, positions="compact")]
    passage = passage_of(adapter_for(model), inputs, planned(stages))
    with passage:  # hooks run in the order in which they were made: these see what the stages hand on
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, __, kwargs, i=i: seen.setdefault(i, []).append(kwargs["position_embeddings"][0][0, -1]),
                with_kwargs=True,
            )
            for i, layer in enumerate(adapter_for(model).llm_layers())
        ]
        model.generate(**passage.given, **given)
    for hook in hooks:
        hook.remove()
    held = [layer.get_seq_length() for layer in cache.layers]
    assert len(set(held)) > 1  # layers hold different numbers of tokens
    text = length - 16
    for i in range(4):
        first = text + 1 - 1 if i == 3 else length - 1  # the last layer counts what is left
        want = [rotary(torch.zeros(1), torch.tensor([[first + n]]))[0][0, 0] for n in range(len(seen[i]))]
        torch.testing.assert_close(torch.stack(seen[i]), torch.stack(want))


# Half precision


def test_scores_are_float32_where_the_model_is_not():
    model, processor = BACKBONES["llava"]()  # its own: there is no way back from half precision
    half = model.to(torch.bfloat16)
    inputs, keeper = inputs_for(half, processor, SAMPLES["one"]), Keeper(Rows("last", (1,), tower="llm"))
    passage = passage_of(adapter_for(half), inputs, planned([Stage("llm:2", keeper)]))
    with passage, torch.autocast("cpu", torch.bfloat16):
        half.generate(**passage.given, max_new_tokens=1)
    assert keeper.seen[keeper.asked[0]].dtype == torch.float32
    assert len(keeper.seen[keeper.asked[0]].unique()) == 16 * 4


def test_half_precision_would_make_one_score_of_many_and_float32_does_not():
    """LOOK-M adds -65516 to the scores of images in half precision, and 576 of them become one."""
    scores = torch.rand(576, generator=torch.Generator().manual_seed(0))
    assert len((scores.half() + torch.tensor(-65504.0).half()).unique()) == 1
    evidence, *_ = shown("llava", [Rows("last", (1,), tower="llm", heads="mean")], samples="one")
    (paid,) = evidence.found.values()
    assert paid.dtype == torch.float32
    assert len(paid.unique()) == paid.numel()


# What is refused, before anything runs


@pytest.mark.parametrize(
    ("family", "stage", "says"),
    [
        ("llava", at(4, Random()), "before layers 1 to 3 of its language model"),
        ("qwen3_vl", at(1, Random()), "before layers 2 to 3"),
        ("qwen2_vl", at(2, Random(), positions="compact"), "M-RoPE"),
        ("llava", at(2, TextAttention(3)), r"asks for layer 3: 0 to 2 can be read at 'llm:2'"),
        ("llava", at(2, TextAttention(-3)), "asks for layer -1: 0 to 2"),
        ("llava", Stage("projector", ranked(TextAttention(4)), Budget(2)), "0 to 3 can be read before"),
        ("gemma3", at(2, Random(), forget=0), "sliding windows forget by themselves"),
    ],
)
def test_stages_that_a_model_has_no_place_for_are_refused(family, stage, says):
    with pytest.raises(ValueError, match=says):
        compress(backbone(family)[0], stages=[stage])


@pytest.mark.parametrize("need", [Features(2, "llm"), Text(Features(2, "llm")), Rows("cls", (1,), tower="llm")])
def test_what_is_not_there_yet_cannot_be_asked(llava, need):
    with pytest.raises(ValueError, match=r"can be read at|is asked by"):
        compress(llava[0], stages=[Stage("llm:2", Keeper(need))])


@pytest.mark.parametrize(
    ("at_", "options", "says"),
    [
        ("llm:0", {}, "nothing of the language model is run before layer 0"),
        ("llm:2", {"forget": 2}, "forget names a layer before K"),
        ("projector", {"forget": 0}, "forget names a layer before K"),
    ],
)
def test_stages_that_make_no_sense_are_refused(at_, options, says):
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
def test_options_that_stages_cannot_live_with_are_refused_before_anything_runs(llava, option, value, as_config):
    model, processor = llava
    compressed = compress(model, stages=LAYOUTS["FastV"])
    given = {"generation_config": GenerationConfig(**{option: value})} if as_config else {option: value}
    with pytest.raises(ValueError, match=f"cannot be run with {option}"):
        compressed.generate(**inputs_for(model, processor, SAMPLES["one"]), **given)
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


def test_a_prompt_that_is_read_twice_is_an_error_and_leaves_nothing_behind(llava):
    model, processor = llava
    inputs = inputs_for(model, processor, SAMPLES["one"])
    passage = passage_of(adapter_for(model), inputs, planned(LAYOUTS["FastV"]))
    with passage, pytest.raises(ValueError, match="need a cache"):
        model.generate(**passage.given, max_new_tokens=3, min_new_tokens=3, use_cache=False)


def test_a_stage_is_told_what_towers_showed_of_the_tokens_left():
    model, processor = backbone("llava")
    inputs = inputs_for(model, processor, SAMPLES["ragged several"])
    keeper, scorer = Keeper(*ClsAttention(2).needs), ClsAttention(2)
    adapter = adapter_for(model)
    passage = passage_of(
        adapter,
        inputs,
        planned([Stage("projector", VtcCls(1), Budget(5)), at(1, Random(), tokens=3), Stage("llm:2", keeper)]),
    )
    with passage:
        model.generate(**passage.given, max_new_tokens=1)
    whole = adapter.observe(inputs, scorer.needs)
    before = {
        (p, c): s
        for p, column, scores in zip(
            whole.layout.sample.tolist(), whole.layout.column.tolist(), scorer(whole)[0].tolist(), strict=True
        )
        for c, s in zip(column, scores, strict=True)
        if c >= 0
    }
    seen = keeper.seen
    for p, column, scores in zip(
        seen.layout.sample.tolist(), seen.layout.column.tolist(), scorer(seen)[0].tolist(), strict=True
    ):
        kept = [(c, s) for c, s in zip(column, scores, strict=True) if c >= 0]
        assert len(kept) in (0, 3)
        assert all(before[p, c] == pytest.approx(s) for c, s in kept)
