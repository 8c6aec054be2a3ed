"""MustDrop: numbers recorded from the authors' own code."""

import torch

from support.mustdrop import CLS, MEAN, MOST
from support.recorded_cases import each_case, layout_of, load_case
from vtcframe import Evidence
from vtcframe.methods.mustdrop import MustDrop, WindowMerge

# recorded


@each_case("mustdrop")
def test_mustdrop(path):
    tensors, params = load_case(path)
    (merging if "merged" in tensors else filtering)(tensors, params)


def merging(tensors, params):
    x, (side, _) = tensors["x"][:, 1:], params["window"]
    assert params["window"] == [side, side]
    grid = layout_of([(params["grid"], params["grid"])] * len(x))
    got = WindowMerge(params["threshold"], side)(Evidence(x, grid))
    for v, (want, size) in enumerate(zip(tensors["merged"][:, 1:], tensors["size"][:, 1:, 0], strict=True)):
        merged = size == side * side  # the code puts them first, by falling likeness
        real = got.place[v] >= 0
        ours, place = got.tokens[v][real], got.place[v][real]
        cell = grid.grid[v, place] % side == side // 2
        alike = -got.scores[v, place]
        made = cell.all(1) & (alike >= params["threshold"])
        order = torch.cat([made.nonzero()[:, 0][alike[made].argsort(descending=True)], (~made).nonzero()[:, 0]])
        assert made.sum() == merged.sum()
        torch.testing.assert_close(ours[order], want, atol=2e-5, rtol=2e-5)
        alone = ~merged
        assert torch.equal(ours[~made], want[alone])


def filtering(tensors, params):
    start, n = params["v_token_start"], params["img_seq"]
    rows = tensors["attn_text_rows"].mean(0)[:, start : start + n]  # [T, N], the mean over heads
    found = {
        MEAN: rows.mean(0)[None, None, None],
        MOST: rows.amax(0)[None, None, None],
        CLS: torch.rand(1, 1, 2, n),
    }
    method = MustDrop(params["global_thr"], params["individual_thr"], keys=0)
    pruned = method.stages(None)[-1].pruner(Evidence(torch.zeros(1, n, 1), layout_of([(1, n)]), found))
    assert pruned.place[0].tolist() == tensors["kept_visual_indices"].tolist()
