"""ToMe: numbers recorded from the authors' own code."""

import json

import torch

from support.recorded_cases import GOLDEN, each_case, load_case
from support.recorded_encoders import PART, WHOLE, groups, midway, through, vit, with_class
from vtcframe.methods.tome import ToMe
from vtcframe_backbones.encoders.extract import extract


@each_case("tome")
def test_tome(path):
    tensors, params = load_case(path)
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
        assert ToMe(r, inflect, blocks=tuple(range(len(values[name])))).rates() == values[name]
