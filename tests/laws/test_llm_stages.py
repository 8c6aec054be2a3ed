"""Laws of stages inside the language model over a matrix."""

from contextlib import nullcontext

import pytest

from support.covering import cases, pairs
from support.llm_stages import GREEDY, LAYOUTS
from support.models import SERVED, exact_backbone, has_mrope
from vtcframe.testing import emulated_flash, samples_of
from vtcframe.testing.laws.llm import check_llm_stages
from vtcframe.testing.tiny_models.other_families import FLASH
from vtcframe.testing.tiny_models.samples import SAMPLES

BEAMS = GREEDY | {"num_beams": 3}


AXES = {
    "family": SERVED,
    "attention": ["sdpa", "eager", "flash"],
    "samples": ["one", "ragged several", "video", "image and video"],
    "side": ["left", "right"],
    "layout": list(LAYOUTS),
    "options": [GREEDY, BEAMS, BEAMS | {"num_return_sequences": 2}],
}


def possible(case):
    family = case["family"]
    if case["samples"] not in samples_of(family) or (case["attention"] == "flash" and family not in FLASH):
        return False
    if "compact" in case["layout"] and has_mrope(family):
        return False
    if case["layout"] == "forgetting" and family == "gemma3":  # the KV cache of a sliding window evicts by itself
        return False
    # With beams transformers mixes the features of GLM-4.1V's samples up, untouched too: see test_more_families.
    return not (family == "glm4v" and case["options"] != GREEDY and case["samples"] != "one")


def hold(case):
    attention = "sdpa" if case["attention"] == "flash" else case["attention"]
    model, processor = exact_backbone(case["family"], attention)
    samples = SAMPLES[case["samples"]]
    with emulated_flash(model) if case["attention"] == "flash" else nullcontext():
        check_llm_stages(model, processor, LAYOUTS[case["layout"]], samples, case["side"], case["options"])


def name(case):
    return "-".join(str(value).replace(" ", "_") for value in case.values() if not isinstance(value, dict))


@pytest.mark.parametrize("case", pairs(AXES, possible), ids=name)
def test_laws_hold_for_every_pair_of_axis_values(case):
    hold(case)


@pytest.mark.matrix
@pytest.mark.parametrize("family", SERVED)
def test_laws_hold_over_the_full_product(family):
    axes = {"family": [family], "side": ["left"], "samples": ["one", "ragged several"], "options": [GREEDY, BEAMS]}
    for case in cases(AXES | axes, possible):
        hold(case)
