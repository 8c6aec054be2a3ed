"""EViT: numbers recorded from the authors' own code."""

import torch

from support.recorded_cases import each_case, load_case
from support.recorded_encoders import PART, WHOLE, through, vit
from vtcframe.methods.evit import EVit


@each_case("evit")
def test_evit(path):
    tensors, params = load_case(path)
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
