"""Every registered method on every family that its site and signal allow."""

import pytest
import torch

from conftest import SERVED, backbone
from vtcframe import Budget, adapter_for, compress
from vtcframe.pipeline import Method
from vtcframe.registry import entries
from vtcframe.testing.adapters import inputs_for
from vtcframe.testing.families import samples_of
from vtcframe.testing.samples import SAMPLES

METHODS = {
    entry.name: entry.load() for entry in entries() if entry.kind == "pruner" and issubclass(entry.load(), Method)
}
BUDGETS = Budget(tokens=5), Budget(ratio=0.5)
GREEDY = {"max_new_tokens": 2, "do_sample": False}


def at_the_projector(kind):
    return kind.facts.site == "projector"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_tells_its_facts_and_its_paper(name):
    kind = METHODS[name]
    facts = kind.facts
    assert all((facts.signal, facts.selector, facts.dropped, facts.parity))
    assert facts.paper == "" or facts.paper.removeprefix("arXiv ") in kind.__doc__
    assert facts.parity.startswith(("exact", "within ", "differs: ", "no public code"))


@pytest.mark.parametrize("family", SERVED)
@pytest.mark.parametrize("name", sorted(name for name, kind in METHODS.items() if at_the_projector(kind)))
def test_a_method_prunes_a_family_or_says_what_it_lacks(name, family):
    model, processor = backbone(family)
    adapter, served = adapter_for(model, processor), 0
    for samples in ("ragged several", "videos"):
        if samples not in samples_of(family):
            continue
        inputs = inputs_for(model, processor, SAMPLES[samples])
        for budget in BUDGETS:
            compressed = compress(model, stages=METHODS[name]().stages(budget), processor=processor)
            try:
                compressed.generate(**inputs, **GREEDY)
            except ValueError as error:
                assert f"{type(adapter).__name__} cannot gather" in str(error)
                continue
            served += 1
            last = compressed.last
            assert (last.after <= budget.total(last.layout)).all()
            assert (last.after > 0).eq(last.before > 0).all()
    query = {"query": "proxy"} if name in ("VtcCls", "FasterVlm") else {}
    if query:
        inputs = inputs_for(model, processor, SAMPLES["ragged several"])
        evidence = adapter.observe(inputs, METHODS[name](**query).needs if name == "FasterVlm" else ())
        assert torch.isfinite(evidence.tokens).all()
    needs = METHODS[name]().needs
    if not any(
        getattr(need, "query", None) == "cls" or type(need).__name__ in ("ClassToken", "Similarity") for need in needs
    ):
        assert served
