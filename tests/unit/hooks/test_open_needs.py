"""A third-party need beside a reference in plain Python from the weights of eager models."""

import math
import sys
from dataclasses import dataclass

import pytest
import torch

from support.distributions import ROOT
from support.llm_stages import shown
from support.models import backbone
from vtcframe import AttentionNeed, Budget, HiddenNeed, RandomPruner, Stage, adapter_for, compress
from vtcframe.core.needs import AttentionRows
from vtcframe.testing.laws.adapters import inputs_for
from vtcframe.testing.tiny_models.samples import SAMPLES


@pytest.fixture
def entropy_of(monkeypatch):
    """AttentionEntropy of the example of docs/write-a-need.md."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "examples" / "vtcframe-entropy")
    from vtcframe_entropy.scorers import AttentionEntropy

    yield AttentionEntropy
    for name in [name for name in sys.modules if name.partition(".")[0] == "vtcframe_entropy"]:
        del sys.modules[name]


def entropy(weights):
    """The entropy of one row of attention weights, in plain Python."""
    return -sum(p * math.log(p) for p in weights.tolist() if p > 0)


def eager_maps(family, monkeypatch, inputs):
    """The attention [H, T, T] of each view in the last feeding block of the vision tower, of an eager model."""
    model, processor = backbone(family, "eager")
    adapter = adapter_for(model, processor)
    module = adapter.tower("image", inputs).feeding[-1]
    modeling, maps = sys.modules[type(module).__module__], []
    eager = modeling.eager_attention_forward

    def record(called, *args, **kwargs):
        out, weights = eager(called, *args, **kwargs)
        if called is module:
            maps.extend(weights)
        return out, weights

    monkeypatch.setattr(modeling, "eager_attention_forward", record)
    adapter.observe(inputs)
    return maps


@pytest.mark.parametrize(("family", "classes", "group"), [("llava", 1, 1), ("qwen2_5_vl", 0, 4)])
def test_entropy_in_the_vision_tower_is_that_of_the_eager_weights(entropy_of, family, classes, group, monkeypatch):
    model, processor = backbone(family)
    inputs = inputs_for(model, processor, SAMPLES["ragged several"])
    need = entropy_of((-1,))
    evidence = adapter_for(model, processor).observe(inputs, [need])
    layout, maps = evidence.layout, eager_maps(family, monkeypatch, inputs)
    assert len(maps) == len(layout.sample)
    for v, weights in enumerate(maps):
        for head in range(len(weights)):
            rows = [entropy(row) for row in weights[head][classes:]]
            expected = [sum(rows[n : n + group]) / group for n in range(0, len(rows), group)]
            gathered = evidence[need][0, v, head, : int(layout.count[v])]
            if family == "qwen2_5_vl":  # its blocks see tokens in the order of windows
                gathered, expected = gathered.sort().values, sorted(expected)
            torch.testing.assert_close(gathered, torch.tensor(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_entropy_in_the_language_model_is_that_of_the_eager_weights(entropy_of, family):
    need = entropy_of((1,), "llm")
    evidence, attentions, _, full, _ = shown(family, [need])
    layout = evidence.layout
    for v, p in enumerate(layout.sample.tolist()):
        begin = int((full["attention_mask"][p] == 0).sum())
        for n, column in enumerate(layout.column[v].tolist()):
            for head in range(attentions[1].shape[1]) if column >= 0 else ():
                expected = entropy(attentions[1][p, head, begin + column])
                assert float(evidence[need][0, v, head, n]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_needs_of_different_layers_and_kinds_share_readings(entropy_of, monkeypatch):
    """Equal readings are made once in a block, for any needs and layers."""
    model, processor = backbone("llava")
    inputs, reads = inputs_for(model, processor, SAMPLES["one"]), []
    read_encoder = entropy_of.read_encoder
    monkeypatch.setattr(entropy_of, "read_encoder", lambda need, *args: reads.append(need) or read_encoder(need, *args))
    needs = [entropy_of((-1,)), entropy_of((-2, -1)), entropy_of((1, 2))]
    adapter_for(model, processor).observe(inputs, needs)
    assert len(reads) == 2  # two blocks, each once
    proxies = [AttentionRows("cls", (-1,)), AttentionRows("proxy", (-1,)), AttentionRows("proxy", (2,))]
    evidence = adapter_for(model, processor).observe(inputs, proxies)
    assert torch.equal(evidence[proxies[0]], evidence[proxies[1]])


@dataclass(frozen=True)
class Norms(HiddenNeed):
    """The norm of each token's hidden state."""

    layer: int = -1
    tower: str = "vision"

    def read_encoder(self, tokens, class_token):
        return tokens.norm(dim=-1, keepdim=True)

    def read_llm(self, states, prompts):
        return states.norm(dim=-1, keepdim=True)


@dataclass(frozen=True)
class SlotEmbedding(AttentionNeed):
    """The first channel of the embedding of each slot, from the preparation."""

    layers: tuple[int, ...]
    tower = "llm"

    @property
    def preparation(self):
        return first_channel

    def read_llm(self, call, prompts):
        return prompts.prepared[:, None].float()


def first_channel(embeddings, prompts):
    calls.append(embeddings.shape)
    return embeddings[..., 0]


calls = []


def test_hidden_states_and_preparations_reach_the_needs_of_a_third_party_after_tokens_have_left():
    model, processor = backbone("llava")
    adapter, calls[:] = adapter_for(model, processor), []
    inputs = inputs_for(model, processor, SAMPLES["ragged several"])
    observed = []

    @dataclass(frozen=True)
    class Look(RandomPruner):
        @property
        def needs(self):
            return (Norms(), Norms(0, "llm"), SlotEmbedding((0,)), SlotEmbedding((-1,)))

        def __call__(self, evidence, budget=None):
            observed.append(evidence)
            return super().__call__(evidence, budget)

    first, second = (Stage(f"llm:{layer}", RandomPruner(layer), Budget(12 - 3 * layer)) for layer in (1, 2))
    stages = [first, second, Stage("llm:3", Look(), Budget(2))]
    compress(model, stages=stages).generate(**inputs, max_new_tokens=1)
    (evidence,), whole = observed, adapter.observe(inputs)
    assert len(calls) == 1  # both layers share what was prepared
    valid = evidence.layout.valid
    for v in range(len(valid)):
        place = [whole.layout.column[v].tolist().index(c) for c in evidence.layout.column[v][valid[v]].tolist()]
        for layer in (0, -1):
            prepared = evidence[SlotEmbedding((layer,))][0, v, 0, : len(place)]
            torch.testing.assert_close(prepared, whole.tokens[v, place, 0].float())
    assert evidence[Norms()].shape == evidence[Norms(0, "llm")].shape == (*valid.shape, 1)
