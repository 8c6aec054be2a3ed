"""Readers of a language model's attention: what text, or anything behind a picture, pays to visual tokens.

They read one call of a layer's attention over a batch of prompts padded on the left, some query rows at a time, in
float32; memory stays linear in the length of the prompt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtcframe.core.needs import AttentionKeys, AttentionPageRank, AttentionRows, ProbeAttention
from vtcframe.hooks.flow import page_rank
from vtcframe.hooks.kernel_call import MAX_ELEMENTS, KernelCall, attention_logits, float_keys
from vtcframe.hooks.probed import probe_attention


@dataclass(frozen=True)
class PromptTokens:
    """The prompts of a batch as a layer reads them. All but `rated` and `rotary` lies on the CPU."""

    column: Tensor  # [P, L] own column of each slot, -1 = padding
    key: Tensor  # [P] the samples' hashes
    candidate: Tensor  # [P, L] bool, the visual tokens that may be dropped
    text: Tensor  # [P] the first slot behind a sample's visual tokens; L - 1 where none is
    # [P, L] the first slot behind the view that a candidate is of, or behind all crops of its picture; L - 1 where none
    # is
    behind: Tensor
    rated: Tensor | None = None  # [P, L] bool, the text that SparseVLM rates
    rotary: tuple[Tensor, Tensor] | None = None  # cosine and sine [P or 1, L, d] of the layer


def read_need(
    need: AttentionRows | AttentionKeys | AttentionPageRank | ProbeAttention, call: KernelCall, sequences: PromptTokens
) -> Tensor:
    """[P, H, L] float32, of keys [P, G, L, d]: what a call shows of every slot, padding included."""
    match need:
        case AttentionKeys():
            return call.key.float()
        case AttentionPageRank():
            return page_rank(call, need)
        case ProbeAttention():
            return probe_attention(call, need, sequences.column, sequences.key)
    return read_text_rows(call, need, sequences)


def read_text_rows(call: KernelCall, need: AttentionRows, sequences: PromptTokens) -> Tensor:
    """[P, H, L] float32: attention of the query rows that `need` names, mean over them or the largest."""
    count, length = call.query.shape[2], call.key.shape[2]
    rated = sequences.rated if need.query == "rated" else None
    match need.query:
        case "last":
            start = torch.full_like(sequences.column, count - 1)
        case "after":
            start = sequences.behind
        case _:
            start = sequences.text[:, None].expand_as(sequences.column)
    first = int(start[sequences.candidate].min()) if sequences.candidate.any() else count - 1
    start = start.to(call.key.device)
    key, heads = float_keys(call.key), 1 if need.heads == "mean" else call.query.shape[1]
    out = torch.zeros(len(key), heads, length, device=key.device, dtype=torch.float32)
    out = out - torch.inf if need.reduce == "max" else out
    asked = torch.zeros(len(key), length, device=key.device, dtype=torch.float32)
    rows = max(1, min(MAX_ELEMENTS // (call.query.shape[0] * call.query.shape[1] * length), count // 2))
    for at in range(first, count, rows):
        some = slice(at, min(at + rows, count))
        one = attention_logits(call.query[:, :, some], key, call.scaling)
        if (hidden := call.additive_mask(some)) is not None:
            one = one + hidden
        one = one if need.pre_softmax else one.softmax(-1)
        if need.divide_by_rope_prior:
            one = one / _prior(sequences.rotary, some, call.query.shape[3])
        one = one.mean(1, keepdim=True) if need.heads == "mean" else one
        asks = torch.arange(some.start, some.stop, device=key.device)[:, None] >= start[:, None]  # [P, R, L]
        if rated is not None:
            asks = asks & rated[:, some, None]
        if need.reduce == "max":
            out = out.maximum(one.masked_fill(~asks[:, None], -torch.inf).amax(2))
        else:
            out = out + one.masked_fill(~asks[:, None], 0).sum(2)
            asked = asked + asks.sum(1)
    if need.reduce == "max":
        return out.where(out > -torch.inf, 0)
    return out / asked.clamp(min=1)[:, None]


def _prior(rotary: tuple[Tensor, Tensor] | None, rows: slice, width: int) -> Tensor:
    """[P or 1, 1, R, L]: the logits of queries and keys that are all ones, turned by their rotary positions."""
    assert rotary is not None, "the layer was handed no rotary positions"
    cosine, sine = (x.float() for x in rotary)
    turned = cosine[:, rows] @ cosine.transpose(1, 2) + sine[:, rows] @ sine.transpose(1, 2)
    still = width - cosine.shape[-1]  # channels that are not turned
    return ((turned + still) * width**-0.5)[:, None]


def rate_text(visual: Tensor, there: Tensor, text: Tensor, said: Tensor) -> Tensor:
    """[P, T] bool: the text tokens that SparseVLM (arXiv 2410.04417) lets rate the visual ones.

    Visual [P, N, D], there [P, N] bool, text [P, T, D], said [P, T] bool, all embeddings as they enter the language
    model. A visual token's softmax over the text of their products, mean over the visual tokens; those above the mean
    of the text rate.
    """
    likes = visual.float() @ text.float().transpose(1, 2)  # [P, N, T]
    likes = likes.masked_fill(~said[:, None], -torch.inf).softmax(-1).nan_to_num(0)
    share = likes.masked_fill(~there[..., None], 0).sum(1) / there.sum(1).clamp(min=1)[:, None]
    mean = share.masked_fill(~said, 0).sum(1) / said.sum(1).clamp(min=1)
    return said & (share > mean[:, None])
