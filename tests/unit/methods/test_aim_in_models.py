"""AIM inside language models."""

import math

import pytest
import torch

from support.models import SERVED, backbone
from vtcframe import Budget, adapter_for, compress
from vtcframe.core.pipeline import gather
from vtcframe.core.stages import Pruner, Stage
from vtcframe.methods.aim import Aim, AttentionPageRank
from vtcframe.testing.laws.adapters import inputs_for
from vtcframe.testing.tiny_models.samples import SAMPLES


class Look(Pruner):
    """Keeps all, and what it was shown."""

    needs = (AttentionPageRank((-1, -2), temperature=1.0, steps=3),)

    def __call__(self, evidence, budget=None):
        self.evidence, layout = evidence, evidence.layout
        scores = torch.zeros(layout.column.shape).masked_fill(~layout.valid, -math.inf)
        return gather(layout.valid, layout.count, scores, evidence)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_walk_in_a_model_follows_the_attention_that_it_returns(family):
    model, processor = backbone(family, "eager")
    inputs, look = inputs_for(model, processor, SAMPLES["ragged several"]), Look()
    compress(model, stages=(Stage("llm:2", look),), processor=processor).generate(**inputs, max_new_tokens=1)
    with torch.no_grad():
        paid = model(**inputs, output_attentions=True).attentions
    real = inputs["attention_mask"].bool()
    layout, ends = look.evidence.layout, look.evidence[look.needs[0]]
    for i, layer in enumerate((1, 0)):
        for v in range(len(layout.sample)):
            p, n = int(layout.sample[v]), int(layout.count[v])
            own = paid[layer][p][:, real[p]][:, :, real[p]]
            d = torch.full((own.shape[0], 1, own.shape[1]), 1 / own.shape[1])
            want = (d @ own @ own @ own)[:, 0, layout.column[v, :n]]
            torch.testing.assert_close(ends[i, v, :, :n], want, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", SERVED)
def test_every_family_lets_its_tokens_merge_and_fade(family):
    model, processor = backbone(family)
    adapter = adapter_for(model, processor)
    first = adapter.llm_first()
    compressed = compress(model, Aim(first=first, span=2), ratio=0.25, processor=processor)
    inputs = inputs_for(model, processor, SAMPLES["ragged one"])
    out = compressed.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    last, entry = compressed.last, Budget(ratio=0.25).total(compressed.last.layout)
    layers = len(adapter.llm_layers())
    by_hand = torch.stack([entry * (2 - min(max(i - first + 1, 0), 2)) // 2 for i in range(layers)], 1)
    assert torch.equal(last.tokens_per_layer, by_hand)
    assert not last.tokens_after.any()
    for sample in SAMPLES["ragged one"]:
        alone = inputs_for(model, processor, [sample])
        row = SAMPLES["ragged one"].index(sample)
        if not sample[1]:
            continue
        answer = compressed.generate(**alone, max_new_tokens=3, min_new_tokens=3, do_sample=False)
        assert out[row, -3:].tolist() == answer[0, -3:].tolist()
