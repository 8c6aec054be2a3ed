"""Methods for videos: laws and twins in plain Python."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from support.recorded_videos import video
from vtcframe import Budget
from vtcframe.components.scorers import Uniqueness
from vtcframe.methods.fastvid import FastVid
from vtcframe.methods.holitom import HoliTomOuter
from vtcframe.methods.prunevid import PruneVidOuter
from vtcframe.methods.vidcom2 import ByUniqueness, VidCom2
from vtcframe.testing import check_allocator, check_pruner, make_evidence

METHODS = (
    VidCom2(),
    FastVid(),
    FastVid(2, 0.5, context=0.9, every=1),
    FastVid(1, -1.0),  # one segment, whose last frame has no room for all anchors
    HoliTomOuter(),
    HoliTomOuter(0.5),
    PruneVidOuter(),
    PruneVidOuter(0.5, 0.6),
)


VIDEOS = {7: [(3, 4)] * 6, 8: [], 9: [(2, 5)] * 3, 10: [(4, 4)], 11: [(3, 3)] * 5}


def films(needs, videos=VIDEOS):
    """A video a sample, slowly changing but for a cut and a corner; poison at padding."""
    evidence = make_evidence(needs, videos)
    where = evidence.layout
    frame = torch.cat([torch.arange(len(grids)) for grids in videos.values()])
    where = replace(where, image=torch.zeros_like(frame), frame=frame)
    first = (frame == 0).cumsum(0) - 1
    start = (frame == 0).nonzero()[:, 0][first]
    scene = torch.where(frame < 4, start, start + frame.clamp(max=4))  # another picture from the fifth frame on
    tokens = evidence.tokens[scene] - 0.5 + 0.02 * evidence.tokens
    tokens[:, :2] = evidence.tokens[:, :2] - 0.5
    return replace(evidence, tokens=tokens.masked_fill(~where.valid[..., None], 1e4), layout=where)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_laws_hold_for_pictures(method):
    check_pruner(method)


def test_laws_hold_for_the_allocator():
    check_allocator(ByUniqueness())


@pytest.mark.parametrize(
    "budget", [Budget(1), Budget(10), Budget(ratio=0.3), Budget(ratio=0.8), Budget(ratio=1.0)], ids=str
)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_videos_meet_their_budget_and_do_not_depend_on_batch_mates(method, budget):
    evidence = films(method.needs)
    pruned = method(evidence, budget)
    assert pruned.total.tolist() == budget.total(evidence.layout).tolist()
    for p, (key, frames) in enumerate(VIDEOS.items()):
        if not frames:
            continue
        alone = method(films(method.needs, {key: frames}), budget)
        mine = evidence.layout.sample == p
        width = alone.scores.shape[1]
        assert torch.equal(pruned.kept[mine][:, :width], alone.kept)
        torch.testing.assert_close(pruned.sequence(p)[0], alone.sequence(0)[0], atol=1e-5, rtol=0)
    if budget.ratio == 1:
        for p in (0, 2):
            untouched = evidence.tokens[evidence.layout.sample == p][:, : [12, 0, 10][p]].flatten(0, 1)
            torch.testing.assert_close(pruned.sequence(p)[0], untouched, atol=1e-6, rtol=0)


def test_still_places_are_found_in_these_videos():
    for method, least in ((HoliTomOuter(), 20), (PruneVidOuter(0.8, 0.5), 10)):
        evidence = films(method.needs)
        begins, still = method.find_static(
            evidence.tokens.masked_fill(~evidence.layout.valid[..., None], 0), evidence.layout
        )
        assert int(still.sum()) > least
        assert not still[:, :2][evidence.layout.sample == 0].any()
        assert begins.tolist()[:6][4]  # the cut


@pytest.mark.parametrize("seed", range(5))
def test_windows_of_holi_tom_save_as_much_as_any(seed):
    frames, n = 6, 5
    generator = torch.Generator().manual_seed(seed)
    still = torch.rand(frames, n, generator=generator) < 0.7
    x = torch.zeros(frames, n, 8)
    for place in range(n):
        for t in range(frames):
            x[t, place, int((~still[1 : t + 1, place]).sum())] = 1.0  # a new direction wherever it changes
    begins, found = HoliTomOuter().find_static(x, video(frames, (1, n)))

    def saved(starts):
        ends = [*starts[1:], frames]
        return sum((b - a - 1) * int(still[a + 1 : b].all(0).sum()) for a, b in zip(starts, ends, strict=True))

    starts = begins.nonzero()[:, 0].tolist()
    every = [[0, *inner] for k in range(frames) for inner in combinations(range(1, frames), k)]
    assert saved(starts) == max(map(saved, every))
    for a, b in zip(starts, [*starts[1:], frames], strict=True):
        want = still[a + 1 : b].all(0) if b - a > 1 else torch.zeros(n).bool()
        assert torch.equal(found[a:b], want.expand(b - a, n))


def test_by_uniqueness_equals_its_twin():
    evidence = films(())
    layout, unique = evidence.layout, Uniqueness()(evidence)[0]
    quota = ByUniqueness(0.5)(unique, torch.tensor([30, 0, 12, 5, 9]), evidence)
    alone = [float(unique[v, :n].mean()) for v, n in enumerate(layout.count.tolist())]
    for p, total in ((0, 30), (2, 12), (4, 9)):
        views = (layout.sample == p).nonzero()[:, 0].tolist()
        heap = [math.exp(alone[v] / 0.5) for v in views]
        share = [h / sum(heap) for h in heap]
        exact = [total / len(views) * (1 + s - 1 / len(views)) for s in share]
        assert int(quota[views].sum()) == total
        assert all(abs(q - e) < 1 for q, e in zip(quota[views].tolist(), exact, strict=True))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: FastVid(context=1.2), "context is a share and must lie in 0..1, got 1.2"),
        (lambda: FastVid(every=0), "segments and every must be at least 1, got 8 and 0"),
        (lambda: HoliTomOuter(beta=-1), "beta is a share"),
        (lambda: PruneVidOuter(clusters=2), "clusters is a share"),
        (lambda: ByUniqueness(0), "temperature must be positive, got 0"),
        (lambda: PruneVidOuter()(films(())), "PruneVidOuter shares out a budget: give tokens or ratio"),
    ],
)
def test_nonsense_is_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()
