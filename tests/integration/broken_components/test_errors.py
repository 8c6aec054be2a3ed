"""Third-party components that break their contract: one clear message each."""

from dataclasses import dataclass

import pytest
import torch

from support.broken_components import BROKEN, CALLS, NEEDS, TARGETS, generated
from vtcframe import Budget, Even, Mean, Merger, Pipeline, Pruner, Random, Stage, TopK, VtcCls
from vtcframe.adapters import base as adapter
from vtcframe.core.stages import plan_for, plan_from_stages
from vtcframe.errors import ComponentError
from vtcframe.registry import Entry, entries, find_entry
from vtcframe.testing import make_evidence
from vtcframe_backbones.llava import Llava


def pruner_with(part):
    """A pruner with one part of a stranger."""
    parts = {"scorers": (Random(),), "ensembler": Mean(), "allocator": Even(), "selector": TopK()}
    kinds = {base.__name__: base for base in type(part).__mro__}
    if "Pruner" in kinds:
        return part
    kind = next(name for name in CALLS if name in kinds).lower()
    return Pipeline(**parts | ({"scorers": (part,)} if kind == "scorer" else {kind: part}))


@pytest.mark.parametrize("name", BROKEN)
def test_what_a_component_does_wrong_is_told_with_its_name_and_whose_it_is(broken, name):
    kind, _, says = BROKEN[name]
    with pytest.raises(ComponentError) as told:
        generated(pruner_with(getattr(broken, name)()))
    message = str(told.value)
    assert says.format(name=name) in message
    assert f"{name}() of broken 1.2" in message
    assert "finite" in says or message.startswith(f"{kind.lower()} {name}()")
    assert "\n" not in message
    if "raised" in says:
        assert type(told.value.__cause__).__name__ in message


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("NoArgument", "has a wrong signature: .*: write def __call__\\(self, evidence\\)"),
        ("ManyArguments", "missing 1 .*'seed': write def __call__\\(self, scores, quota, evidence\\)"),
        ("ManySlots", "merger ManySlots\\(\\) of broken 1.2 wants \\[5\\] slots where the quotas are \\[4\\]"),
    ],
)
def test_a_wrong_signature_is_told_with_the_right_one(broken, name, says):
    with pytest.raises(ComponentError, match=rf"{name}\(\) of broken 1.2 .*{says}" if "wants" not in says else says):
        generated(pruner_with(getattr(broken, name)()))


@pytest.mark.parametrize("name", NEEDS)
def test_needs_that_are_none_are_told_before_anything_runs(broken, name):
    with pytest.raises(ComponentError) as told:
        plan_from_stages([Stage("projector", pruner_with(getattr(broken, name)()), Budget(3))])
    assert f"scorer {name}() of broken 1.2 {NEEDS[name]}" in str(told.value)


def test_stages_and_a_pipeline_that_are_none_are_told_before_anything_runs(broken):
    with pytest.raises(ComponentError, match=r"NoStages\(\) of broken 1.2 has a list for its stages: return a tuple"):
        plan_for(broken.NoStages(), Budget(3))
    with pytest.raises(
        ComponentError, match=r"NoPipeline\(\) of broken 1.2 raised TypeError: pipeline\(\) returned None"
    ):
        plan_for(broken.NoPipeline(), Budget(3))


def test_a_part_of_another_kind_or_a_class_in_its_place_is_refused_at_once(broken):
    parts = {"ensembler": Mean(), "allocator": Even(), "selector": TopK()}
    for given, says in (
        ({"scorers": (TopK(),)}, "scorer: an object that extends vtcframe.Scorer is needed, got a TopK"),
        ({"scorers": (Random(),), "selector": TopK}, "selector: .* got the class TopK itself"),
        ({"scorers": (Random(),), "merger": Mean()}, "merger: .* got a Mean"),
        ({"scorers": Random()}, "scorers are a tuple or list, got a Random"),
    ):
        with pytest.raises(TypeError, match=says):
            Pipeline(**parts | given)
    with pytest.raises(TypeError, match=r"extends vtcframe\.Pruner, got the class VtcCls itself"):
        Stage("projector", VtcCls)
    with pytest.raises(TypeError, match=r"extends vtcframe\.Pruner, got the class VtcCls itself"):
        plan_for(VtcCls)


def test_a_scorer_is_told_from_the_one_beside_it(broken):
    pipeline = Pipeline((Random(), broken.NotANumber(), Random(1)), Mean(), Even(), TopK())
    with pytest.raises(ComponentError, match=r"are not finite: NotANumber\(\) of broken 1.2$"):
        pipeline(make_evidence(), Budget(3))


def test_of_our_own_components_no_plug_in_is_blamed():
    with pytest.raises(ComponentError, match=r"^Even shares out a budget: give tokens or ratio$"):
        Pipeline((Random(),), Mean(), Even(), TopK())(make_evidence())

    @dataclass(frozen=True)
    class Mine(Merger):
        def __call__(self, kept, slots, scores, evidence):
            raise KeyError("x")

    with pytest.raises(ComponentError, match=rf"Mine\(\) raised KeyError: 'x' \({__name__}, line \d+\)$"):
        Pipeline((Random(),), Mean(), Even(), TopK(), Mine())(make_evidence(), Budget(3))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, KeyboardInterrupt])
def test_what_is_no_components_fault_passes_as_it_is(error):
    @dataclass(frozen=True)
    class Large(Pruner):
        def __call__(self, evidence, budget=None):
            raise error("of the machine")

    with pytest.raises(error, match="of the machine"):
        generated(Large())


def test_a_component_cannot_leave_the_process_but_a_signals_handler_can():
    handler = {"__name__": "elsewhere"}
    exec("def leave(): raise SystemExit(0)", handler)

    @dataclass(frozen=True)
    class Leaves(Pruner):
        signal: bool

        def __call__(self, evidence, budget=None):
            if self.signal:
                handler["leave"]()
            raise SystemExit(0)

    with pytest.raises(ComponentError, match=rf"Leaves\(signal=False\) raised SystemExit: 0 \({__name__}, line"):
        generated(Leaves(signal=False))
    with pytest.raises(SystemExit):
        generated(Leaves(signal=True))


@pytest.mark.parametrize("at", ["encoder:1", "llm:1"])
def test_inside_the_model_parts_are_told_as_they_are_before_it(broken, at):
    for name in ("BadKey", "GivesNone", "TooMany"):
        with pytest.raises(ComponentError, match=rf"{name}\(\) of broken 1.2 "):
            generated(pruner_with(getattr(broken, name)()), at)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_that_cannot_be_used_is_told_when_it_is_loaded(broken, name):
    with pytest.raises((ImportError, TypeError)) as told:
        find_entry("scorer", name).load()
    assert TARGETS[name][1] in str(told.value)
    assert "scorer TopK" not in str(told.value)


class Stumbling(Llava):
    """An adapter that cannot even be asked."""

    @classmethod
    def matches(cls, model):
        raise KeyError("model_type")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nowhere.at_all:Stumbling", "ImportError: adapter Stumbling of broken 1.2 cannot be imported"),
        (f"{__name__}:Stumbling", "KeyError: 'model_type'"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_left_out_with_a_warning(monkeypatch, llava, target, says):
    stumbling = Entry("adapter", "Stumbling", target, "broken", "1.2")
    monkeypatch.setattr(adapter, "entries", lambda: (stumbling, *entries()))
    with pytest.warns(UserWarning, match=rf"^adapter Stumbling \(broken 1.2\) is left out: {says}"):
        assert type(adapter.adapter_for(llava[0])) is Llava
