"""MCTF: numbers recorded from the authors' own code."""

import torch

from support.recorded_cases import each_case, load_case
from support.recorded_encoders import PART, WHOLE, groups, midway, through, vit, with_class
from vtcframe.core.token_merging import fuse_attention
from vtcframe.methods.mctf import Mctf

POOLING = {0: "size", 1: "attention", 2: "max", 3: "mean"}


AHEAD = {0: "after", 1: "fused", 2: "before"}


def mctf(params, blocks):
    taus = tuple(params[f"tau_{name}"] for name in ("sim", "info", "size"))
    two_way, pooling = bool(params["bidirection"]), POOLING[params["pooling_type"]]
    return Mctf(
        params["r_eval"],
        blocks,
        temperatures=taus,
        two_way=two_way,
        pooling=pooling,
        when=AHEAD[params["one_step_ahead"]],
    )


@each_case("mctf")
def test_mctf(path):
    tensors, params = load_case(path)
    if "in.attn0" in tensors:
        mctf_function(tensors, params)
        return
    x = tensors["in.tokens"]
    model = vit(tensors, params["heads"])
    behind, left = through(model, mctf(params, tuple(params["activate"])), x)
    held = groups(left, len(x), x.shape[1] - 1)
    for k, got in enumerate(behind):
        torch.testing.assert_close(got, tensors[f"out.x{k}"], **WHOLE)
        if k in left:
            torch.testing.assert_close(left[k].size, tensors[f"out.size{k}"][:, 1:, 0], atol=1e-6, rtol=0)
            assert torch.equal(held[k], tensors[f"out.group{k}"])
    if "out.logits" in tensors:
        with torch.no_grad():
            torch.testing.assert_close(model.forward_head(model.norm(behind[-1])), tensors["out.logits"], **WHOLE)


def mctf_function(tensors, params):
    classes = params["num_protected"]
    x, size = tensors["in.x"], tensors.get("in.size")
    held = torch.arange(x.shape[1]).repeat(len(x), 1)
    for s in range(params["steps"]):
        (stage,) = mctf(params, (s,)).stages(None)
        paid = tensors[f"in.attn{s}"]
        found = {stage.pruner.needs[0]: paid.mean((1, 2))[None, :, None, classes:]}
        merged = stage.pruner(midway(x, found, classes, size))
        x = with_class(merged.tokens, x, classes)
        old = torch.ones(*paid.shape[::3], 1) if size is None else size
        size = with_class(merged.size[..., None], old, classes)
        held = torch.cat([torch.arange(classes).expand(len(x), -1), merged.group + classes], 1).gather(1, held)
        torch.testing.assert_close(x, tensors[f"out.x{s}"], **PART)
        torch.testing.assert_close(size, tensors[f"out.size{s}"], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(fuse_attention(paid, merged, classes), tensors[f"out.attn{s}"], **PART)
        assert torch.equal(held, tensors[f"out.group{s}"])
