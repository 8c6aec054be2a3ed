"""Methods that score by a language model's attention: laws and twins in plain Python."""

import math
from dataclasses import replace

import pytest
import torch

from support.llm_methods import DIMS, LAST, ONCE, SINKLESS
from vtcframe import AttentionRows, Budget
from vtcframe.components.scorers import KeyNorm, TextAttention
from vtcframe.core.stages import plan_from_stages
from vtcframe.methods.fastv import FastV
from vtcframe.methods.pyramiddrop import GeometricSchedule, PyramidDrop
from vtcframe.methods.sink_filter import DemoteSinks, SinkFilter
from vtcframe.methods.visual_exit import VisualExit
from vtcframe.methods.zipcache import ProbeSaliency
from vtcframe.testing import check_allocator, check_pruner, check_scorer, make_evidence


@pytest.mark.parametrize(
    "scorer", [ProbeSaliency(), SINKLESS, DemoteSinks(KeyNorm(), dims=DIMS, threshold=1.5)], ids=str
)
def test_laws_of_scorers_hold(scorer):
    check_scorer(scorer)


@pytest.mark.parametrize("pruner", [*ONCE, *(PyramidDrop().stages(Budget(5))[-1].pruner,)], ids=str)
def test_laws_of_pruners_hold(pruner):
    check_pruner(pruner)


@pytest.mark.parametrize("stage", PyramidDrop().stages(None), ids=str)
def test_laws_of_a_published_stage_hold(stage):
    check_pruner(stage.pruner, (None,))


def test_laws_of_a_descent_hold():
    check_allocator(GeometricSchedule(0.5))


@pytest.mark.parametrize("method", ONCE, ids=str)
def test_one_stage_needs_a_budget_and_keeps_positions(method):
    (stage,) = method.stages(Budget(7))
    assert (stage.at, stage.pruner, stage.budget, stage.positions) == ("llm:2", method, Budget(7), "original")
    with pytest.raises(ValueError, match="needs to know how many to keep: give tokens or ratio"):
        method.stages(None)
    with pytest.raises(ValueError, match="give 1 or more, got 0"):
        replace(method, layer=0)


def rank(scores, quota):
    """The highest of a list, the earlier of equals, in their order."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:quota])


@pytest.mark.parametrize("budget", [Budget(20), Budget(ratio=0.25)])
def test_fastv_equals_its_twin(budget):
    evidence = make_evidence((LAST,))
    pruned, joined = FastV()(evidence, budget), evidence.join_views()
    for p, total in enumerate([144, 432, 0, 360]):
        scores = joined[LAST][0, p, 0, :total].tolist()
        quota = min(total, 20) if budget.ratio is None else round(total * 0.25)
        assert pruned.place[p][pruned.place[p] >= 0].tolist() == rank(scores, quota)


def through(stages, samples):
    """The tokens each sample has after each of the stages, by column; every stage sees attention of its own."""
    evidence, seen = make_evidence((), samples), []
    for stage in stages:
        made = make_evidence(stage.pruner.needs, samples)
        if seen:  # what was made for all tokens, of those that are left
            made = made.join_views()
            place = torch.where(evidence.layout.valid, evidence.layout.column - 5, -1)
            take = {need: x.gather(3, place.clamp(min=0)[None, :, None]) for need, x in made.readings.items()}
            evidence = replace(evidence, readings={**evidence.readings, **take})
        else:
            evidence = made
        evidence = evidence.restrict_to(stage.pruner(evidence, stage.budget))
        seen.append([row[row >= 0].tolist() for row in evidence.layout.column])
    return seen


SAMPLES = {3: [(24, 24)], 5: [(5, 7), (1, 2)], 8: [], 9: [(1, 3)]}


@pytest.mark.parametrize(
    ("budget", "counts"),
    [
        (None, [[288, 144, 72], [18, 9, 4], [0, 0, 0], [1, 1, 1]]),
        (Budget(ratio=0.125), [[288, 144, 72], [18, 9, 5], [0, 0, 0], [2, 1, 1]]),
        (Budget(64), [[276, 133, 64], [37, 37, 37], [0, 0, 0], [3, 3, 3]]),
        (Budget(8), [[138, 33, 8], [22, 13, 8], [0, 0, 0], [3, 3, 3]]),
    ],
)
def test_a_pyramid_comes_down_as_published_or_to_the_budget(budget, counts):
    stages = PyramidDrop().stages(budget)
    assert [stage.at for stage in stages] == ["llm:8", "llm:16", "llm:24"]
    assert {stage.positions for stage in stages} == {"original"}
    assert {stage.positions for stage in PyramidDrop(positions="compact").stages(budget)} == {"compact"}
    assert {stage.budget for stage in stages} == {budget}
    for p, (n, want) in enumerate(zip([576, 37, 0, 3], counts, strict=True)):
        by_hand = []
        for i in (1, 2, 3):
            if budget is None:
                by_hand.append(min(n, max(1, int(n * 0.5**i))))
            else:
                final = min(n, max(1, budget.tokens or round(n * budget.ratio)))
                by_hand.append(math.floor(n * (final / max(n, 1)) ** (i / 3) + 1e-9) if i < 3 else final)
        assert by_hand == want
        assert [len(columns[p]) for columns in through(stages, SAMPLES)] == want


def test_whole_numbers_on_the_way_are_met_though_their_powers_round():
    steps = PyramidDrop((1, 2, 3, 4, 5)).stages(Budget(1))
    assert [[len(row) for row in left] for left in through(steps, {7: [(4, 8)]})] == [[16], [8], [4], [2], [1]]


def test_each_stage_of_a_pyramid_ranks_what_is_left_by_the_layer_that_comes_next():
    stages = PyramidDrop((2, 3), (0.5, 0.25)).stages(None)
    needs = [need for stage in stages for need in stage.pruner.needs]
    assert needs == [AttentionRows("last", (layer,), tower="llm", heads="mean") for layer in (2, 3)]
    first, second = through(stages, {7: [(4, 5)]})
    evidence = make_evidence(needs, {7: [(4, 5)]})
    scores = [evidence[need][0, 0, 0].tolist() for need in needs]
    left = rank(scores[0], 10)
    assert first == [[5 + i for i in left]]
    again = rank([scores[1][i] for i in left], 5)
    assert second == [[5 + left[i] for i in again]]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: PyramidDrop(()),
            "layers are numbered from 0 and must ascend from 1 or higher: give at least one, got ()",
        ),
        (lambda: PyramidDrop((3, 2)), "must ascend"),
        (lambda: PyramidDrop((0, 2)), "from 1 or higher"),
        (lambda: PyramidDrop((1, 2)).stages(None), "3 ratios for 2 layers: give one for each layer, or a budget"),
        (lambda: PyramidDrop(ratios=(0.5, 0.6)), "must not rise"),
        (lambda: PyramidDrop(ratios=(1.5,)), r"got \(1.5,\)"),
        (lambda: PyramidDrop()(make_evidence()), "acts at several stages"),
        (lambda: VisualExit(()), "layers are numbered from 0"),
        (lambda: VisualExit(threshold=0), r"must lie in \(0, 1\], got 0"),
        (lambda: VisualExit((2,), 0.1, patience=3), "give 1 to 2, got 3"),
        (lambda: VisualExit().stages(Budget(3)), "takes no budget: omit Budget"),
        (lambda: ProbeSaliency(recent=5), "recent is a share of the prompt and must lie in 0..1, got 5"),
        (lambda: ProbeSaliency(random=-1), "random is a share"),
        (lambda: DemoteSinks(TextAttention(), dims=()), "at least one"),
        (lambda: DemoteSinks(TextAttention(), dims=(-1,)), "numbered from 0"),
        (
            lambda: SinkFilter()(make_evidence((LAST,)), Budget(3)),
            r"dims \(1415, 2533\) do not all exist in a model with 8",
        ),
    ],
)
def test_nonsense_is_told(make, told):
    with pytest.raises(ValueError if "several stages" not in told else TypeError, match=told.replace("()", r"\(\)")):
        make()


def test_lists_are_as_good_as_tuples():
    assert PyramidDrop([8, 16], [0.5, 0.25]) == PyramidDrop((8, 16), (0.5, 0.25))  # as YAML gives them
    assert VisualExit([3]) == VisualExit((3,))
    assert hash(SinkFilter(dims=[3, 4])) == hash(SinkFilter(dims=(3, 4)))
    assert DemoteSinks(TextAttention(), dims=[3]) == DemoteSinks(TextAttention(), dims=(3,))


def test_plans_say_the_method_and_not_its_steps():
    plan = plan_from_stages(PyramidDrop().stages(Budget(ratio=0.125)), PyramidDrop())
    assert str(plan) == "PyramidDrop(layers=(8, 16, 24), ratios=(0.5, 0.25, 0.125), positions='original')"
