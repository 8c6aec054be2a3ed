"""What one attention call of an encoder shows of its tokens: a row, the mean query, attention received, keys.

Readers are hashable functions from a `KernelCall` to a tensor, so that equal readings are made once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtcframe.core.kernel_call import LOWEST_LOGIT, Heads, KernelCall, attention_logits, float_keys

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
class EncoderTokens:
    """How the keys of an encoder's attention become its visual tokens: K keys, of which T tokens are made.

    The first `skip` keys are class tokens or registers; `pool` averages the patches of a token, None where each patch
    is a token. `has_class` says whether the key at place 0 is a class token, `has_head` whether the encoder ends in an
    attention-pooling head.
    """

    skip: int = 0
    pool: Pool | None = None
    has_class: bool = False
    has_head: bool = False

    def of_keys(self, keys: Tensor) -> Tensor:
        """[..., K, d] -> [..., T, d]: vectors of the tokens, without class tokens, mean over a token's patches."""
        patches = keys[..., self.skip :, :]
        return self.pool(patches) if self.pool else patches

    def of_values(self, values: Tensor) -> Tensor:
        """[..., K] -> [..., T]: numbers of the tokens, without class tokens, mean over a token's patches."""
        return self.pool(values[..., self.skip :, None])[..., 0] if self.pool else values[..., self.skip :]


@dataclass(frozen=True)
class QueryRow:
    """[B, H, T] float32: attention of one query row, softmax over all keys, autocast off.

    `heads="mean"` averages the heads to [B, 1, T]; "joined" takes all heads as one of full width, scaled by its own
    width, also [B, 1, T]. `pre_softmax` omits the softmax. At the end the `skip` class tokens in front are omitted
    and `pool` averages patches to tokens.
    """

    index: int = 0
    pre_softmax: bool = False
    heads: Heads = "split"
    skip: int = 0
    pool: Pool | None = None

    def __call__(self, call: KernelCall) -> Tensor:
        row = self.index % call.query.shape[2]
        logits = call.logits(slice(row, row + 1), self.heads)
        weights = logits if self.pre_softmax else logits.softmax(-1)
        return _to_tokens(weights[:, :, 0], self.heads, self.skip, self.pool)


@dataclass(frozen=True)
class MeanQuery:
    """[B, H, T] float32: attention of the mean of the patch queries, in time and memory linear in K.

    The pseudo [CLS] of FastVID (arXiv 2503.11187) for towers without one. `pool` averages the keys of patches to keys
    of tokens first, and the softmax runs over tokens. Class tokens (the first `skip`) and padding are neither queries
    nor keys. The mean query has no position of its own: it sees all patches, whatever causality, window and biases the
    mask has for single queries. `pre_softmax` and `heads` are those of `QueryRow`.
    """

    pre_softmax: bool = False
    heads: Heads = "split"
    skip: int = 0
    pool: Pool | None = None

    def __call__(self, call: KernelCall) -> Tensor:
        first, is_query, is_token = call.first_row(self.skip), call.is_query(), call.is_token()
        query, key = call.query[:, :, first:].float(), call.key[:, :, self.skip :].float()
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
            key, share = key.masked_fill(~is_token, 0), is_token.float()
            if self.pool:  # a token's key is the mean of those of its patches that are no padding
                share = self.pool(share)
                key = self.pool(key) / share.where(share > 0, 1)
            empty = (share == 0).transpose(2, 3)
            logits = attention_logits(query, float_keys(key), call.scaling, self.heads)
            logits = logits.masked_fill(empty, LOWEST_LOGIT)
        return _to_tokens((logits if self.pre_softmax else logits.softmax(-1))[:, :, 0], self.heads)


@dataclass(frozen=True)
class ReceivedAttention:
    """[B, H, T] float32: attention that each token receives, mean over the patch queries, softmax over all keys.

    The stand-in for [CLS] of VScan (arXiv 2505.22654) and others: exact, at about the cost of the attention itself,
    computed for some queries at a time, so that memory stays linear in K. Class tokens (the first `skip`) are no
    queries and are left out at the end, padding is no query, and `pool` averages what patches received to tokens.
    `heads="mean"` averages the heads to [B, 1, T].
    """

    heads: Literal["split", "mean"] = "split"
    skip: int = 0
    pool: Pool | None = None

    def __call__(self, call: KernelCall) -> Tensor:
        row_elements = call.query.shape[1] * call.key.shape[2]
        # at most half of the rows, so that the whole matrix never exists, however small it is
        rows = max(1, min(call.max_elements // row_elements, call.query.shape[2] // 2))
        samples = max(1, call.max_elements // (row_elements * rows))
        parts = [self._mean_over_queries(part, rows) for part in call.sample_chunks(samples)]
        return _to_tokens(torch.cat(parts), self.heads, self.skip, self.pool)

    def _mean_over_queries(self, call: KernelCall, rows: int) -> Tensor:
        first, count, is_query, key = call.first_row(self.skip), call.query.shape[2], call.is_query(), call.float_key
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
    """[B, G, T, d] float32: the keys as the kernel gets them, class tokens (the first `skip`) left out, then pooled."""

    skip: int = 0
    pool: Pool | None = None

    def __call__(self, call: KernelCall) -> Tensor:
        key = call.key[:, :, self.skip :].float()
        return self.pool(key) if self.pool else key


def _to_tokens(weights: Tensor, heads: Heads, skip: int = 0, pool: Pool | None = None) -> Tensor:
    weights = weights.mean(1, keepdim=True) if heads == "mean" else weights
    return EncoderTokens(skip, pool).of_values(weights)
