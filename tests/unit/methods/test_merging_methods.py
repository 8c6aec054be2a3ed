"""Methods that merge: laws, and what each of them adds to its merger."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from support.merger_cases import drawn
from vtcframe import Budget, ClassToken
from vtcframe.components.mergers import Contextual
from vtcframe.components.scorers import ClsAttention
from vtcframe.methods.baselines import Pool
from vtcframe.methods.prumerge import PruMerge, PruMergePlus, TopAndSample
from vtcframe.methods.visionzip import VisionZip
from vtcframe.ops.gather import highest
from vtcframe.testing import check_pruner, check_selector, make_evidence

METHODS = (VisionZip(), VisionZip(0.5, "mean"), PruMerge(), PruMerge(3, "mean"), PruMergePlus(), Pool())


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_laws_hold_for_methods_that_merge(method):
    adaptive = isinstance(method, PruMerge | PruMergePlus)
    check_pruner(method, (Budget(20), Budget(ratio=0.3), Budget(1), Budget(10**6), *([None] if adaptive else [])))


def test_laws_hold_for_the_selector_of_prumerge_plus():
    check_selector(TopAndSample())
    check_selector(TopAndSample(top=0.0))
    check_selector(TopAndSample(top=1.0))


@pytest.mark.parametrize("quota", [5, 8, 16, 23, 100])
def test_the_sample_of_prumerge_plus_is_even_among_what_is_not_chosen_by_score(quota):
    evidence = make_evidence(samples={1: [(10, 10)]})
    scores = torch.rand(1, 100, generator=torch.Generator().manual_seed(quota))
    kept = TopAndSample()(scores, torch.tensor([quota]), evidence)[0]
    top = highest(scores, torch.tensor([math.ceil(quota / 4)]))[0]
    assert (kept | ~top).all()
    rest = [n for n in range(100) if not top[n]]
    at = [i for i, n in enumerate(rest) if kept[n]]
    assert len(at) == quota - int(top.sum())
    gaps = {b - a for a, b in pairwise(at)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_class_token_stands_for_every_patch_of_a_token():
    merger = Contextual(0.0, class_token=True)
    evidence, kept, scores = drawn(merger.needs, 0)
    found = dict(evidence.readings) | {ClassToken(): evidence[ClassToken()][:, :3]}
    pruned = merger(
        kept, kept.sum(1) * 0 + 1, scores, replace(evidence, readings=found, project=lambda features: features)
    )
    assert torch.equal(pruned.tokens[0, 0], found[ClassToken()][0].repeat(2))


def test_prumerge_adapts_and_its_summary_comes_on_top():
    evidence = make_evidence(PruMerge().needs)
    (need,) = ClsAttention(1, blocks="tower", heads="joined").needs
    evidence[need][0, 1, 0, [3, 50]] = 4.0  # two stand out
    pruned = PruMerge()(evidence)
    assert pruned.place[1, :3].tolist() == [3, 50, 0]
    assert (pruned.place >= 0).sum(1).tolist() == [2, 3, 2, 2, 2, 2]


def test_methods_that_merge_name_what_stands_in_for_cls():
    assert (str(VisionZip()), str(PruMerge(query="mean"))) == (
        "VisionZip(share=0.15625)",
        "PruMerge(nearest=32, query='mean')",
    )
    assert ClassToken() in VisionZip().needs
    assert ClassToken() not in VisionZip(query="proxy").needs
