"""VisualExit: laws and twins in plain Python."""

from dataclasses import replace

import pytest
import torch

from support.llm_methods import LAST, ONCE
from support.models import backbone, exact_backbone, has_mrope
from vtcframe import AttentionRows, Budget, adapter_for, compress
from vtcframe.core.stages import plan_from_stages
from vtcframe.methods.pyramiddrop import PyramidDrop
from vtcframe.methods.visual_exit import DropAll, VisualExit
from vtcframe.testing import check_restored, make_evidence
from vtcframe.testing.laws.adapters import inputs_for
from vtcframe.testing.laws.llm import check_llm_stages, masked_layers, prepare
from vtcframe.testing.tiny_models import samples as tiny

RAGGED = tiny.SAMPLES["ragged several"]  # two pictures, one, none


def test_all_visual_tokens_exit_at_a_fixed_layer():
    (stage,) = VisualExit((4, 9)).stages(None)
    assert (stage.at, stage.budget, stage.pruner.needs) == ("llm:4", None, ())
    pruned = stage.pruner(make_evidence())
    assert pruned.tokens.shape == (6, 0, 8)
    assert pruned.total.tolist() == [0, 0, 0, 0]
    left = make_evidence().restrict_to(pruned)
    assert left.layout.count.tolist() == [0] * 6
    assert stage.pruner(left).total.tolist() == [0, 0, 0, 0]


def test_samples_exit_by_themselves_once_little_was_paid_for_long_enough():
    *_, stage = VisualExit((2, 5), threshold=0.3, patience=2).stages(None)
    assert [s.at for s in VisualExit((2, 5), threshold=0.3).stages(None)] == ["llm:2", "llm:5"]
    need = AttentionRows("last", (-2, -1), tower="llm", heads="mean")
    assert stage.pruner.needs == (need,)
    evidence = make_evidence((need,))  # samples 0, 1, 1, 1, 3, 3
    paid = torch.zeros_like(evidence[need])
    for layer, masses in enumerate([[0.29, 0.2, 0.05, 0.06, 0.1, 0.1], [0.29, 0.1, 0.05, 0.01, 0.2, 0.11]]):
        for v, mass in enumerate(masses):  # sample 1 is at 0.31 in the first layer, sample 3 in the second
            n = int(evidence.layout.count[v])
            paid[layer, v, 0, :n] = mass / n
    poisoned = paid.masked_fill(~evidence.layout.valid[None, :, None], torch.nan)
    evidence = replace(evidence, readings={need: poisoned})
    pruned = stage.pruner(evidence)
    assert pruned.total.tolist() == [0, 432, 0, 360]
    assert torch.equal(pruned.kept, evidence.layout.valid & (evidence.layout.sample > 0)[:, None])
    assert (pruned.scores[~evidence.layout.valid] == -torch.inf).all()
    again = DropAll(0.3)(replace(make_evidence((LAST,)), readings={LAST: poisoned[:1]}))
    assert again.total.tolist() == [0, 432, 0, 0]
    assert DropAll(0.5)(replace(make_evidence((LAST,)), readings={LAST: poisoned[:1]})).total.tolist() == [0, 0, 0, 0]


def test_attention_that_is_not_finite_lets_nobody_exit():
    paid = make_evidence((LAST,))[LAST].clone()
    paid[0, -1, 0, 3] = torch.nan
    with pytest.raises(ValueError, match=r"samples \[3\] is not finite"):
        DropAll(0.3)(replace(make_evidence(), readings={LAST: paid}))


# On tiny models of four layers


def small(method, family):
    """The stages of a method before layers 2 and 3, which every family allows."""
    if isinstance(method, PyramidDrop) and has_mrope(family):
        method = replace(method, positions="original")
    return method.stages(Budget(3))


@pytest.mark.parametrize("family", ["llava", "llava_next", "gemma3", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("method", [*ONCE, PyramidDrop((2, 3))], ids=lambda method: type(method).__name__)
def test_laws_of_stages_hold(method, family):
    check_llm_stages(*exact_backbone(family), small(method, family))


def exited(family, threshold, samples):
    """Columns that are left before the last layer, new ids and their logits, sample by sample."""
    model, processor = backbone(family)
    compressed = compress(model, VisualExit((2, 3), threshold), processor=processor)
    inputs = inputs_for(model, processor, samples)
    out = compressed.generate(
        **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    return (
        compressed.last.tokens_per_layer,
        out.sequences[:, inputs["input_ids"].shape[1] :],
        torch.stack(out.logits, 1),
    )


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_what_has_exited_is_hidden_from_later_layers(family):
    model, processor = backbone(family)
    inputs, options = inputs_for(model, processor, RAGGED), {"max_new_tokens": 3, "do_sample": False}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    adapter, plan = adapter_for(model, processor), plan_from_stages(VisualExit((2,)).stages(None))
    passage = prepare(adapter, inputs, plan)
    with check_restored(model), passage:
        got = model.generate(**passage.generate_kwargs, **options)
    assert passage.stages.tokens_per_layer[:, 2:].eq(0).all()
    assert passage.stages.tokens_per_layer[:-1, 1].gt(0).all()
    given = prepare(adapter, inputs, plan).generate_kwargs
    with masked_layers(adapter, passage.stages):
        want = model.generate(**given, **options)
    assert torch.equal(got.sequences, want.sequences)
    for a, b in zip(got.logits, want.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_sample_exits_alone_as_in_its_batch(family):
    every, *_ = exited(family, 1e-6, RAGGED)
    assert torch.equal(every[:, 3], every[:, 0])  # always some attention is left
    mass = sorted(masses(family))
    apart = sum(mass[-2:]) / 2  # between the two samples that have pictures
    visual, ids, logits = exited(family, apart, RAGGED)
    stays = visual[:, 2] == visual[:, 0]
    assert stays[visual[:, 0] > 0].tolist().count(True) == 1
    for p, sample in enumerate(RAGGED):
        if not sample[1]:
            continue
        alone, own, one = exited(family, apart, [sample])
        assert torch.equal(alone[0], visual[p])
        assert torch.equal(own[0], ids[p, : own.shape[1]])
        torch.testing.assert_close(one[0], logits[p, : one.shape[1]], atol=1e-5, rtol=0)


def masses(family):
    """What the last token of each sample pays its pictures in layer 1, by the eager model's own weights."""
    model, processor = backbone(family, "eager")
    inputs = inputs_for(model, processor, RAGGED)
    with torch.no_grad():
        paid = model(**inputs, output_attentions=True).attentions[1][:, :, -1].mean(1)
    pictures = inputs["input_ids"] == model.config.image_token_id
    return (paid * pictures).sum(1).tolist()
