"""Evidence of the language model beside independent references."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from support.llm_stages import GREEDY, LAYOUTS, at, shown
from support.models import backbone
from vtcframe import compress
from vtcframe.adapters.base import adapter_for
from vtcframe.components.scorers import TextAttention
from vtcframe.core.needs import AttentionKeys, AttentionRows, HiddenStates, TextTokens
from vtcframe.methods.aim import AttentionPageRank
from vtcframe.methods.sparsevlm import RaterAttention
from vtcframe.methods.zipcache import ProbeAttention
from vtcframe.testing.laws.adapters import inputs_for
from vtcframe.testing.tiny_models.samples import SAMPLES


def geometry(evidence, full, p):
    """Of a sample: slot of each column, and the slots of its visual tokens, structural ones too."""
    begin = int((full["attention_mask"][p] == 0).sum())
    views = [v for v in range(len(evidence.layout.sample)) if evidence.layout.sample[v] == p]
    visual = [c + begin for v in views for c in evidence.layout.column[v].tolist() if c >= 0]
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


def query_rows(query, view, every, visual, length, full, embeds):
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
    views = [
        u for u in range(len(boxes)) if all(getattr(layout, n)[u] == getattr(layout, n)[v] for n in ("sample", "image"))
    ]
    cut = [u for u in views if boxes[u] != [0, 0, 1, 1]]
    return cut if v in cut and len(cut) < len(views) else [v]


@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_text_attention_is_that_of_the_eager_model(family, layer):
    needs = [
        AttentionRows(query, (layer,), tower="llm", heads=heads, reduce=over)
        for query in ("last", "text", "after")
        for heads in ("split", "mean")
        for over in ("mean", "max")
    ]
    needs += [RaterAttention((layer,), heads) for heads in ("split", "mean")]
    evidence, attentions, _, full, adapter = shown(family, needs)
    entering = []
    hook = adapter.llm_layers()[0].register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    with torch.no_grad():
        adapter.model(**full, use_cache=False)
    hook.remove()
    attention_weights, layout, length = attentions[layer], evidence.layout, full["input_ids"].shape[1]
    for p in range(len(layout.key)):
        begin, visual, every = geometry(evidence, full, p)
        for v in (layout.sample == p).nonzero()[:, 0].tolist():
            view, end = [c + begin for c in layout.column[v].tolist() if c >= 0], crops(layout, v)
            until = [c + begin for u in end for c in layout.column[u].tolist() if c >= 0]
            for need in needs:
                query = getattr(need, "query", "rated")
                rows = query_rows(query, until, every, visual, length, full, entering[0][p])
                block = attention_weights[p][:, rows][:, :, view]  # [H, R, n]
                block = block.mean(0, keepdim=True) if need.heads == "mean" else block
                want = block.amax(1) if getattr(need, "reduce", "mean") == "max" else block.mean(1)
                got = evidence[need][0, v, :, : len(view)]
                torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-4, msg=lambda m, need=need: f"{need}: {m}")


def test_raters_are_few_where_some_text_stands_out():
    evidence, *_ = shown("llava", [RaterAttention((1,)), AttentionRows("text", (1,), tower="llm")])
    rated, text = (evidence[need] for need in evidence.readings)
    assert not torch.allclose(rated[0, 0], text[0, 0], atol=1e-4)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "idefics3"])
def test_a_probe_before_the_language_model_equals_the_evidence_of_a_stage_inside(family):
    needs = [
        AttentionRows("last", (0, 1), tower="llm"),
        AttentionRows("text", (1,), tower="llm"),
        AttentionKeys((1,), "llm"),
        HiddenStates(1, "llm"),
    ]
    needs += [
        TextTokens(AttentionKeys((1,), "llm")),
        TextTokens(HiddenStates(0, "llm")),
        AttentionPageRank((1,)),
        ProbeAttention((1,), random=0.3),
        RaterAttention((1,)),
    ]
    inside, *_ = shown(family, needs, 3)
    model, processor = backbone(family)
    evidence = adapter_for(model).observe(
        inputs_for(model, processor, SAMPLES["ragged several"]), [*needs, HiddenStates()]
    )
    for need in needs:
        torch.testing.assert_close(evidence[need], inside[need], rtol=1e-5, atol=1e-6, equal_nan=True)


def test_hidden_states_keys_and_text_equal_those_of_the_model(llava):
    needs = [
        HiddenStates(1, "llm"),
        TextTokens(HiddenStates(1, "llm")),
        AttentionKeys((1,), "llm"),
        TextTokens(AttentionKeys((1,), "llm")),
    ]
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
        text_states, spoken = evidence[needs[1]][p], evidence[needs[3]][p]
        torch.testing.assert_close(text_states[: len(text)], normed[p, text], atol=1e-5, rtol=1e-4)
        assert text_states[len(text) :].isnan().all()
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


def test_relative_attention_is_divided_by_the_prior_of_rotary_positions():
    plain, relative = (AttentionRows("last", (1,), tower="llm", divide_by_rope_prior=r) for r in (False, True))
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
    tokens = compressed.last.tokens_per_layer[0]
    whole = inputs["input_ids"].shape[1]
    lengths = [layer.get_seq_length() for layer in out.past_key_values.layers]
    assert len(ran) == 1
    assert lengths == [whole - (16 - int(n)) for n in tokens]
    assert tokens.tolist() == [16, 16, 2, 2]


# What it costs


class Largest(TorchDispatchMode):
    """Records the product of the two longest axes of any tensor."""

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
