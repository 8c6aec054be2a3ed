"""One call of an attention kernel, the input of attention needs: query, key, mask, and attention rows from them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

LOWEST_LOGIT = torch.finfo(torch.float32).min  # the additive mask where a query must not attend to a key

MASKED_LOGIT = -1e4  # a key whose additive mask is at most this is hidden: its exp is 0 in float32

MAX_ELEMENTS = 2**21  # number of attention weights that a reader holds in memory at a time

Heads = Literal["split", "mean", "joined"]


@dataclass(frozen=True)
class KernelCall:
    """One call of an attention kernel, or one sequence of a packed call."""

    query: Tensor  # [B, H, Q, d]
    key: Tensor  # [B, G, K, d]; G divides H (grouped queries)
    mask: Tensor | None  # [B or 1, 1 or H, Q, >= K] bool or additive, or [B, >= K] bool
    scaling: float
    causal: bool  # whether the kernel itself masks the keys after a query
    window: int | None  # size of the sliding window: keys that many positions or more before a query are masked too
    max_elements: int = MAX_ELEMENTS  # number of attention weights in a chunk of `row_chunks`

    @cached_property
    def float_key(self) -> Tensor:
        """[B, G, K, d] the keys in float32, computed once for all readers of the call."""
        return float_keys(self.key)

    def attention(self, rows: slice | Tensor) -> Tensor:
        """[B, H, rows, K] float32: attention weights of the query rows, softmax over all keys that are not masked."""
        return self.logits(rows).softmax(-1)

    def logits(self, rows: slice | Tensor, heads: Heads = "split") -> Tensor:
        """[B, H, rows, K] float32: scaled products of query rows and keys plus the mask and its biases.

        `heads="joined"` treats all heads as a single head of full width and returns [B, 1, rows, K].
        """
        logits = attention_logits(self.query[:, :, rows], self.float_key, self.scaling, heads)
        mask = self.additive_mask(rows)
        if mask is None:
            return logits
        return logits + mask if heads == "joined" else logits.add_(mask)

    def row_chunks(self, first: int = 0) -> Iterator[slice]:
        """Yield slices of query rows, from row `first` on, whose attention has at most `max_elements` weights.

        A chunk has at most half of the rows, so that the complete attention matrix never exists, even a small one.
        """
        count = self.query.shape[2]
        row_elements = self.query.shape[0] * self.query.shape[1] * self.key.shape[2]
        rows = max(1, min(self.max_elements // max(1, row_elements), count // 2))
        for start in range(first, count, rows):
            yield slice(start, min(start + rows, count))

    def additive_mask(self, rows: slice | Tensor) -> Tensor | None:
        """Return the additive mask [B or 1, 1 or H, rows, K] of query rows, float32; None if nothing is masked."""
        count, length, device = self.query.shape[2], self.key.shape[2], self.key.device
        if self.mask is not None and self.mask.ndim == 4:
            mask = self.mask.expand(-1, -1, count, -1)[:, :, rows, :length].to(device)
            if mask.dtype == torch.bool:
                return torch.zeros(mask.shape, device=device, dtype=torch.float32).masked_fill(~mask, LOWEST_LOGIT)
            return mask.float()
        if self.mask is None and not self.causal:
            return None
        position = torch.arange(length, device=device)
        query_position = position[length - count :][rows, None]
        visible = torch.ones(1, 1, len(query_position), length, dtype=torch.bool, device=device)
        if self.causal:
            visible = visible & (position <= query_position)
        if self.causal and self.window is not None:
            visible = visible & (position > query_position - self.window)
        if self.mask is not None:
            visible = visible & self.mask[:, None, None, -length:].bool().to(device)
        return torch.zeros(visible.shape, device=device, dtype=torch.float32).masked_fill(~visible, LOWEST_LOGIT)

    def is_token(self) -> Tensor | None:
        """[B or 1, K] bool: True for keys of tokens, False for padding; None if all keys are tokens.

        A key is a token if it attends to itself. If keys of a cache have no query in this call, a key is a token if
        any query attends to it.
        """
        if self.mask is None:
            return None
        length = self.key.shape[2]
        if self.mask.ndim == 2:
            return self.mask[:, -length:].bool().to(self.key.device)
        mask = self.mask[..., :length]
        visible = mask.diagonal(dim1=2, dim2=3) if mask.shape[2] == length else mask.amax(2)
        return (visible if visible.dtype == torch.bool else visible > MASKED_LOGIT).any(1).to(self.key.device)

    def is_query(self) -> Tensor | None:
        """[B or 1, Q] bool: True for queries of tokens, False for padding; None if all queries are of tokens."""
        count, tokens = self.query.shape[2], self.is_token()
        of_sequence = self.causal or count == self.key.shape[2]  # otherwise the queries are not tokens of the sequence
        return None if tokens is None or not of_sequence else tokens[:, -count:]

    def first_row(self, skip: int) -> int:
        """Return the first query row that belongs to a patch if the first `skip` keys are class tokens."""
        return max(0, skip + self.query.shape[2] - self.key.shape[2])

    def sample_chunks(self, size: int) -> Iterator["KernelCall"]:
        """Yield calls of at most `size` samples each."""
        for start in range(0, len(self.query), size):
            samples = slice(start, start + size)
            mask = self.mask if self.mask is None or len(self.mask) == 1 else self.mask[samples]
            yield replace(self, query=self.query[samples], key=self.key[samples], mask=mask)


def float_keys(key: Tensor) -> Tensor:
    """Return keys in float32."""
    # Keys are strided views over heads. The matrix product would copy them transposed, which is ten times slower.
    return key.to(torch.float32, memory_format=torch.contiguous_format).contiguous()


def attention_logits(query: Tensor, key: Tensor, scaling: float, heads: Heads = "split") -> Tensor:
    """Return [B, H, R, K], or [B, 1, R, K] for joined heads, from query [B, H, R, d] and key [B, G, K, d] in float32.

    `scaling` applies to separate heads; joined heads use the scaling of their full width.
    """
    _, count, rows, width = query.shape
    groups = key.shape[1]
    scaling = (count * width) ** -0.5 if heads == "joined" else scaling
    query = (query.float() * scaling).unflatten(1, (groups, count // groups)).flatten(2, 3)
    logits = (query @ key.transpose(-1, -2)).unflatten(2, (-1, rows)).flatten(1, 2)
    return logits.sum(1, keepdim=True) if heads == "joined" else logits
