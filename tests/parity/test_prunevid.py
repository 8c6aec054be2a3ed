"""PruneVid: numbers recorded from the authors' own code."""

import pytest
import torch

from support.recorded_cases import each_case, layout_of, load_case
from support.recorded_videos import video
from vtcframe import Budget, Evidence
from vtcframe.methods.prunevid import PruneVid, PruneVidOuter
from vtcframe.testing.tiny_models.evidence import POISON


@each_case("prunevid")
def test_prune_vid_inside_the_language_model(path):
    tensors, params = load_case(path)
    if "alpha" not in params:
        pytest.skip("the stage before the language model")
    paid = tensors["text_to_image_attn"]  # [heads, text, visual]: of each segment its still places, then its frames
    sizes = []
    for still, changing, frames in zip(
        params["static_sizes"], params["dynamic_sizes"], params["window_sizes"], strict=True
    ):
        sizes += [still, *[changing // frames] * frames]
    stage = PruneVid(params["selected_layer"] + 1, params["alpha"]).stages(Budget(1))[1]
    width, ends = max(sizes), torch.tensor(sizes).cumsum(0)
    found = torch.full((1, len(sizes), len(paid), width), POISON)
    column = torch.full((len(sizes), width), -1)
    for v, (size, end) in enumerate(zip(sizes, ends.tolist(), strict=True)):
        found[0, v, :, :size] = paid.amax(1)[:, end - size : end]
        column[v, :size] = torch.arange(end - size, end)
    where = layout_of([(1, width)] * len(sizes), [0] * len(sizes), column)
    evidence = Evidence(torch.zeros(*column.shape, 1), where, {stage.pruner.needs[0]: found})
    pruned = stage.pruner(evidence, stage.budget)
    got = pruned.column[pruned.place >= 0]
    assert got.tolist() == tensors["kept_indices"].sort().values.tolist()


def paired(got, want):
    """Rows of `got` in the order of the rows of `want` they are nearest to, one each."""
    order = torch.cdist(want, got, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert order.sort().values.tolist() == list(range(len(got)))
    return got[order]


@each_case("prunevid")
def test_prune_vid_outer(path):
    tensors, params = load_case(path)
    if "grid" not in params:
        pytest.skip("the stage inside the language model")
    frames, (high, wide) = params["T"], params["grid"]
    x = tensors["x"].view(frames, high * wide, -1)
    method = PruneVidOuter(params["tau"], params["temporal_segment_ratio"])
    evidence = Evidence(x, video(frames, (high, wide)))
    begins, still = method.find_static(x, evidence.layout)
    starts = begins.nonzero()[:, 0].tolist()
    sizes = [b - a for a, b in zip(starts, [*starts[1:], frames], strict=True)]
    assert sizes == tensors["window_sizes"].tolist()
    share = params["cluster_ratio"]
    assert [int(still[a].sum() * share) for a in starts] == tensors["static_sizes"].tolist()
    changing = [int((~still[a]).sum() * share) * size for a, size in zip(starts, sizes, strict=True)]
    assert changing == tensors["dynamic_sizes"].tolist()
    pruned = method(evidence, Budget(len(tensors["merged"])))
    got = pruned.tokens[pruned.place >= 0]
    torch.testing.assert_close(paired(got, tensors["merged"]), tensors["merged"], atol=2e-5, rtol=0)
