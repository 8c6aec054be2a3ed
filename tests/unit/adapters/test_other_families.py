"""Further families of backbones: laws, positions, proxies for [CLS]."""

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import Glm4vForConditionalGeneration

from support.covering import pairs
from support.other_families import FAMILIES, built, calls, members, reference_reading, samples_by_name
from vtcframe import Budget, Pipeline, RandomPruner
from vtcframe.adapters.base import adapter_for
from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean
from vtcframe.components.selectors import TopK
from vtcframe.core.needs import AttentionKeys, AttentionRows, HiddenStates
from vtcframe.core.verbs import Scorer
from vtcframe.inference.compressed import compress
from vtcframe.testing.laws.adapters import check_adapter, check_removed_is_masked
from vtcframe.testing.tiny_models.other_families import BACKBONES
from vtcframe.testing.tiny_models.samples import SAMPLES, make_inputs

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4}


BEAMS = GREEDY | {"num_beams": 3}


OPTIONS = {"greedy": GREEDY, "beams": BEAMS, "sequences": BEAMS | {"num_return_sequences": 2}}


@dataclass(frozen=True)
class AttentionOfQuery(Scorer):
    query: str

    @property
    def needs(self):
        return (AttentionRows(self.query, (-2, -1), heads="mean"),)

    def __call__(self, evidence):
        return evidence[self.needs[0]].mean(2)


def pruner(query):
    return Pipeline((AttentionOfQuery(query),), Mean(), Even(), TopK())


def right_expansion(self, input_ids, mm_encoder_output, expand_size=1, inputs_embeds=None):
    """Expand features of GLM-4.1V as transformers intends: the features of a sample, again for each beam."""
    for outputs in mm_encoder_output.values():
        counts = (input_ids == self.config.image_token_id).sum(1).tolist()
        parts = torch.cat(list(outputs.pooler_output)).split(counts)
        outputs.pooler_output = [part for part in parts for _ in range(expand_size)]
    return mm_encoder_output


CASES = [
    (family, *case.values())
    for family in FAMILIES
    for case in pairs(
        {
            "attention": ["sdpa", "eager"],
            "samples": list(samples_by_name(family)),
            "side": ["left", "right"],
            "positions": ["original"] if family == "glm4v" else ["original", "compact"],
            "options": list(OPTIONS),
            "pruner": ["random", "mean", "received"],
        }
    )
]


@pytest.mark.parametrize(("family", "attention", "samples", "side", "positions", "options", "query"), CASES)
def test_laws_hold_for_every_pair_of_axis_values(
    family, attention, samples, side, positions, options, query, monkeypatch
):
    if family == "glm4v":  # its beam search in transformers is wrong: see the test of beams
        monkeypatch.setattr(Glm4vForConditionalGeneration, "_expand_multimodal_outputs", right_expansion)
    judge = RandomPruner() if query == "random" else pruner(query)
    model, processor = built(family, attention)
    check_adapter(
        model,
        processor,
        samples_by_name(family)[samples],
        (judge,),
        Budget(ratio=0.4),
        positions,
        side,
        OPTIONS[options],
    )


@pytest.mark.parametrize("options", ["beams", "sequences"])
@pytest.mark.parametrize("samples", ["ragged several", "videos"])
def test_beams_of_glm_are_right_with_the_expansion_that_transformers_has(samples, options, monkeypatch):
    model, processor = built("glm4v")
    inputs, few = make_inputs(processor, SAMPLES[samples]), compress(model, RandomPruner(), ratio=0.4)
    with_library_expansion = few.generate(**inputs, **OPTIONS[options])
    monkeypatch.setattr(Glm4vForConditionalGeneration, "_expand_multimodal_outputs", right_expansion)
    assert torch.equal(with_library_expansion, few.generate(**inputs, **OPTIONS[options]))


def test_local_windows_of_gemma_count_the_remaining_tokens():
    model, processor = BACKBONES["gemma3"]()
    model.config.text_config.sliding_window = 20
    for samples, holds in (("one", True), ("several", False)):  # 16 and 22 tokens
        inputs = make_inputs(processor, SAMPLES[samples])
        check = functools.partial(
            check_removed_is_masked, model, inputs, RandomPruner(), Budget(ratio=0.4), "original", GREEDY
        )
        if holds:
            check()
        else:
            with pytest.raises(AssertionError, match="logits differ"):
                check()


def test_types_of_gemma_are_shortened_with_the_prompt():
    model, processor = built("gemma3")
    inputs = make_inputs(processor, SAMPLES["ragged several"], "right")
    adapter = adapter_for(model)
    evidence = adapter.observe(inputs)
    pruned = RandomPruner()(evidence, Budget(tokens=3))
    spliced = adapter.splice(inputs, evidence, pruned)
    image = spliced["input_ids"] == model.config.image_token_id
    assert torch.equal(spliced["token_type_ids"], image.long())
    assert image.sum(1).tolist() == [3, 3, 0]


@pytest.mark.parametrize("family", ["idefics3", "smolvlm"])
def test_llm_layers_are_those_of_the_language_model(family):
    model, _ = built(family)
    assert list(adapter_for(model).llm_layers()) == list(model.model.text_model.layers)


@pytest.mark.parametrize("query", ["mean", "received"])
@pytest.mark.parametrize(
    ("family", "samples"),
    [
        ("llava_next_video", "video"),
        ("idefics3", "ragged several"),
        ("smolvlm", "one"),
        ("gemma3", "several"),
        ("glm4v", "ragged several"),
        ("glm4v", "video"),
    ],
)
def test_proxies_equal_a_reference_from_eager_weights(family, samples, query, monkeypatch):
    model, processor = built(family)
    inputs = make_inputs(processor, SAMPLES[samples])
    need = AttentionRows(query, (0, -1))
    evidence = adapter_for(model).observe(inputs, [need])
    depth, classes = (3, 1) if family == "llava_next_video" else (4, 0)
    every = calls(family, inputs, monkeypatch)
    for at, block in enumerate((0, depth - 1)):
        assert len(every[block]) == len(evidence.layout.sample)
        for v, (q, k, weights) in enumerate(every[block]):
            tokens = members(family, 4, q.shape[1] - classes)
            want = reference_reading(need, q, k, weights, tokens, classes)
            assert torch.allclose(evidence[need][at, v, :, : len(tokens)], want, atol=1e-6)


@pytest.mark.parametrize("query", ["mean", "received"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_patches_are_neither_queries_nor_keys(attention, query, monkeypatch):
    model, processor = built("idefics3", attention)
    inputs = make_inputs(processor, SAMPLES["one"])
    inputs["pixel_attention_mask"] = inputs["pixel_attention_mask"].clone()
    inputs["pixel_attention_mask"][0, 0, :, 14:] = 0  # one column of patches is left, half of two tokens
    inputs["pixel_values"][0, 0, :, :, 14:] = 1e4
    need = AttentionRows(query, (-1,))
    evidence = adapter_for(model).observe(inputs, [need])
    real = [p % 4 == 0 for p in range(16)]
    q, k, weights = calls("idefics3", inputs, monkeypatch)[-1][0]
    want = reference_reading(need, q, k, weights, members("idefics3", 4, 16), 0, real)
    assert torch.allclose(evidence[need][0, 0], want, atol=1e-6)
    assert (evidence[need][0, 0][:, [1, 3]] == 0).all()
    assert (evidence.layout.count == 4).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_features_and_keys_go_the_way_of_the_tokens(family):
    model, processor = built(family)
    for samples in samples_by_name(family).values():
        inputs = make_inputs(processor, samples)
        if family == "llava_next_video" and "pixel_values" in inputs:
            continue  # as in LLaVA-NeXT
        evidence = adapter_for(model).observe(inputs, [HiddenStates(), AttentionKeys((-1,))])
        valid = evidence.layout.valid
        assert evidence.project is not None
        again = evidence.project(evidence[HiddenStates()])
        assert torch.allclose(again[valid], evidence.tokens[valid], atol=1e-5)
        assert evidence[AttentionKeys((-1,))].shape[1:4:2] == valid.shape
