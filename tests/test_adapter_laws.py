"""The laws of adapters over a matrix: every pair of axis values here, the full product behind the marker `matrix`."""

from itertools import product

import pytest

from conftest import backbone
from covering import pairs
from vtcframe import Budget, Pipeline, RandomPruner, VtcCls
from vtcframe.allocators import Even
from vtcframe.ensemblers import RankFusion
from vtcframe.scorers import ClsAttention, Random
from vtcframe.selectors import TopK
from vtcframe.testing import check_adapter
from vtcframe.testing.backbones import SAMPLES

GREEDY = {"do_sample": False, "max_new_tokens": 6}
BEAMS = GREEDY | {"num_beams": 3}
AXES = {
    "family": ["llava", "llava_next"],
    "attention": ["sdpa", "eager"],
    "side": ["left", "right"],
    "samples": ["one", "several", "ragged one", "ragged several"],
    "positions": ["original", "compact"],
    "options": [GREEDY, BEAMS, BEAMS | {"num_return_sequences": 2}, BEAMS | {"return_dict_in_generate": True}],
    "budget": [Budget(tokens=5), Budget(ratio=0.4, per="sample"), Budget(tokens=3, per="view"), Budget(tokens=1)],
}
JOINED = Pipeline((ClsAttention(1), Random(2)), RankFusion(), Even(), TopK(), across="sample")
PRUNERS = (VtcCls(last=2), RandomPruner(), JOINED)


def hold(case):
    model, processor = backbone(case["family"], case["attention"])
    check_adapter(
        model,
        processor,
        SAMPLES[case["samples"]],
        PRUNERS,
        case["budget"],
        case["positions"],
        case["side"],
        case["options"],
    )


def name(case):
    return "-".join(str(value).replace(" ", "_") for value in case.values() if not isinstance(value, dict))


@pytest.mark.parametrize("case", pairs(AXES), ids=name)
def test_laws_hold_for_every_pair_of_axis_values(case):
    hold(case)


@pytest.mark.matrix
@pytest.mark.parametrize("family", AXES["family"])
def test_laws_hold_over_the_full_product(family):
    rest = {axis: values for axis, values in AXES.items() if axis != "family"}
    for values in product(*rest.values()):
        hold({"family": family, **dict(zip(rest, values, strict=True))})


def test_pairs_covers_every_pair_with_fewer_cases_than_the_product():
    cases = pairs(AXES)
    assert len(cases) < 30
    for (a, xs), (b, ys) in product(AXES.items(), AXES.items()):
        if a < b:
            assert all(any(c[a] == x and c[b] == y for c in cases) for x, y in product(xs, ys))
