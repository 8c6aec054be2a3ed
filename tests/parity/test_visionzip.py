"""VisionZip: numbers recorded from the authors' own code."""

import torch

from support.recorded_cases import each_case_with, layout_of, load_case, square, stitched
from support.recorded_merging import close
from vtcframe import AttentionKeys, AttentionRows, Budget, ClassToken, Evidence, HiddenStates
from vtcframe.core.pruned import Pruned
from vtcframe.methods.visionzip import VisionZip


@each_case_with("visionzip", "in.key_metric")
def test_visionzip(path):
    tensors, params = load_case(path)
    x, keys, total = tensors["in.hidden"], tensors["in.key_metric"], params["out_len"]
    found = {
        AttentionRows("cls", (-1,)): tensors["in.cls_attn"][None, ..., 1:],
        HiddenStates(): x[:, 1:],
        ClassToken(): x[:, 0],
        AttentionKeys((-1,)): keys[None, :, None, 1:],
    }
    where = layout_of([square(params["patches"])] * params["batch"])
    method = VisionZip(params["contextual"] / total)
    pruned = method(Evidence(x[:, 1:], where, found, lambda features: features), Budget(total))
    close(pruned.tokens, tensors["out.tokens"])
    dominant = tensors["out.kept_indices_with_cls"][:, 1:].sort(1).values - 1
    assert torch.equal(pruned.place[:, 1 : 1 + dominant.shape[1]], dominant)


@each_case_with("visionzip", "in.kept_indices_with_cls")
def test_crops_of_visionzip_are_stitched_alike_but_their_class_and_contextual_tokens_stay_with_them(path):
    tensors, params = load_case(path)
    made, across = tensors["in.features"], params["width"]  # [crops, CLS + dominant + contextual, D]
    crops, contexts = len(made), params["contextual"]
    own = tensors["in.kept_indices_with_cls"][:, 1:].sort(1).values - 1
    free = torch.stack([torch.tensor([i for i in range(576) if i not in row][: contexts + 1]) for row in own.tolist()])
    place = torch.cat([free[:, :1], own, free[:, 1:]], 1)
    where = layout_of([(24, 24)] * crops, [0] * crops, stitched({"side": 24, "grid_w": across}, crops + 1, 576)[1:])
    tokens, _ = Pruned(made, place, torch.zeros(crops, 576), where).sequence(0)
    want, count = tensors["out.tokens"], own.numel()
    dominant = made[:, 1 : 1 + own.shape[1]].flatten(0, 1)
    order = where.column.gather(1, own).flatten().argsort()
    close(dominant[order], want[:count])  # the recorded order: dominant tokens by the stitched picture's raster,
    close(made[:, 0], want[count : count + crops])  # then class tokens,
    close(made[:, 1 + own.shape[1] :].flatten(0, 1), want[count + crops :])  # then contextual ones, crop by crop
    assert sorted(map(tuple, tokens.tolist())) == sorted(map(tuple, want.tolist()))  # ours: the same tokens,
    for crop in made:  # each crop's in its own order
        at = [tokens.tolist().index(token) for token in crop.tolist()]
        assert at == sorted(at)
