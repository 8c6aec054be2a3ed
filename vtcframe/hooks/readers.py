"""TODO: vtcframe/hooks/readers.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtcframe.hooks.kernel_call import _LOWEST, MAX_ELEMENTS, Heads, KernelCall, attention_logits, float_keys

Reader = Callable[[KernelCall], Tensor]


Pool = Callable[[Tensor], Tensor]  # [..., K, C] -> [..., T, C], means of patches; hashable, as it is part of a reader


@dataclass(frozen=True)
class PatchGroups:
    """[..., K, C] -> [..., K / size, C]: the mean of each `size` consecutive patches (Qwen-VL's order)."""

    size: int

    def __call__(self, patches: Tensor) -> Tensor:
        if patches.shape[-2] % self.size:
            raise ValueError(
                f"{patches.shape[-2]} patches make no groups of {self.size}: pool by the model's own merge"
            )
        return patches.unflatten(-2, (-1, self.size)).mean(-2)


@dataclass(frozen=True)
class QueryRow:
    """[B, H, T] float32: attention of one query row, softmax over all keys, autocast off.

    `heads="mean"` averages the heads to [B, 1, T]; "joined" takes all heads as one of full width, scaled by its own
    width, also [B, 1, T]. `pre_softmax` leaves the softmax out. At the end the `skip` class tokens in front are left out,
    and `pool` averages patches to tokens.
    """

    index: int = 0
    pre_softmax: bool = False
    heads: Heads = "split"
    skip: int = 0
    pool: Pool | None = None

    def __call__(self, call: KernelCall) -> Tensor:
        row = self.index % call.query.shape[2]
        rows = slice(row, row + 1)
        paid = attention_logits(call.query[:, :, rows], float_keys(call.key), call.scaling, self.heads)
        if (hidden := call.additive_mask(rows)) is not None:
            paid = paid + hidden
        return finish((paid if self.pre_softmax else paid.softmax(-1))[:, :, 0], self.heads, self.skip, self.pool)


@dataclass(frozen=True)
class MeanQuery:
    """[B, H, T] float32: attention that the mean of the patch queries pays, in time and memory linear in K.

    The pseudo [CLS] of FastVID (arXiv 2503.11187) for towers without one. `pool` averages the keys of patches to keys
    of tokens first, and the softmax runs over tokens. Class tokens (the first `skip`) and padding neither ask nor
    answer. The mean query has no place of its own: it sees all patches, whatever causality, window and biases of the
    mask say of single queries. `pre_softmax` and `heads` are those of `Row`.
    """

    pre_softmax: bool = False
    heads: Heads = "split"
    skip: int = 0
    pool: Pool | None = None

    def __call__(self, call: KernelCall) -> Tensor:
        first, asking, present = call.first(self.skip), call.is_query(), call.is_token()
        query, key = call.query[:, :, first:].float(), call.key[:, :, self.skip :].float()
        if asking is None:
            query = query.mean(2, keepdim=True)
        else:
            asking = asking[:, None, first:, None]
            query = query.masked_fill(~asking, 0).sum(2, keepdim=True) / asking.sum(2, keepdim=True).clamp(min=1)
        if present is None:
            paid = attention_logits(query, float_keys(self.pool(key) if self.pool else key), call.scaling, self.heads)
        else:
            present = present[:, None, self.skip :, None]
            key, share = key.masked_fill(~present, 0), present.float()
            if self.pool:  # a token's key is the mean of those of its patches that are none of padding
                share = self.pool(share)
                key = self.pool(key) / share.where(share > 0, 1)
            hidden = (share == 0).transpose(2, 3)
            paid = attention_logits(query, float_keys(key), call.scaling, self.heads).masked_fill(hidden, _LOWEST)
        return finish((paid if self.pre_softmax else paid.softmax(-1))[:, :, 0], self.heads)


@dataclass(frozen=True)
class ReceivedAttention:
    """[B, H, T] float32: mean over the patch queries of the attention that they pay, softmax over all keys they see.

    The stand-in for [CLS] of VScan (arXiv 2505.22654) and others: exact, at about the cost of the attention itself,
    computed for some queries at a time, so that memory stays linear in K. Class tokens (the first `skip`) do not ask
    and are left out at the end, padding does not ask, and `pool` averages what patches received to tokens.
    `heads="mean"` averages the heads to [B, 1, T].
    """

    heads: Literal["split", "mean"] = "split"
    skip: int = 0
    pool: Pool | None = None

    def __call__(self, call: KernelCall) -> Tensor:
        wide = call.query.shape[1] * call.key.shape[2]
        rows = max(1, min(MAX_ELEMENTS // wide, call.query.shape[2] // 2))  # never the whole matrix, small as it may be
        parts = [self._received(part, rows) for part in call.parts(max(1, MAX_ELEMENTS // (wide * rows)))]
        return finish(torch.cat(parts), self.heads, self.skip, self.pool)

    def _received(self, call: KernelCall, rows: int) -> Tensor:
        first, count, asking, key = call.first(self.skip), call.query.shape[2], call.is_query(), float_keys(call.key)
        total = torch.zeros(*call.query.shape[:2], key.shape[2], device=key.device, dtype=torch.float32)
        for start in range(first, count, rows):
            some = slice(start, start + rows)
            paid = attention_logits(call.query[:, :, some], key, call.scaling)
            if (hidden := call.additive_mask(some)) is not None:
                paid += hidden
            paid = paid.softmax(-1)
            if asking is not None:
                paid = paid.masked_fill(~asking[:, None, some, None], 0)
            total += paid.sum(2)
        asked = count - first if asking is None else asking[:, first:].sum(1).clamp(min=1)[:, None, None]
        return total / asked


@dataclass(frozen=True)
class KeyStates:
    """[B, G, T, d] float32: the keys as the kernel gets them, class tokens (the first `skip`) left out, then pooled."""

    skip: int = 0
    pool: Pool | None = None

    def __call__(self, call: KernelCall) -> Tensor:
        key = call.key[:, :, self.skip :].float()
        return self.pool(key) if self.pool else key


def finish(paid: Tensor, heads: Heads, skip: int = 0, pool: Pool | None = None) -> Tensor:
    paid = paid.mean(1, keepdim=True) if heads == "mean" else paid
    return pool(paid[..., skip:, None])[..., 0] if pool else paid[..., skip:]
