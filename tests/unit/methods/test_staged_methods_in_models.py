"""Methods that act before the language model and inside it, in tiny models."""

import pytest
import torch

from support.models import SERVED, backbone
from support.staged_methods import left
from vtcframe import Budget, compress
from vtcframe.methods.holitom import HoliTom, HoliTomOuter
from vtcframe.methods.mini_monkey import MiniMonkeyScm
from vtcframe.methods.prunevid import PruneVid, PruneVidOuter
from vtcframe.methods.vscan import VScan
from vtcframe.ops.views import overview_of
from vtcframe.testing.laws.adapters import inputs_for
from vtcframe.testing.tiny_models.other_families import samples_of
from vtcframe.testing.tiny_models.samples import SAMPLES

# whole models


def run(family, samples, method, budget=None):
    """What is left of some samples in a tiny model of four layers, and the answers."""
    model, processor = backbone(family)
    inputs = inputs_for(model, processor, SAMPLES[samples])
    compressed = compress(model, stages=method.stages(budget), processor=processor)
    out = compressed.generate(**inputs, max_new_tokens=3, do_sample=False)
    return compressed.last, out


@pytest.mark.parametrize("samples", ["ragged several", "videos"])
@pytest.mark.parametrize("family", SERVED)
def test_two_stages_leave_what_they_say(family, samples):
    if samples not in samples_of(family):
        pytest.skip(f"no {samples} here")
    budget = Budget(ratio=0.5)
    last, _ = run(family, samples, VScan(2, 2, shallow=0, query="proxy"), budget)
    early, late = ((last.tokens_before.double() * part).round().long() for part in (0.75, 0.25))
    assert last.tokens_per_layer.T.tolist() == [early.tolist()] * 2 + [late.tolist()] * 2

    half = budget.total(last.layout)
    last, _ = run(family, samples, HoliTom(2, 0.4, query="received"), budget)
    assert last.tokens_per_layer.T.tolist() == [half.tolist()] * 2 + [(half * 0.4).round().long().tolist()] * 2

    outer, _ = run(family, samples, PruneVidOuter(), budget)
    count = (outer.pruned.place >= 0).sum(1).cpu()
    want = last.layout.total((count.double() * 0.6).long())
    want = want + ((want == 0) & (half > 0))
    last, _ = run(family, samples, PruneVid(2, 0.6, forget=False), budget)
    assert last.tokens_per_layer.T.tolist() == [half.tolist()] * 2 + [want.tolist()] * 2
    assert (last.kept & ~outer.kept).sum() == 0


@pytest.mark.parametrize("family", ["llava", "llava_onevision", "qwen2_5_vl"])
def test_stages_that_keep_all_answer_as_the_first_alone(family):
    samples, budget = ("ragged several" if family == "llava" else "videos"), Budget(ratio=0.6)
    for method, first in ((PruneVid(2, 1.0), PruneVidOuter()), (HoliTom(3, 1.0), HoliTomOuter())):
        (whole, answer), (alone, want) = run(family, samples, method, budget), run(family, samples, first, budget)
        assert left(whole.pruned) == left(alone.pruned)
        assert torch.equal(answer, want)


def test_prune_vid_forgets_what_leaves():
    taken, _ = run("llava", "ragged several", PruneVid(2), Budget(ratio=0.5))
    left, _ = run("llava", "ragged several", PruneVid(2, forget=False), Budget(ratio=0.5))
    assert torch.equal(taken.kept, left.kept)
    assert (taken.kv_bytes < left.kv_bytes)[:2].all()


@pytest.mark.parametrize("family", ["llava_next", "internvl", "llava"])
def test_mini_monkey_spares_overviews(family):
    last, _ = run(family, "ragged several", MiniMonkeyScm(0.3))
    layout = last.layout
    parts, left = overview_of(layout) >= 0, last.kept.sum(1).cpu()
    spared = torch.isin(torch.arange(len(parts)), overview_of(layout))
    assert spared.any() == parts.any() == (family != "llava")
    assert torch.equal(left[spared], layout.count[spared])
    picture = layout.sample * 100 + layout.image
    for one in picture.unique():
        crops = (picture == one) & ~spared
        assert int(left[crops].sum()) == int(int(layout.count[crops].sum()) * 0.3)
