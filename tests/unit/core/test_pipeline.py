from dataclasses import dataclass

import pytest
import torch

from vtcframe import (
    AttentionRows,
    Budget,
    ClsAttention,
    Even,
    Evidence,
    Grid,
    Mean,
    Merger,
    Method,
    Pipeline,
    Pruned,
    Random,
    RankFusion,
    Scorer,
    Selector,
    Stage,
    TopK,
    VtcCls,
)
from vtcframe.core.pipeline import gather
from vtcframe.core.verbs import Allocator
from vtcframe.testing import check_merger, check_pruner, make_evidence

PLAIN = Pipeline((Random(),), Mean(), Even(), TopK())


def test_needs_are_those_of_the_parts_each_once():
    need = AttentionRows("cls", (-1,))
    pipeline = Pipeline((ClsAttention(1), ClsAttention(1), Random(), ClsAttention(2)), RankFusion(), Even(), TopK())
    assert pipeline.needs == (need, AttentionRows("cls", (-2, -1)))
    assert PLAIN.needs == ()


def test_components_are_values():
    assert VtcCls() == VtcCls(last=3)
    assert hash(Pipeline([Random()], Mean(), Even(), TopK())) == hash(PLAIN)
    with pytest.raises(AttributeError):
        VtcCls().last = 2


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("ensembler", [Mean(), RankFusion()])
def test_a_score_that_is_not_finite_is_an_error_naming_the_sample(value, ensembler):
    need = ClsAttention(1).needs[0]
    evidence = make_evidence((need,))
    evidence[need][0, 2, :, 4] = value  # a view of sample 1
    with pytest.raises(ValueError, match=r"scores of samples \[1\] are not finite: ClsAttention"):
        Pipeline((ClsAttention(1), Random()), ensembler, Even(), TopK())(evidence, Budget(3))


def test_padding_does_not_matter():
    need = ClsAttention(1).needs[0]
    evidence = make_evidence((need,))
    want = VtcCls(last=1)(evidence, Budget(9))
    evidence[need].masked_fill_(~evidence.layout.valid[None, :, None], torch.nan)
    assert torch.equal(VtcCls(last=1)(evidence, Budget(9)).place, want.place)


@dataclass(frozen=True)
class Careless(Selector):
    """Keeps one token too many."""

    def __call__(self, scores, quota, evidence):
        return TopK()(scores, quota + 1, evidence)


def test_a_selector_that_misses_its_quota_is_an_error():
    with pytest.raises(ValueError, match=r"Careless\(\) kept 4 tokens of row 0 where the quota is 3"):
        Pipeline((Random(),), Mean(), Even(), Careless())(make_evidence(), Budget(3))


def test_kept_tokens_are_unchanged_and_in_raster_order():
    evidence = make_evidence()
    pruned = PLAIN(evidence, Budget(ratio=0.2))
    for v, row in enumerate(pruned.place.tolist()):
        places = [p for p in row if p >= 0]
        assert places == sorted(places)
        assert torch.equal(pruned.tokens[v, : len(places)], evidence.tokens[v, places])
    assert (pruned.scores[~evidence.layout.valid] == -torch.inf).all()
    assert pruned.scores.dtype == torch.float32


def test_without_scorers_every_score_is_zero():
    pruned = Pipeline((), Mean(), Even(), Grid())(make_evidence(), Budget(4))
    assert (pruned.scores[pruned.layout.valid] == 0).all()


@dataclass(frozen=True)
class Summary(Merger):
    """The mean of the dropped tokens, in the first dropped token's place."""

    def slots(self, quota, layout):
        return (quota > 1).long()

    def __call__(self, kept, slots, scores, evidence):
        valid = evidence.layout.valid
        drop = (valid & ~kept).float()
        mean = (evidence.tokens * drop[..., None]).sum(1) / drop.sum(1, keepdim=True).clamp(min=1)
        first = drop.argmax(1)
        tokens = evidence.tokens.clone()
        adds_token = slots.bool() & drop.any(1)
        tokens[adds_token, first[adds_token]] = mean[adds_token]
        kept_or_new = kept.clone()
        kept_or_new[adds_token, first[adds_token]] = True
        return gather(kept_or_new, kept.sum(1) + adds_token, scores, Evidence(tokens, evidence.layout))


@dataclass(frozen=True)
class Half(Allocator):
    """Adaptive: half of every view."""

    def __call__(self, scores, budget, evidence):
        return evidence.layout.count // 2


def test_slots_of_a_merger_count_in_the_budget_or_are_added_without_a_budget():
    check_merger(Summary())
    pipeline = Pipeline((Random(),), Mean(), Even(), TopK(), Summary())
    check_pruner(pipeline)
    evidence = make_evidence()
    pruned = pipeline(evidence, Budget(10))
    assert pruned.layout.total((pruned.place >= 0).sum(1)).tolist() == [10, 10, 0, 10]
    adaptive = Pipeline((Random(),), Mean(), Half(), TopK(), Summary())
    count = evidence.layout.count
    assert (adaptive(evidence).place >= 0).sum(1).tolist() == (count // 2 + 1).tolist()
    check_pruner(adaptive, budgets=[None])


def test_across_sample_gives_the_budget_to_high_scores():
    need = ClsAttention(1).needs[0]
    evidence = make_evidence((need,), {1: [(2, 2), (2, 2)]})
    evidence[need][:, 1] += 1
    joined = Pipeline((ClsAttention(1),), Mean(), Even(), TopK(), across="sample")(evidence, Budget(4))
    assert joined.place.tolist() == [[4, 5, 6, 7]]
    apart = Pipeline((ClsAttention(1),), Mean(), Even(), TopK())(evidence, Budget(4))
    assert (apart.place >= 0).sum(1).tolist() == [2, 2]
    with pytest.raises(ValueError, match="got 'batch'"):
        Pipeline((), Mean(), Even(), TopK(), across="batch")


def test_a_pruner_acts_at_the_projector_by_default():
    assert PLAIN.stages(Budget(3)) == (Stage("projector", PLAIN, Budget(3)),)
    assert VtcCls().stages(None) == (Stage("projector", VtcCls()),)


@pytest.mark.parametrize("at", ["encoder:3", "projector", "llm:2", "cache"])
def test_sites_that_exist(at):
    assert Stage(at, PLAIN).at == at


@pytest.mark.parametrize("at", ["input", "llm", "llm:", "llm:-1", "llm:two", "projector:1", ""])
def test_sites_that_do_not_exist_are_refused(at):
    with pytest.raises(ValueError, match="no site is called"):
        Stage(at, PLAIN)
    with pytest.raises(ValueError, match="'half'"):
        Stage("projector", PLAIN, positions="half")


def test_a_method_of_several_stages_cannot_act_at_a_single_stage():
    @dataclass(frozen=True)
    class Twice(Method):
        def stages(self, budget):
            return (Stage("llm:2", PLAIN, budget), Stage("llm:4", PLAIN, budget))

    with pytest.raises(TypeError, match="Twice acts at several stages"):
        Twice()(make_evidence(), Budget(3))


def test_a_new_scorer_needs_few_lines():
    @dataclass(frozen=True)
    class Leftmost(Scorer):
        def __call__(self, evidence):
            return -evidence.layout.grid[None, ..., 1].float()

    pruned = Pipeline((Leftmost(),), Mean(), Even(), TopK())(make_evidence(samples={1: [(2, 3)]}), Budget(2))
    assert isinstance(pruned, Pruned)
    assert pruned.place.tolist() == [[0, 3]]
