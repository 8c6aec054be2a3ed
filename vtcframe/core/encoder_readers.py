"""Readers of one attention call of an encoder: a query row, the mean query, received attention, keys.

A reader is a hashable function from a `KernelCall` to a tensor, so that equal readings are computed once.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor

from vtcframe.core.kernel_call import LOWEST_LOGIT, Heads, KernelCall, attention_logits, float_keys

Reader = Callable[[KernelCall], Tensor]


Pool = Callable[[Tensor], Tensor]  # [..., K, C] -> [..., T, C], means of patches; hashable, because readers contain it


@dataclass(frozen=True)
class PatchGroups:
    """[..., K, C] -> [..., K / size, C]: the mean of each `size` consecutive patches (Qwen-VL's order)."""

    size: int

    def __call__(self, patches: Tensor) -> Tensor:
        if patches.shape[-2] % self.size:
            raise ValueError(
                f"{patches.shape[-2]} patches make no groups of {self.size}: pool as the model merges its patches"
            )
        return patches.unflatten(-2, (-1, self.size)).mean(-2)


@dataclass(frozen=True)
class EncoderTokens:
    """The relation between the K keys of an encoder's attention and its T visual tokens.

    The first `skip` keys are class tokens or registers. `pool` averages the patches of a token; with None each patch
    is a token. `has_class` says whether key 0 is a class token, and `has_head` whether the encoder ends in an
    attention-pooling head.
    """

    skip: int = 0
    pool: Pool | None = None
    _: KW_ONLY
    has_class: bool = False
    has_head: bool = False

    def of_keys(self, keys: Tensor) -> Tensor:
        """[..., K, d] -> [..., T, d]: the vector of each token, mean over its patches, without class tokens."""
        patches = keys[..., self.skip :, :]
        return self.pool(patches) if self.pool else patches

    def of_values(self, values: Tensor) -> Tensor:
        """[..., K] -> [..., T]: the value of each token, mean over its patches, without class tokens."""
        return self.pool(values[..., self.skip :, None])[..., 0] if self.pool else values[..., self.skip :]


@dataclass(frozen=True)
class QueryRow:
    """[B, H, T] float32: attention weights of one query row, softmax over all keys, autocast off.

    `heads="mean"` averages the heads to [B, 1, T]. `heads="joined"` treats all heads as a single head of full width,
    scaled by that width, also [B, 1, T]. `pre_softmax` omits the softmax. Finally the first `skip` keys, the class
    tokens, are omitted, and `pool` averages patches to tokens.
    """

    index: int = 0
    _: KW_ONLY
    pre_softmax: bool = False
    heads: Heads = "split"
    skip: int = 0
    pool: Pool | None = None

    def __call__(self, call: KernelCall) -> Tensor:
        row = self.index % call.query.shape[2]
        logits = call.logits(slice(row, row + 1), self.heads)
        weights = logits if self.pre_softmax else logits.softmax(-1)
        return _to_tokens(weights[:, :, 0], self.heads, self.skip, self.pool)


@dataclass(frozen=True, kw_only=True)
class MeanQuery:
    """[B, H, T] float32: attention weights of the mean of the patch queries, in time and memory linear in K.

    The pseudo [CLS] of FastVID (arXiv 2503.11187) for towers without a class token. `pool` averages the keys of
    patches to keys of tokens first, and the softmax runs over tokens. Class tokens (the first `skip`) and padding are
    neither queries nor keys. The mean query has no position: it attends to all patches, and the causality, window and
    biases that the mask has for single queries do not apply. `pre_softmax` and `heads` are those of `QueryRow`.
    """

    pre_softmax: bool = False
    heads: Heads = "split"
    skip: int = 0
    pool: Pool | None = None

    def __call__(self, call: KernelCall) -> Tensor:
        first = call.first_row(self.skip)
        is_query = call.is_query()
        is_token = call.is_token()
        query = call.query[:, :, first:].float()
        key = call.key[:, :, self.skip :].float()
        if is_query is None:
            query = query.mean(2, keepdim=True)
        else:
            is_query = is_query[:, None, first:, None]
            query = query.masked_fill(~is_query, 0).sum(2, keepdim=True) / is_query.sum(2, keepdim=True).clamp(min=1)
        if is_token is None:
            key = float_keys(self.pool(key) if self.pool else key)
            logits = attention_logits(query, key, call.scaling, self.heads)
        else:
            is_token = is_token[:, None, self.skip :, None]
            key = key.masked_fill(~is_token, 0)
            share = is_token.float()
            if self.pool:  # a token's key is the mean over its patches, without padding
                share = self.pool(share)
                key = self.pool(key) / share.where(share > 0, 1)
            empty = (share == 0).transpose(2, 3)
            logits = attention_logits(query, float_keys(key), call.scaling, self.heads)
            logits = logits.masked_fill(empty, LOWEST_LOGIT)
        return _to_tokens((logits if self.pre_softmax else logits.softmax(-1))[:, :, 0], self.heads)


@dataclass(frozen=True, kw_only=True)
class ReceivedAttention:
    """[B, H, T] float32: attention that each token receives, mean over the patch queries, softmax over all keys.

    The proxy for [CLS] of VScan (arXiv 2505.22654) and others. It is exact and costs about as much as the attention
    itself. It is computed for a chunk of queries at a time, so that memory stays linear in K. Class tokens (the first
    `skip`) and padding are not queries. Class tokens are omitted from the result, and `pool` averages the values of
    patches to tokens. `heads="mean"` averages the heads to [B, 1, T].
    """

    heads: Literal["split", "mean"] = "split"
    skip: int = 0
    pool: Pool | None = None

    def __call__(self, call: KernelCall) -> Tensor:
        row_elements = call.query.shape[1] * call.key.shape[2]
        # at most half of the rows, so that the complete attention matrix never exists, even a small one
        rows = max(1, min(call.max_elements // row_elements, call.query.shape[2] // 2))
        samples = max(1, call.max_elements // (row_elements * rows))
        parts = [self._mean_over_queries(part, rows) for part in call.sample_chunks(samples)]
        return _to_tokens(torch.cat(parts), self.heads, self.skip, self.pool)

    def _mean_over_queries(self, call: KernelCall, rows: int) -> Tensor:
        first = call.first_row(self.skip)
        count = call.query.shape[2]
        is_query = call.is_query()
        key = call.float_key
        total = torch.zeros(*call.query.shape[:2], key.shape[2], device=key.device, dtype=torch.float32)
        for start in range(first, count, rows):
            chunk = slice(start, start + rows)
            weights = call.attention(chunk)
            if is_query is not None:
                weights = weights.masked_fill(~is_query[:, None, chunk, None], 0)
            total += weights.sum(2)
        queries = count - first if is_query is None else is_query[:, first:].sum(1).clamp(min=1)[:, None, None]
        return total / queries


@dataclass(frozen=True)
class KeyStates:
    """[B, G, T, d] float32: the keys as the kernel gets them, without class tokens (the first `skip`), then pooled."""

    skip: int = 0
    pool: Pool | None = None

    def __call__(self, call: KernelCall) -> Tensor:
        key = call.key[:, :, self.skip :].float()
        return self.pool(key) if self.pool else key


def _to_tokens(weights: Tensor, heads: Heads, skip: int = 0, pool: Pool | None = None) -> Tensor:
    weights = weights.mean(1, keepdim=True) if heads == "mean" else weights
    return EncoderTokens(skip, pool).of_values(weights)
