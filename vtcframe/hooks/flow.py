"""The walk along a whole attention map, which is read some rows at a time and never made at once."""

import torch
from torch import Tensor

from vtcframe.core.needs import AttentionPageRank
from vtcframe.hooks.kernel_call import MAX_ELEMENTS, KernelCall, attention_logits, float_keys


def page_rank(call: KernelCall, need: AttentionPageRank) -> Tensor:
    """[B, H, K] float32: where a walk of `need.steps` steps along one call's attention ends, 0 at padding.

    It starts at each of a sample's n tokens with 1/n. A step is d <- d M, where M is the softmax of the logits, masked
    and then divided by the temperature (AIM, arXiv 2412.03248, without damping). Padding neither asks nor answers.
    M is made anew in every step, so that memory is linear in K. ValueError for a call that is not of a whole prompt.
    """
    count, length = call.query.shape[2], call.key.shape[2]
    if count != length:
        raise ValueError(f"a walk needs the whole prompt in one call, got {count} queries of {length} tokens")
    there = call.is_token()
    if there is None:
        there = torch.ones(1, length, dtype=torch.bool, device=call.key.device)
    share = there.float() / there.sum(1, keepdim=True).clamp(min=1)
    walk = share[:, None].expand(*call.query.shape[:2], length)
    key = float_keys(call.key).masked_fill(~there[:, None, :, None], 0)  # mask + NaN is NaN
    rows = max(1, min(MAX_ELEMENTS // (walk.shape[0] * walk.shape[1] * length), count // 2))
    for _ in range(need.steps):
        onward = torch.zeros_like(walk)
        for start in range(0, count, rows):
            some = slice(start, start + rows)
            paid = attention_logits(call.query[:, :, some], key, call.scaling)
            if (hidden := call.additive_mask(some)) is not None:
                paid = paid + hidden
            paid = (paid / need.temperature).softmax(-1).masked_fill(~there[:, None, some, None], 0)
            onward += (walk[:, :, None, some] @ paid)[:, :, 0]
        walk = onward
    return walk
