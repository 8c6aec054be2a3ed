"""Every registered method on every family that its site and signal allow."""

import pytest

from conftest import SERVED, backbone
from vtcframe import Budget, ClassToken, Rows, Similarity, adapter_for, compress
from vtcframe.pipeline import Method
from vtcframe.registry import entries
from vtcframe.testing.adapters import inputs_for
from vtcframe.testing.families import samples_of
from vtcframe.testing.samples import SAMPLES

METHODS = {
    entry.name: entry.load() for entry in entries() if entry.kind == "pruner" and issubclass(entry.load(), Method)
}

OPTIONS = {"VScanEncoder": {"layer": 0, "window": 2}, "TokenCorrelation": {"layer": 0}, "ClsCoverage": {"last": 1}}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_tells_its_facts_and_its_paper(name):
    kind = METHODS[name]
    facts = kind.facts
    assert all((facts.signal, facts.selector, facts.dropped, facts.parity))
    assert facts.paper == "" or facts.paper.removeprefix("arXiv ") in kind.__doc__
    assert facts.parity.startswith(("exact", "within ", "differs: ", "no public code", "ours"))


@pytest.mark.parametrize("family", SERVED)
@pytest.mark.parametrize("name", sorted(name for name, kind in METHODS.items() if kind.facts.site == "projector"))
def test_a_method_prunes_a_family_or_says_what_it_lacks(name, family):
    model, processor = backbone(family)
    adapter, method = adapter_for(model, processor), METHODS[name](**OPTIONS.get(name, {}))  # towers of 4 blocks
    for samples in ("ragged several", "videos"):
        if samples not in samples_of(family):
            continue
        inputs = inputs_for(model, processor, SAMPLES[samples])
        if lacks(model, adapter, method, inputs):
            with pytest.raises(ValueError, match=f"{type(adapter).__name__} cannot gather"):
                adapter.observe(inputs, method.needs)
            continue
        for budget in (Budget(tokens=5), Budget(ratio=0.5)):
            compressed = compress(model, stages=method.stages(budget), processor=processor)
            compressed.generate(**inputs, max_new_tokens=2, do_sample=False)
            last = compressed.last
            assert (last.after <= budget.total(last.layout)).all()
            assert (last.after > 0).eq(last.before > 0).all()


def lacks(model, adapter, method, inputs):
    """A class token, or a text tower that the tiny models' own towers were trained with."""
    if any(isinstance(need, Similarity) for need in method.needs):
        return True
    classless = any(not adapter.tower(modality, inputs).classes for modality in adapter.present(inputs))
    return classless and any(
        isinstance(need, ClassToken) or (isinstance(need, Rows) and need.query == "cls") for need in method.needs
    )
