"""Numbers recorded from the authors' own code of methods inside the encoder: whole blocks, and their functions."""

import json

import timm
import torch
from test_parity import GOLDEN, layout, read, recorded

from vtcframe.encoder_stage import Inside, Midway, fused
from vtcframe.methods.encoder import DiffRate, EVit, Mctf, ToMe
from vtcframe_backbones.encoders import Timm, extract

WHOLE, PART = {"atol": 1e-4, "rtol": 1e-4}, {"atol": 2e-5, "rtol": 2e-5}


def weights(tensors):
    return {name.removeprefix("in.w."): value for name, value in tensors.items() if name.startswith("in.w.")}


def vit(tensors, heads, **options):
    """A ViT of timm with the recorded weights, its patch embedding only where that was recorded."""
    own = weights(tensors)
    width, depth = own["norm1.weight" if "norm1.weight" in own else "blocks.0.norm1.weight"].shape[0], 1
    if "blocks.0.norm1.weight" in own:
        depth = 1 + max(int(name.split(".")[1]) for name in own if name.startswith("blocks."))
    else:
        own = {f"blocks.0.{name}": value for name, value in own.items()}
    ratio = own["blocks.0.mlp.fc1.weight"].shape[0] / width
    classes = own["head.weight"].shape[0] if "head.weight" in own else 0
    sizes = {"embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": ratio, "num_classes": classes}
    model = timm.models.VisionTransformer(**sizes, **options)
    assert not model.load_state_dict(own, strict=False).unexpected_keys
    return model.eval()


@torch.no_grad()
def through(model, method, x, classes=1):
    """Hidden states behind each block, [CLS] in front; what each stage left, by its block; the sizes."""
    blocks = [Timm(model, rest=None).vit.halves(block) for block in model.blocks]
    inside = Inside(blocks, classes, layout([(1, x.shape[1] - classes)] * len(x)), method.stages(None))
    behind, left, prune = [], {}, inside._prune
    inside._prune = lambda k, hidden: left.setdefault(k, prune(k, hidden))
    with inside:
        for block in model.blocks:
            behind.append(x := block(x))
    return behind, {k: pruned for k, (_, pruned) in left.items()}


def groups(left, views, n, classes=1):
    """[V, classes + n] after each block: the row that holds each token of the first, -1 = none."""
    held = torch.arange(n).repeat(views, 1)
    out = {}
    for k, pruned in left.items():
        held = torch.where(held < 0, -1, pruned.group.gather(1, held.clamp(min=0)))
        own = torch.arange(classes).expand(views, -1)
        out[k] = torch.cat([own, torch.where(held < 0, -1, held + classes)], 1)
    return out


def midway(x, found, classes, size=None):
    """Evidence of a block from tokens, [CLS] among them."""
    patches = x[:, classes:]
    own = None if size is None else size[:, classes:, 0]
    return Midway(patches, layout([(1, patches.shape[1])] * len(x)), found, size=own, classes=classes)


def with_class(tokens, x, classes):
    return torch.cat([x[:, :classes], tokens], 1)


@recorded("evit")
def test_evit(path):
    tensors, params = read(path)
    model = vit(tensors, params["heads"], norm_layer=torch.nn.LayerNorm)
    method = EVit(blocks=(0,), keep=params["keep_rate"], fuse=params["fuse_token"])
    (got,), left = through(model, method, tensors["in.x"])
    wanted, fuse = tensors["out.idx_scoreorder"], params["fuse_token"]
    scores = left[0].scores
    torch.testing.assert_close(scores, tensors["out.cls_attn"], **PART)
    own = torch.zeros_like(scores, dtype=torch.bool).scatter(1, wanted, True)  # the fused token has another's place
    assert (left[0].kept & own).sum() == own.sum()
    assert left[0].kept.sum(1).tolist() == [params["left_tokens"] + fuse] * len(own)
    by_place = torch.zeros(*scores.shape, got.shape[2]).scatter(
        1, left[0].place[..., None].expand(-1, -1, got.shape[2]), got[:, 1:]
    )
    want = tensors["out.x"]
    torch.testing.assert_close(got[:, 0], want[:, 0], **WHOLE)
    kept = by_place.gather(1, wanted[..., None].expand(-1, -1, got.shape[2]))
    torch.testing.assert_close(kept, want[:, 1 : 1 + wanted.shape[1]], **WHOLE)
    if fuse:
        spare = (left[0].kept & ~own).long().argmax(1)
        torch.testing.assert_close(by_place[torch.arange(len(own)), spare], want[:, -1], **WHOLE)


@recorded("tome")
def test_tome(path):
    tensors, params = read(path)
    if "in.image" in tensors:
        tome_of_a_whole_vit(tensors, params)
        return
    classes = int(params["class_token"])
    x, size, held = tensors["in.x"], None, torch.arange(params["tokens"]).repeat(params["batch"], 1)
    for i, r in enumerate(params["r"]):
        (stage,) = ToMe(r, blocks=(i,)).stages(None)
        keys = tensors[f"in.metric{i}"][None, :, None, classes:]  # one head
        merged = stage.pruner(midway(x, {stage.pruner.needs[0]: keys}, classes, size))
        size = with_class(merged.size[..., None], torch.ones(len(x), classes, 1), classes)
        x = with_class(merged.tokens, x, classes)
        own = torch.arange(classes).expand(len(x), -1)
        held = torch.cat([own, merged.group + classes], 1).gather(1, held)
        torch.testing.assert_close(x, tensors[f"out.x{i}"], **PART)
        torch.testing.assert_close(size, tensors[f"out.size{i}"], atol=1e-6, rtol=0)
    assert torch.equal(held, tensors["out.group_of_token"])


def tome_of_a_whole_vit(tensors, params):
    sizes = {"img_size": params["img_size"], "patch_size": params["patch"]}
    model = vit(tensors, params["heads"], **sizes)
    method, image = ToMe(params["r"], blocks=tuple(range(params["depth"]))), tensors["in.image"]
    with torch.no_grad():
        x = model._pos_embed(model.patch_embed(image))
    behind, left = through(model, method, x)
    with torch.no_grad():
        torch.testing.assert_close(model.norm(behind[-1]), tensors["out.tokens"], **WHOLE)
    last = left[params["depth"] - 1]
    torch.testing.assert_close(last.size, tensors["out.size"][:, 1:, 0], atol=1e-6, rtol=0)
    held = groups(left, len(image), x.shape[1] - 1)[params["depth"] - 1]
    assert torch.equal(held, tensors["out.group_of_token"])
    torch.testing.assert_close(extract(model, image, method), tensors["out.tokens"][:, 0], **WHOLE)


def test_tomes_schedule_is_the_published_one():
    values = json.loads((GOLDEN / "tome" / "parse_r.json").read_text())["values"]
    for name, (r, inflect) in {
        "L24_r16": (16, 0.0),
        "L24_r(16, -1.0)": (16, -1.0),
        "L24_r(16, 1.0)": (16, 1.0),
        "L24_r(16, 0.5)": (16, 0.5),
        "L12_r(8, 0)": (8, 0.0),
    }.items():
        assert ToMe(r, inflect, tuple(range(len(values[name])))).rates() == values[name]


POOLING = {0: "size", 1: "attention", 2: "max", 3: "mean"}
AHEAD = {0: "after", 1: "fused", 2: "before"}


def mctf(params, blocks):
    taus = tuple(params[f"tau_{name}"] for name in ("sim", "info", "size"))
    two_way, pooling = bool(params["bidirection"]), POOLING[params["pooling_type"]]
    return Mctf(params["r_eval"], blocks, taus, two_way, pooling, AHEAD[params["one_step_ahead"]])


@recorded("mctf")
def test_mctf(path):
    tensors, params = read(path)
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
        found = {stage.pruner.needs[0]: paid.mean((1, 2))[:, classes:]}
        merged = stage.pruner(midway(x, found, classes, size))
        x = with_class(merged.tokens, x, classes)
        old = torch.ones(*paid.shape[::3], 1) if size is None else size
        size = with_class(merged.size[..., None], old, classes)
        held = torch.cat([torch.arange(classes).expand(len(x), -1), merged.group + classes], 1).gather(1, held)
        torch.testing.assert_close(x, tensors[f"out.x{s}"], **PART)
        torch.testing.assert_close(size, tensors[f"out.size{s}"], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(fused(paid, merged, classes), tensors[f"out.attn{s}"], **PART)
        assert torch.equal(held, tensors[f"out.group{s}"])


@recorded("diffrate")
def test_diffrate(path):
    tensors, params = read(path)
    if "kept" in params:
        diffrate_function(tensors, params)
        return
    # in double precision, as twelve blocks of 8 channels round to 2e-4; groups are those of single precision, too
    x, depth = tensors["in.tokens"], params["depth"]
    model = vit(tensors, params["heads"])
    method = DiffRate(tuple(params["prune_kept"]), tuple(params["merge_kept"]), tuple(range(depth)))
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
        (stage,) = DiffRate((x.shape[1],), (kept,), (0,)).stages(None)
        found = {stage.pruner.needs[0]: falling[None, :, None, classes:]}
        merged = stage.pruner(midway(x, found, classes, tensors["in.size"]))
        torch.testing.assert_close(with_class(merged.tokens, x, classes), tensors[f"out.x_cls{classes}"], **PART)
        size = with_class(merged.size[..., None], tensors["in.size"], classes)
        similarity = tensors[f"out.similarity_cls{classes}"]
        lost = (similarity.clamp(max=0) * tensors["in.size"][:, kept:, 0])[..., None]
        group = with_class(merged.group, torch.zeros(len(x), 1, dtype=torch.long), 0)[:, -similarity.shape[1] :]
        recorded_size = size.scatter_add(1, group[..., None] + classes, lost)
        torch.testing.assert_close(recorded_size, tensors[f"out.size_cls{classes}"], atol=1e-5, rtol=1e-5)
