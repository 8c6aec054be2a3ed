"""The laws of adapters over a matrix: every pair of axis values here, the full product behind the marker `matrix`."""

from itertools import product

import pytest

from support.covering import cases, pairs
from support.models import SERVED, exact_backbone, has_mrope
from vtcframe import Budget, Pipeline, RandomPruner, VtcCls
from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import RankFusion
from vtcframe.components.scorers import ClsAttention, Random
from vtcframe.components.selectors import TopK
from vtcframe.testing import check_adapter, emulated_flash, samples_of
from vtcframe.testing.tiny_models.other_families import FLASH
from vtcframe.testing.tiny_models.samples import SAMPLES

GREEDY = {"do_sample": False, "max_new_tokens": 5}
BEAMS = GREEDY | {"num_beams": 3}
AXES = {
    "family": SERVED,
    "attention": ["sdpa", "eager", "flash"],
    "samples": list(SAMPLES),
    "side": ["left", "right"],
    "positions": ["original", "compact"],
    "options": [GREEDY, BEAMS, BEAMS | {"num_return_sequences": 2}, BEAMS | {"return_dict_in_generate": True}],
}
BUDGETS = [Budget(tokens=3), Budget(ratio=0.4), Budget(tokens=2, per="view"), Budget(tokens=1)]
JOINED = Pipeline((ClsAttention(1, "proxy"), Random(2)), RankFusion(), Even(), TopK(), across="sample")


def possible(case):
    if case["positions"] == "compact" and has_mrope(case["family"]):
        return False
    if case["attention"] == "flash" and case["family"] not in FLASH:
        return False
    # With beams transformers mixes the features of GLM-4.1V's samples up, untouched too: see test_more_families.
    if case["family"] == "glm4v" and case["options"] != GREEDY and "one" not in case["samples"]:
        return False
    return case["samples"] in samples_of(case["family"])


def hold(case, *pruners):
    attention = "sdpa" if case["attention"] == "flash" else case["attention"]
    model, processor = exact_backbone(case["family"], attention)
    budget = case.get("budget", BUDGETS[0])
    arguments = SAMPLES[case["samples"]], pruners, budget, case["positions"], case["side"], case["options"]
    if case["attention"] != "flash":
        return check_adapter(model, processor, *arguments)
    with emulated_flash(model):
        check_adapter(model, processor, *arguments)


def name(case):
    return "-".join(str(value).replace(" ", "_") for value in case.values() if not isinstance(value, dict))


@pytest.mark.parametrize("case", pairs(AXES | {"budget": BUDGETS}, possible), ids=name)
def test_laws_hold_for_every_pair_of_axis_values(case):
    hold(case, VtcCls(1, "proxy"), RandomPruner(), JOINED)


@pytest.mark.matrix
@pytest.mark.parametrize("family", SERVED)
def test_laws_hold_over_the_full_product(family):
    for case in cases(AXES | {"family": [family]}, possible):
        hold(case, VtcCls(1, "proxy"))


def test_every_tiny_backbone_with_an_adapter_is_in_the_matrix():
    assert {"llava", "llava_next", "llava_onevision", "internvl", "video_llava"} <= set(SERVED)
    assert {"qwen2_vl", "qwen2_5_vl", "qwen3_vl"} == {family for family in SERVED if has_mrope(family)} - {"glm4v"}
    covered = {(c["family"], c["samples"]) for c in pairs(AXES, possible)}
    assert covered == {(family, samples) for family in SERVED for samples in samples_of(family)}


def test_pairs_covers_every_possible_pair_with_fewer_cases_than_the_product():
    chosen, every = pairs(AXES, possible), cases(AXES, possible)
    assert len(chosen) < 150 < len(every)
    for (a, xs), (b, ys) in product(AXES.items(), AXES.items()):
        if a < b:
            for x, y in product(xs, ys):
                possible_pair = any(case[a] == x and case[b] == y for case in every)
                assert possible_pair == any(case[a] == x and case[b] == y for case in chosen)
