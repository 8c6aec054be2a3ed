"""Deliberately wrong components: each check of the kit can fail, and says what is wrong."""

from dataclasses import dataclass, replace

import pytest
import torch

from conftest import backbone
from vtcframe import (
    Allocator,
    Budget,
    ClsAttention,
    Ensembler,
    Even,
    Mean,
    Merger,
    Pipeline,
    Pruner,
    Random,
    RandomPruner,
    Scorer,
    Selector,
    TopK,
    VtcCls,
)
from vtcframe.pipeline import gather
from vtcframe.testing import (
    check_adapter,
    check_allocator,
    check_ensembler,
    check_merger,
    check_pruner,
    check_restored,
    check_scorer,
    check_selector,
    make_inputs,
)
from vtcframe.testing.backbones import SAMPLES
from vtcframe_backbones.llava import Llava, LlavaNext


def wrong(kind, call, **methods):
    """A component of `kind` that does `call`."""
    return type(
        "Wrong", (kind,), {"__call__": lambda self, *args: call(*args), "__repr__": lambda self: "Wrong", **methods}
    )()


SCORERS = {
    "gave \\[6": lambda e: e.tokens[..., 0],
    "not float32": lambda e: e.tokens[None, ..., 0].double(),
    "NaN or inf": lambda e: (e.tokens[None, ..., 0] - e.tokens[0, 3, 0]).log(),
    "alone and in a batch": lambda e: (e.tokens[..., 0] - e.tokens[..., 0].mean(1, keepdim=True))[None],
    "differs alone": lambda e: torch.arange(len(e.tokens)).float()[None, :, None].expand(1, *e.tokens.shape[:2]),
    "second call": lambda e: torch.rand(1, *e.tokens.shape[:2]),
    "changed the evidence": lambda e: e.tokens.mul_(2)[None, ..., 0],
}


@pytest.mark.parametrize("says", SCORERS)
def test_check_scorer_fails(says):
    with pytest.raises(AssertionError, match=says):
        check_scorer(wrong(Scorer, SCORERS[says]))


@dataclass(frozen=True)
class ByNeed(Scorer):
    """Its needs, and what its call does, are given."""

    asked: object
    call: object = None

    @property
    def needs(self):
        return self.asked

    def __call__(self, evidence):
        return self.call(evidence)


class Fields(Scorer):
    def __init__(self):
        self.last = 3

    def __call__(self, evidence):
        return None


class Short(Scorer):
    def __call__(self):
        return None


@pytest.mark.parametrize(
    ("scorer", "says"),
    [
        (Fields, r"check an object that extends vtcframe.Scorer, not the class Fields itself"),
        (Mean(), r"check an object that extends vtcframe.Scorer, not a Mean"),
        (Fields(), r"Fields has fields but is no dataclass: write @dataclass\(frozen=True\)"),
        (Short(), r"cannot be called as its kind is: .*: write def __call__\(self, evidence\)"),
        (ByNeed(ClsAttention(1).needs[0]), "has a Rows for its `needs`: return a tuple"),
        (ByNeed((), lambda e: None), "returned None, not a tensor"),
        (
            ByNeed((), lambda e: e.tokens[..., 0]),
            r"gave \[6, 324\], not .* = \[S, 6, 324\]: give one map as scores\[None\]",
        ),
        (ByNeed((), lambda e: e[ClsAttention(1).needs[0]]), "raised LookupError: .* was not gathered: add it"),
        (ByNeed((), lambda e: e.tokens[None, ..., 0]), "gave torch.bfloat16 of a bfloat16 model: end with .float"),
        (ByNeed((), lambda e: e.layout.centre.mul_(2)[None, ..., 0].nan_to_num()), "it was given, centre, in place"),
    ],
)
def test_a_mistake_that_authors_make_is_told_with_its_cure(scorer, says):
    with pytest.raises(AssertionError, match=says):
        check_scorer(scorer)


def test_what_is_computed_in_place_is_told():
    def select(scores, quota, evidence):
        return TopK()(scores.mul_(2), quota, evidence)

    def share(scores, budget, evidence):
        return Even()(scores, budget.clamp_(max=1), evidence)

    def merge(kept, slots, scores, evidence):
        return plain(kept.logical_not_().logical_not_(), slots, scores.zero_(), evidence)

    for check, kind, call, says in (
        (check_selector, Selector, select, "given, scores, in place: others read it too"),
        (check_allocator, Allocator, share, "given, budget, in place"),
        (check_merger, Merger, merge, "given, scores, in place"),
    ):
        with pytest.raises(AssertionError, match=says):
            check(wrong(kind, call))


ENSEMBLERS = {
    "gave \\[2": lambda maps, layout: torch.cat(maps)[:2],
    "NaN or inf": lambda maps, layout: maps[0][0] / 0,
    "differs alone": lambda maps, layout: maps[0][0] - maps[0][0].amin(1, keepdim=True),  # padding reaches a minimum
    "alone and in a batch": lambda maps, layout: maps[0][0].argsort(1).argsort(1).float(),  # and a rank
}


@pytest.mark.parametrize("says", ENSEMBLERS)
def test_check_ensembler_fails(says):
    with pytest.raises(AssertionError, match=says):
        check_ensembler(wrong(Ensembler, ENSEMBLERS[says]))


def all_to_the_first_view(scores, budget, evidence):
    sample = evidence.layout.sample
    first = torch.cat([torch.tensor([True]), sample[1:] != sample[:-1]])
    return torch.where(first, budget[sample], 0)


ALLOCATORS = {
    "cannot fill": all_to_the_first_view,
    "do not sum": lambda scores, budget, e: (Even()(scores, budget, e) - 1).clamp(min=0),
    "not whole": lambda scores, budget, e: Even()(scores, budget, e).float(),
    "no \\[V\\]": lambda scores, budget, e: Even()(scores, budget, e)[None],
}


@pytest.mark.parametrize("says", ALLOCATORS)
def test_check_allocator_fails(says):
    with pytest.raises(AssertionError, match=says):
        check_allocator(wrong(Allocator, ALLOCATORS[says]))


def test_check_allocator_lets_a_shortfall_pass_only_where_it_is_announced():
    short = wrong(Allocator, lambda scores, budget, e: Even()(scores, budget, e) // 2)
    check_allocator(short, shortfall=True)
    with pytest.raises(AssertionError, match="do not sum"):
        check_allocator(short)


SELECTORS = {
    "kept padding": lambda scores, quota, e: TopK()(scores.masked_fill(scores == -torch.inf, 1e9), quota, e),
    "the quota is": lambda scores, quota, e: TopK()(scores, (quota + 1).minimum(e.layout.count), e),
    "no bool": lambda scores, quota, e: TopK()(scores, quota, e).long(),
    "the quota": lambda scores, quota, e: (
        scores >= scores.sort(1, True).values.gather(1, (quota[:, None] - 1).clamp(min=0))
    ),
    "differs alone": lambda scores, quota, e: TopK()(scores * (-1) ** len(scores), quota, e) & e.layout.valid,
}


@pytest.mark.parametrize("says", SELECTORS)
def test_check_selector_fails(says):
    with pytest.raises(AssertionError, match=says):
        check_selector(wrong(Selector, SELECTORS[says]))


def plain(kept, slots, scores, evidence):
    return gather(kept, kept.sum(1), scores, evidence)


MERGERS = {
    "slots": (plain, {"slots": lambda self, quota, layout: quota + 1}),
    "budgeted": (plain, {"slots": lambda self, quota, layout: (quota > 1).long()}),
    "lost the slot": (
        lambda kept, *rest: plain(
            TopK()(-rest[1].masked_fill(~rest[2].layout.valid, torch.inf), kept.sum(1), rest[2]), *rest
        ),
        {},
    ),
    "same place": (lambda *args: replace(plain(*args), place=plain(*args).place.clamp(max=0)), {}),
    "let padding into": (
        lambda kept, slots, scores, e: plain(
            kept, slots, scores, replace(e, tokens=e.tokens + e.tokens.mean(1, keepdim=True))
        ),
        {},
    ),
    "NaN or inf tokens": (
        lambda kept, slots, scores, e: plain(kept, slots, scores, replace(e, tokens=e.tokens / 0)),
        {},
    ),
}


@pytest.mark.parametrize("says", MERGERS)
def test_check_merger_fails(says):
    call, methods = MERGERS[says]
    with pytest.raises(AssertionError, match=says):
        check_merger(wrong(Merger, call, **methods))


PRUNERS = {
    "budgeted": lambda e, budget: RandomPruner()(e, Budget(3)),
    "not -inf": lambda e, budget: replace(RandomPruner()(e, budget), scores=torch.zeros(e.layout.column.shape)),
    "not float32": lambda e, budget: replace(
        RandomPruner()(e, budget), scores=torch.zeros(e.layout.column.shape).double()
    ),
    "differs alone": lambda e, budget: RandomPruner(seed=len(e.tokens))(e, budget),
}


@pytest.mark.parametrize("says", PRUNERS)
def test_check_pruner_fails(says):
    with pytest.raises(AssertionError, match=says):
        check_pruner(wrong(Pruner, PRUNERS[says]))


def test_check_pruner_fails_where_nan_passes():
    @dataclass(frozen=True)
    class Swallows(Pruner):
        needs = ClsAttention(1).needs

        def __call__(self, evidence, budget=None):
            found = {need: x.nan_to_num() for need, x in evidence.found.items()}
            return VtcCls(last=1)(replace(evidence, found=found), budget)

    with pytest.raises(AssertionError, match="took NaN"):
        check_pruner(Swallows())


def check_with(monkeypatch, family, change, **options):
    """Run check_adapter with one method of the adapter changed."""
    model, processor = backbone(family)
    kind = Llava if family == "llava" else LlavaNext
    name, function = change
    original = getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda self, *args: function(original, self, *args))
    check_adapter(
        model, processor, options.pop("samples", SAMPLES["ragged several"]), (VtcCls(2), RandomPruner()), **options
    )


def spliced(change):
    """Change what splice returns."""

    def splice(original, adapter, *args):
        out = original(adapter, *args)
        change(out)
        return out

    return "splice", splice


def shift_positions(out):
    out["position_ids"] = out["position_ids"] + 1


def close_gaps(out):
    out["position_ids"] = (out["attention_mask"].cumsum(1) - 1).clamp(min=0)


def open_mask(out):
    out["attention_mask"] = torch.ones_like(out["attention_mask"])


def rotate_features(out):
    image = out["mm_encoder_outputs"]["image"]
    image.pooler_output = [part.roll(1, 0) for part in image.pooler_output]


def swap_samples(out):
    image = out["mm_encoder_outputs"]["image"]
    image.pooler_output = image.pooler_output[::-1]


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("change", [shift_positions, close_gaps, open_mask, rotate_features, swap_samples])
def test_check_adapter_fails_where_splice_is_wrong(monkeypatch, family, change):
    with pytest.raises(AssertionError, match=r"keep all|removed = masked"):
        check_with(monkeypatch, family, spliced(change))


def test_check_adapter_fails_where_original_positions_are_left_under_compact_ones(monkeypatch):
    def splice(original, adapter, inputs, evidence, pruned, positions="original"):
        return original(adapter, inputs, evidence, pruned, "original")

    with pytest.raises(AssertionError, match="removed = masked"):
        check_with(monkeypatch, "llava", ("splice", splice), positions="compact")


def test_check_adapter_fails_where_tokens_lie_elsewhere_in_their_view(monkeypatch):
    def encode(original, adapter, *args):
        evidence = original(adapter, *args)
        return replace(evidence, tokens=evidence.tokens.roll(1, 1))

    with pytest.raises(AssertionError, match="keep all"):
        check_with(monkeypatch, "llava", ("encode", encode))


def test_check_adapter_fails_where_a_sample_is_judged_by_its_batch(monkeypatch):
    def encode(original, adapter, inputs, arrangement, needs=()):
        evidence = original(adapter, inputs, arrangement, needs)
        found = {need: x.roll(1, 1) if len(evidence.tokens) > 2 else x for need, x in evidence.found.items()}
        return replace(evidence, found=found)

    with pytest.raises(AssertionError, match="keeps other tokens in a batch"):
        check_with(monkeypatch, "llava", ("encode", encode))


def test_check_adapter_wants_a_budget_that_drops_something(llava):
    with pytest.raises(AssertionError, match="drops nothing"):
        check_adapter(*llava, SAMPLES["one"], budget=Budget(10**6))


@pytest.mark.parametrize(
    ("says", "disturb"),
    [
        ("a hook", lambda model: model.lm_head.register_forward_hook(lambda *_: None)),
        ("the module tree", lambda model: model.lm_head.register_module("more", torch.nn.Identity())),
        ("an overridden method", lambda model: setattr(model.lm_head, "forward", lambda x: x)),
        ("an attention implementation", lambda model: model.set_attn_implementation("eager")),
    ],
)
def test_check_restored_fails(says, disturb):
    from vtcframe.testing import tiny_llava

    model, _ = tiny_llava()
    with pytest.raises(AssertionError, match=f"{says} was not restored"), check_restored(model):
        disturb(model)


def test_check_restored_fails_where_the_registry_keeps_a_gate(llava):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    try:
        with pytest.raises(AssertionError, match="the attention registry was not restored"), check_restored(llava[0]):
            ALL_ATTENTION_FUNCTIONS["eager"] = lambda *_: None
    finally:
        del ALL_ATTENTION_FUNCTIONS["eager"]


def test_the_kit_serves_a_pipeline_of_a_stranger():
    class Mine(Scorer):
        def __call__(self, evidence):
            return evidence.tokens.float().mean(-1)[None]

    check_scorer(Mine())
    check_pruner(Pipeline((Mine(), Random()), Mean(), Even(), TopK()))


def test_inputs_are_padded_on_the_side_asked_for(llava):
    _, processor = llava
    left, right = (make_inputs(processor, SAMPLES["ragged one"], side)["attention_mask"] for side in ("left", "right"))
    assert left[1, 0] == right[1, -1] == 0
    assert left[1, -1] == right[1, 0] == 1


def test_check_adapter_fails_where_an_exception_is_swallowed(monkeypatch):
    def encode(original, adapter, *args):
        try:
            return original(adapter, *args)
        except RuntimeError:
            return None

    with pytest.raises(AssertionError, match="was swallowed"):
        check_with(monkeypatch, "llava", ("encode", encode))


def test_check_adapter_fails_where_an_exception_leaves_something_behind(monkeypatch):
    hooks = []

    def encode(original, adapter, *args):
        hooks.append(adapter.model.base_model.vision_tower.register_forward_hook(lambda *_: None))
        out = original(adapter, *args)
        hooks[-1].remove()  # not in a `finally`
        return out

    with pytest.raises(AssertionError, match="a hook was not restored"):
        check_with(monkeypatch, "llava", ("encode", encode))
    for hook in hooks:
        hook.remove()
