"""TODO: vtcframe/hooks/kernel_call.py."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

_LOWEST = torch.finfo(torch.float32).min


MASKED_LOGIT = -1e4  # an additive mask that adds no more than this hides: exp of it is 0 in float32


MAX_ELEMENTS = 2**21  # of attention that a reader holds at a time


@dataclass(frozen=True)
class KernelCall:
    """One call of an attention kernel, or one segment of a packed call."""

    query: Tensor  # [B, H, Q, d]
    key: Tensor  # [B, G, K, d]; G divides H (grouped queries)
    mask: Tensor | None  # [B or 1, 1 or H, Q, >= K] bool or additive, or [B, >= K] bool
    scaling: float
    causal: bool  # the kernel masks what comes after a query by itself
    window: int | None  # and what lies that many places or more before it

    def additive_mask(self, rows: slice | Tensor) -> Tensor | None:
        """Additive mask [B or 1, 1 or H, rows, K] of some query rows, float32; None if they see every key."""
        count, length, device = self.query.shape[2], self.key.shape[2], self.key.device
        if self.mask is not None and self.mask.ndim == 4:
            mask = self.mask.expand(-1, -1, count, -1)[:, :, rows, :length].to(device)
            if mask.dtype == torch.bool:
                return torch.zeros(mask.shape, device=device, dtype=torch.float32).masked_fill(~mask, _LOWEST)
            return mask.float()
        if self.mask is None and not self.causal:
            return None
        at = torch.arange(length, device=device)
        own = at[length - count :][rows, None]
        seen = torch.ones(1, 1, len(own), length, dtype=torch.bool, device=device)
        if self.causal:
            seen = seen & (at <= own)
        if self.causal and self.window is not None:
            seen = seen & (at > own - self.window)
        if self.mask is not None:
            seen = seen & self.mask[:, None, None, -length:].bool().to(device)
        return torch.zeros(seen.shape, device=device, dtype=torch.float32).masked_fill(~seen, _LOWEST)

    def is_token(self) -> Tensor | None:
        """[B or 1, K] bool: which keys are tokens and not padding; None if all are.

        A token sees itself. Where not every key has its query here (a cache), some query must see it.
        """
        if self.mask is None:
            return None
        length = self.key.shape[2]
        if self.mask.ndim == 2:
            return self.mask[:, -length:].bool().to(self.key.device)
        mask = self.mask[..., :length]
        own = mask.diagonal(dim1=2, dim2=3) if mask.shape[2] == length else mask.amax(2)
        return (own if own.dtype == torch.bool else own > MASKED_LOGIT).any(1).to(self.key.device)

    def is_query(self) -> Tensor | None:
        """[B or 1, Q] bool: which queries are of tokens and not of padding; None if all are."""
        count, present = self.query.shape[2], self.is_token()
        own = self.causal or count == self.key.shape[2]  # else they are no tokens of this sequence
        return None if present is None or not own else present[:, -count:]

    def first(self, skip: int) -> int:
        """Return the first query row of a patch, the first `skip` keys being class tokens."""
        return max(0, skip + self.query.shape[2] - self.key.shape[2])

    def parts(self, size: int) -> Iterator["KernelCall"]:
        """Yield calls of at most `size` samples each."""
        for at in range(0, len(self.query), size):
            samples = slice(at, at + size)
            mask = self.mask if self.mask is None or len(self.mask) == 1 else self.mask[samples]
            yield replace(self, query=self.query[samples], key=self.key[samples], mask=mask)


Heads = Literal["split", "mean", "joined"]


def float_keys(key: Tensor) -> Tensor:
    """Return keys in float32."""
    # Contiguous: keys are strided views over heads, and the product would copy them transposed, ten times as slow.
    return key.to(torch.float32, memory_format=torch.contiguous_format).contiguous()


def attention_logits(query: Tensor, key: Tensor, scaling: float, heads: Heads = "split") -> Tensor:
    """[B, H, R, K], or [B, 1, R, K] of heads joined, from query [B, H, R, d] and key [B, G, K, d]."""
    (_, count, rows, width), groups = query.shape, key.shape[1]
    scaling = (count * width) ** -0.5 if heads == "joined" else scaling
    query = (query.float() * scaling).unflatten(1, (groups, count // groups)).flatten(2, 3)
    paid = (query @ key.transpose(-1, -2)).unflatten(2, (-1, rows)).flatten(1, 2)
    return paid.sum(1, keepdim=True) if heads == "joined" else paid


@dataclass(frozen=True)
class PackedSequences:
    """Sequences that lie packed behind one another in every call, each of which sees itself only (Pixtral)."""

    lengths: Sequence[int]
    order: Tensor  # [K] of each sequence on its own: puts the patches of a token behind one another


def calls_of(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    options: Mapping[str, Any],
    segments: PackedSequences | None = None,
) -> Iterator[KernelCall]:
    """Yield what a kernel is called with, one `Call` for each packed sequence."""
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", False) if causal is None else causal
    bounds = options.get("cu_seq_lens_q")
    if segments is not None:
        order, lengths = segments.order.to(query.device), list(segments.lengths)
        query, key = query[:, :, order], key[:, :, order]
    elif bounds is not None:  # several sequences packed behind one another, as FlashAttention takes them
        lengths = bounds.diff().tolist()
    else:
        yield KernelCall(query, key, mask, scaling, causal, options.get("sliding_window"))
        return
    for q, k in zip(query.split(lengths, 2), key.split(lengths, 2), strict=True):
        yield KernelCall(q, k, None, scaling, causal, options.get("sliding_window"))
