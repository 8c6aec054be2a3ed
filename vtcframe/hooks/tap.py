"""The tap: what chosen attention modules show, while the model keeps its own kernel.

While a tap is open, gates (see vtcframe.gates) hand it query and key of every call, after RoPE and qk-norm, and the
kernel is called as ever. Readers make of them what was asked for, in float32. No implementation is switched, no N x N
matrix made, and nothing is left behind.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vtcframe.gates import listening

_LOWEST = torch.finfo(torch.float32).min
NEVER = -1e4  # an additive mask that adds no more than this hides: exp of it is 0 in float32
ELEMENTS = 2**21  # of attention that a reader holds at a time


@dataclass(frozen=True)
class Call:
    """One call of an attention kernel, or one segment of a packed call."""

    query: Tensor  # [B, H, Q, d]
    key: Tensor  # [B, G, K, d]; G divides H (grouped queries)
    mask: Tensor | None  # [B or 1, 1 or H, Q, >= K] bool or additive, or [B, >= K] bool
    scaling: float
    causal: bool  # the kernel masks what comes after a query by itself
    window: int | None  # and what lies that many places or more before it

    def hidden(self, rows: slice | Tensor) -> Tensor | None:
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

    def present(self) -> Tensor | None:
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
        return (own if own.dtype == torch.bool else own > NEVER).any(1).to(self.key.device)

    def asking(self) -> Tensor | None:
        """[B or 1, Q] bool: which queries are of tokens and not of padding; None if all are."""
        count, present = self.query.shape[2], self.present()
        own = self.causal or count == self.key.shape[2]  # else they are no tokens of this sequence
        return None if present is None or not own else present[:, -count:]

    def first(self, skip: int) -> int:
        """Return the first query row of a patch, the first `skip` keys being class tokens."""
        return max(0, skip + self.query.shape[2] - self.key.shape[2])

    def parts(self, size: int) -> Iterator["Call"]:
        """Yield calls of at most `size` samples each."""
        for at in range(0, len(self.query), size):
            samples = slice(at, at + size)
            mask = self.mask if self.mask is None or len(self.mask) == 1 else self.mask[samples]
            yield replace(self, query=self.query[samples], key=self.key[samples], mask=mask)


Reader = Callable[[Call], Tensor]
Pool = Callable[[Tensor], Tensor]  # [..., K, C] -> [..., T, C], means of patches; hashable, as it is part of a reader
Heads = Literal["split", "mean", "joined"]


@dataclass(frozen=True)
class Groups:
    """[..., K, C] -> [..., K / size, C]: the mean of each `size` consecutive patches (Qwen-VL's order)."""

    size: int

    def __call__(self, patches: Tensor) -> Tensor:
        if patches.shape[-2] % self.size:
            raise ValueError(
                f"{patches.shape[-2]} patches make no groups of {self.size}: pool by the model's own merge"
            )
        return patches.unflatten(-2, (-1, self.size)).mean(-2)


@dataclass(frozen=True)
class Row:
    """[B, H, T] float32: attention of one query row, softmax over all keys, autocast off.

    `heads="mean"` averages the heads to [B, 1, T]; "joined" takes all heads as one of full width, scaled by its own
    width, also [B, 1, T]. `logits` leaves the softmax out. At the end the `skip` class tokens in front are left out,
    and `pool` averages patches to tokens.
    """

    index: int = 0
    logits: bool = False
    heads: Heads = "split"
    skip: int = 0
    pool: Pool | None = None

    def __call__(self, call: Call) -> Tensor:
        row = self.index % call.query.shape[2]
        rows = slice(row, row + 1)
        paid = logits_of(call.query[:, :, rows], as_float(call.key), call.scaling, self.heads)
        if (hidden := call.hidden(rows)) is not None:
            paid = paid + hidden
        return _finished((paid if self.logits else paid.softmax(-1))[:, :, 0], self.heads, self.skip, self.pool)


@dataclass(frozen=True)
class MeanQuery:
    """[B, H, T] float32: attention that the mean of the patch queries pays, in time and memory linear in K.

    The pseudo [CLS] of FastVID (arXiv 2503.11187) for towers without one. `pool` averages the keys of patches to keys
    of tokens first, and the softmax runs over tokens. Class tokens (the first `skip`) and padding neither ask nor
    answer. The mean query has no place of its own: it sees all patches, whatever causality, window and biases of the
    mask say of single queries. `logits` and `heads` are those of `Row`.
    """

    logits: bool = False
    heads: Heads = "split"
    skip: int = 0
    pool: Pool | None = None

    def __call__(self, call: Call) -> Tensor:
        first, asking, present = call.first(self.skip), call.asking(), call.present()
        query, key = call.query[:, :, first:].float(), call.key[:, :, self.skip :].float()
        if asking is None:
            query = query.mean(2, keepdim=True)
        else:
            asking = asking[:, None, first:, None]
            query = query.masked_fill(~asking, 0).sum(2, keepdim=True) / asking.sum(2, keepdim=True).clamp(min=1)
        if present is None:
            paid = logits_of(query, as_float(self.pool(key) if self.pool else key), call.scaling, self.heads)
        else:
            present = present[:, None, self.skip :, None]
            key, share = key.masked_fill(~present, 0), present.float()
            if self.pool:  # a token's key is the mean of those of its patches that are none of padding
                share = self.pool(share)
                key = self.pool(key) / share.where(share > 0, 1)
            hidden = (share == 0).transpose(2, 3)
            paid = logits_of(query, as_float(key), call.scaling, self.heads).masked_fill(hidden, _LOWEST)
        return _finished((paid if self.logits else paid.softmax(-1))[:, :, 0], self.heads)


@dataclass(frozen=True)
class Received:
    """[B, H, T] float32: mean over the patch queries of the attention that they pay, softmax over all keys they see.

    The stand-in for [CLS] of VScan (arXiv 2505.22654) and others: exact, at about the cost of the attention itself,
    computed for some queries at a time, so that memory stays linear in K. Class tokens (the first `skip`) do not ask
    and are left out at the end, padding does not ask, and `pool` averages what patches received to tokens.
    `heads="mean"` averages the heads to [B, 1, T].
    """

    heads: Literal["split", "mean"] = "split"
    skip: int = 0
    pool: Pool | None = None

    def __call__(self, call: Call) -> Tensor:
        wide = call.query.shape[1] * call.key.shape[2]
        rows = max(1, min(ELEMENTS // wide, call.query.shape[2] // 2))  # never the whole matrix, small as it may be
        parts = [self._received(part, rows) for part in call.parts(max(1, ELEMENTS // (wide * rows)))]
        return _finished(torch.cat(parts), self.heads, self.skip, self.pool)

    def _received(self, call: Call, rows: int) -> Tensor:
        first, count, asking, key = call.first(self.skip), call.query.shape[2], call.asking(), as_float(call.key)
        total = torch.zeros(*call.query.shape[:2], key.shape[2], device=key.device, dtype=torch.float32)
        for start in range(first, count, rows):
            some = slice(start, start + rows)
            paid = logits_of(call.query[:, :, some], key, call.scaling)
            if (hidden := call.hidden(some)) is not None:
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

    def __call__(self, call: Call) -> Tensor:
        key = call.key[:, :, self.skip :].float()
        return self.pool(key) if self.pool else key


def as_float(key: Tensor) -> Tensor:
    """Return keys in float32."""
    # Contiguous: keys are strided views over heads, and the product would copy them transposed, ten times as slow.
    return key.to(torch.float32, memory_format=torch.contiguous_format).contiguous()


def logits_of(query: Tensor, key: Tensor, scaling: float, heads: Heads = "split") -> Tensor:
    """[B, H, R, K], or [B, 1, R, K] of heads joined, from query [B, H, R, d] and key [B, G, K, d]."""
    (_, count, rows, width), groups = query.shape, key.shape[1]
    scaling = (count * width) ** -0.5 if heads == "joined" else scaling
    query = (query.float() * scaling).unflatten(1, (groups, count // groups)).flatten(2, 3)
    paid = (query @ key.transpose(-1, -2)).unflatten(2, (-1, rows)).flatten(1, 2)
    return paid.sum(1, keepdim=True) if heads == "joined" else paid


def _finished(paid: Tensor, heads: Heads, skip: int = 0, pool: Pool | None = None) -> Tensor:
    paid = paid.mean(1, keepdim=True) if heads == "mean" else paid
    return pool(paid[..., skip:, None])[..., 0] if pool else paid[..., skip:]


@dataclass(frozen=True)
class Segments:
    """Sequences that lie packed behind one another in every call, each of which sees itself only (Pixtral)."""

    lengths: Sequence[int]
    order: Tensor  # [K] of each sequence on its own: puts the patches of a token behind one another


class Tap:
    """`with Tap({module: [reader, ...]}) as tap:` and, after the forward, `tap[module, reader]`.

    Modules are attention modules of transformers, timm and open_clip, or torch.nn.MultiheadAttention. Taps nest, also
    over the same modules, and are gone after the `with` whatever happens in it. Another thread's forward is not seen.
    Entering raises TypeError for a module that is no attention module, ValueError for one that calls no kernel.

    `segments` tells how calls are packed where a mask keeps the sequences apart; readers see each without that mask.
    """

    def __init__(self, readers: Mapping[nn.Module, Sequence[Reader]], segments: Segments | None = None) -> None:
        self.segments = segments
        self.readers = {module: tuple(dict.fromkeys(wanted)) for module, wanted in readers.items()}
        self._seen: dict[tuple[nn.Module, Reader], list[Tensor]] = {}

    def __getitem__(self, at: tuple[nn.Module, Reader]) -> list[Tensor]:
        """Return what a reader made of a module's calls, one tensor a call or packed segment, in their order."""
        if at in self._seen:
            return self._seen[at]
        raise LookupError(
            f"{type(at[0]).__name__} was not seen by {at[1]}: it was not asked for, was not run inside the `with`, or "
            "does not call its kernel through ALL_ATTENTION_FUNCTIONS or scaled_dot_product_attention"
        )

    def __enter__(self) -> "Tap":
        self._gates = listening(self.readers.keys(), self.see)
        self._gates.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._gates.__exit__(*exception)

    @torch.no_grad()
    def see(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, options: Mapping[str, Any]
    ) -> None:
        """Hand one kernel call to the readers of its module."""
        with torch.autocast(query.device.type, enabled=False):
            for call in calls_of(module, query, key, mask, options, self.segments):
                for reader in self.readers[module]:
                    self._seen.setdefault((module, reader), []).append(reader(call))


def calls_of(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    options: Mapping[str, Any],
    segments: Segments | None = None,
) -> Iterator[Call]:
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
        yield Call(query, key, mask, scaling, causal, options.get("sliding_window"))
        return
    for q, k in zip(query.split(lengths, 2), key.split(lengths, 2), strict=True):
        yield Call(q, k, None, scaling, causal, options.get("sliding_window"))
