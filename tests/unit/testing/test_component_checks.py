"""Deliberately wrong components: each check of components can fail, and says what is wrong."""

from dataclasses import dataclass, replace

import pytest
import torch

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
from vtcframe.core.pipeline import gather
from vtcframe.testing import check_allocator, check_ensembler, check_merger, check_pruner, check_scorer, check_selector


def wrong(kind, call, **methods):
    """A component of `kind` that does `call`."""
    return type(
        "Wrong", (kind,), {"__call__": lambda self, *args: call(*args), "__repr__": lambda self: "Wrong", **methods}
    )()


SCORERS = {
    "returned \\[6": lambda e: e.tokens[..., 0],
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
    """A scorer with any needs and any call."""

    any_needs: object
    call: object = None

    @property
    def needs(self):
        return self.any_needs

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
        (Short(), r"has a wrong signature: .*: write def __call__\(self, evidence\)"),
        (ByNeed(ClsAttention(1).needs[0]), "has an AttentionRows for its `needs`: return a tuple"),
        (ByNeed((), lambda e: None), "returned None, not a tensor"),
        (
            ByNeed((), lambda e: e.tokens[..., 0]),
            r"returned \[6, 324\], not .* = \[S, 6, 324\]: give one map as scores\[None\]",
        ),
        (ByNeed((), lambda e: e[ClsAttention(1).needs[0]]), "raised LookupError: .* was not gathered: add it"),
        (ByNeed((), lambda e: e.tokens[None, ..., 0]), "returned torch.bfloat16 for a bfloat16 model: end with .float"),
        (
            ByNeed((), lambda e: e.layout.centre.mul_(2)[None, ..., 0].nan_to_num()),
            "another argument, centre, in place",
        ),
    ],
)
def test_mistakes_of_authors_are_errors_with_a_cure(scorer, says):
    with pytest.raises(AssertionError, match=says):
        check_scorer(scorer)


def test_changes_in_place_are_errors():
    def select(scores, quota, evidence):
        return TopK()(scores.mul_(2), quota, evidence)

    def share(scores, budget, evidence):
        return Even()(scores, budget.clamp_(max=1), evidence)

    def merge(kept, slots, scores, evidence):
        return plain(kept.logical_not_().logical_not_(), slots, scores.zero_(), evidence)

    for check, kind, call, says in (
        (check_selector, Selector, select, "argument, scores, in place: other components use it too"),
        (check_allocator, Allocator, share, "argument, budget, in place"),
        (check_merger, Merger, merge, "argument, scores, in place"),
    ):
        with pytest.raises(AssertionError, match=says):
            check(wrong(kind, call))


ENSEMBLERS = {
    "returned \\[2": lambda maps, layout: torch.cat(maps)[:2],
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
    "not integers": lambda scores, budget, e: Even()(scores, budget, e).float(),
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
            readings = {need: x.nan_to_num() for need, x in evidence.readings.items()}
            return VtcCls(last=1)(replace(evidence, readings=readings), budget)

    with pytest.raises(AssertionError, match="took NaN"):
        check_pruner(Swallows())


def test_the_kit_checks_a_third_party_pipeline():
    class MeanChannel(Scorer):
        def __call__(self, evidence):
            return evidence.tokens.float().mean(-1)[None]

    check_scorer(MeanChannel())
    check_pruner(Pipeline((MeanChannel(), Random()), Mean(), Even(), TopK()))
