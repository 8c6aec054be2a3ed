"""DiffRate: numbers recorded from the authors' own code."""

import torch

from support.recorded_cases import each_case, load_case
from support.recorded_encoders import PART, WHOLE, groups, midway, through, vit, with_class
from vtcframe.methods.diffrate import DiffRate


@each_case("diffrate")
def test_diffrate(path):
    tensors, params = load_case(path)
    if "kept" in params:
        diffrate_function(tensors, params)
        return
    # in double precision, as twelve blocks of 8 channels round to 2e-4; groups are those of single precision, too
    x, depth = tensors["in.tokens"], params["depth"]
    model = vit(tensors, params["heads"])
    method = DiffRate(tuple(params["prune_kept"]), tuple(params["merge_kept"]), blocks=tuple(range(depth)))
    _, single = through(model, method, x)
    behind, left = through(model.double(), method, x.double())
    held, alike = (groups(stages, len(x), x.shape[1] - 1) for stages in (left, single))
    for k, got in enumerate(behind):
        assert torch.equal(held[k], alike[k])
        wanted, rows = tensors[f"out.group{k}"], tensors[f"out.size{k}"].shape[1]
        assert torch.equal(wanted < 0, held[k] < 0)
        member = torch.stack([(wanted == row).long().argmax(1) for row in range(rows)], 1)  # a token of each row
        ours = held[k].gather(1, member)  # the code sorts by attention, ours keeps raster order
        assert torch.equal(torch.where(wanted < 0, -1, ours.gather(1, wanted.clamp(min=0))), held[k])
        assert got.shape[1] == rows
        got = got.gather(1, ours[..., None].expand(-1, -1, got.shape[2])).float()
        size = torch.cat([torch.ones(len(x), 1), left[k].size], 1).gather(1, ours)
        torch.testing.assert_close(got, tensors[f"out.x{k}"], **WHOLE)
        torch.testing.assert_close(size, tensors[f"out.size{k}"][..., 0], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        logits = model.forward_head(model.norm(behind[-1])).float()
    torch.testing.assert_close(logits, tensors["out.logits"], **WHOLE)


def diffrate_function(tensors, params):
    """Sizes as recorded fall by negative similarities; ours, as its training's, do not."""
    x, kept = tensors["in.x_sorted"], params["kept"]
    falling = torch.arange(x.shape[1], 0, -1).float().expand(len(x), -1)
    for classes in (1, 0):
        (stage,) = DiffRate((x.shape[1],), (kept,), blocks=(0,)).stages(None)
        found = {stage.pruner.needs[0]: falling[None, :, None, classes:]}
        merged = stage.pruner(midway(x, found, classes, tensors["in.size"]))
        torch.testing.assert_close(with_class(merged.tokens, x, classes), tensors[f"out.x_cls{classes}"], **PART)
        size = with_class(merged.size[..., None], tensors["in.size"], classes)
        similarity = tensors[f"out.similarity_cls{classes}"]
        lost = (similarity.clamp(max=0) * tensors["in.size"][:, kept:, 0])[..., None]
        group = with_class(merged.group, torch.zeros(len(x), 1, dtype=torch.long), 0)[:, -similarity.shape[1] :]
        recorded_size = size.scatter_add(1, group[..., None] + classes, lost)
        torch.testing.assert_close(recorded_size, tensors[f"out.size_cls{classes}"], atol=1e-5, rtol=1e-5)
