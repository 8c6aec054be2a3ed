"""Readers of one attention call of a language model: attention from text, or from any token after a picture.

A call is one layer's attention over a batch of prompts padded on the left. Readers process a chunk of query rows at a
time, in float32, so that memory stays linear in the length of the prompt.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtcframe.core.kernel_call import KernelCall


@dataclass(frozen=True)
class PromptTokens:
    """The prompts of a batch as a layer reads them: P samples, L slots. All tensors but the last two are on the CPU."""

    column: Tensor  # [P, L] the position of each slot in its own prompt, -1 = padding
    key: Tensor  # [P] the samples' hashes
    candidate: Tensor  # [P, L] bool, True for visual tokens that may be dropped
    text_start: Tensor  # [P] the first slot after a sample's visual tokens; L - 1 if no slot follows
    # [P, L] the first slot after the view of a candidate, or after all crops of its picture; L - 1 if no slot follows
    after_view: Tensor
    prepared: Tensor | None = None  # [P, L, ...] result of the need's `preparation` for the remaining slots
    rotary: tuple[Tensor, Tensor] | None = None  # RoPE cosine and sine [P or 1, L, d] of the layer


def query_starts(query: str, prompts: PromptTokens, rows: int) -> Tensor:
    """[P, L] on the CPU: for each slot the first of `rows` query rows whose attention to it counts.

    `query` is "last", "text" or "after" (see AttentionRows). ValueError for anything else.
    """
    if query == "last":
        return torch.full_like(prompts.column, rows - 1)
    if query == "after":
        return prompts.after_view
    if query == "text":
        return prompts.text_start[:, None].expand_as(prompts.column)
    raise ValueError(f"query must be 'last', 'text' or 'after' in a language model, got {query!r}")


def text_rows(
    call: KernelCall,
    prompts: PromptTokens,
    starts: Tensor,
    *,
    heads: Literal["split", "mean"] = "split",
    reduce: Literal["mean", "max"] = "mean",
    pre_softmax: bool = False,
    divide_by_rope_prior: bool = False,
    is_query: Tensor | None = None,
) -> Tensor:
    """[P, H, L] float32: attention weights from query rows to each slot, the mean or the maximum over the rows.

    `starts` [P, L] is the first row that counts for each slot. `is_query` [P, L] restricts the rows from there on; with
    None all of them count. `heads="mean"` averages the heads first, [P, 1, L]. `divide_by_rope_prior` divides by the
    attention that an all-ones query and key would get from RoPE alone.
    """
    count = call.query.shape[2]
    length = call.key.shape[2]
    first = int(starts[prompts.candidate].min()) if prompts.candidate.any() else count - 1
    starts = starts.to(call.key.device)
    samples = len(call.key)
    device = call.key.device
    out_heads = 1 if heads == "mean" else call.query.shape[1]
    out = torch.zeros(samples, out_heads, length, device=device, dtype=torch.float32)
    out = out - torch.inf if reduce == "max" else out
    counted = torch.zeros(samples, length, device=device, dtype=torch.float32)
    for rows in call.row_chunks(first):
        weights = call.logits(rows) if pre_softmax else call.attention(rows)
        if divide_by_rope_prior:
            weights = weights / _rope_prior(prompts.rotary, rows, call.query.shape[3])
        weights = weights.mean(1, keepdim=True) if heads == "mean" else weights
        counts = torch.arange(rows.start, rows.stop, device=device)[:, None] >= starts[:, None]  # [P, R, L]
        if is_query is not None:
            counts = counts & is_query[:, rows, None]
        if reduce == "max":
            out = out.maximum(weights.masked_fill(~counts[:, None], -torch.inf).amax(2))
        else:
            out = out + weights.masked_fill(~counts[:, None], 0).sum(2)
            counted = counted + counts.sum(1)
    if reduce == "max":
        return out.where(out > -torch.inf, 0)
    return out / counted.clamp(min=1)[:, None]


def _rope_prior(rotary: tuple[Tensor, Tensor] | None, rows: slice, width: int) -> Tensor:
    """[P or 1, 1, R, L]: attention logits of all-ones queries and keys, rotated by their positions."""
    if rotary is None:
        raise ValueError("divide_by_rope_prior needs a layer with rotary positions, and this layer has none")
    cosine, sine = (x.float() for x in rotary)
    rotated = cosine[:, rows] @ cosine.transpose(1, 2) + sine[:, rows] @ sine.transpose(1, 2)
    unrotated = width - cosine.shape[-1]  # number of channels that RoPE does not rotate
    return ((rotated + unrotated) * width**-0.5)[:, None]
