"""The tap: what chosen attention modules show, while the model keeps its own kernel.

transformers looks its kernel up by name in ALL_ATTENTION_FUNCTIONS at every call, with query and key after RoPE and
qk-norm. While a tap is open a gate stands over the names in use; it hands query and key to the taps and calls the
kernel. No implementation is switched, no N x N matrix made, and nothing is left behind.
"""

import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@dataclass(frozen=True)
class Call:
    """One call of an attention kernel, or one segment of a packed call."""

    query: Tensor  # [B, H, Q, d]
    key: Tensor  # [B, G, K, d]; G divides H (grouped queries)
    mask: Tensor | None  # [B or 1, 1 or H, Q, >= K] bool or additive, or [B, >= K] bool
    scaling: float
    causal: bool  # the kernel masks what comes after a query by itself
    window: int | None  # and what lies that many places or more before it

    def hidden(self, row: int) -> Tensor | None:
        """Additive mask [..., K] of one query row, float32; None if it sees every key."""
        count, length = self.query.shape[2], self.key.shape[2]
        if self.mask is not None and self.mask.ndim == 4:
            mask = self.mask[:, :, row, :length]
            return torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, _LOWEST) if _is_bool(mask) else mask
        seen = torch.ones(1, 1, length, dtype=torch.bool, device=self.key.device)
        own, at = length - count + row, torch.arange(length, device=self.key.device)
        if self.causal:
            seen = seen & (at <= own)
        if self.causal and self.window is not None:
            seen = seen & (at > own - self.window)
        if self.mask is not None:
            seen = seen & self.mask[:, None, -length:].bool()
        elif not self.causal:
            return None
        return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, _LOWEST)


_LOWEST = torch.finfo(torch.float32).min
Reader = Callable[[Call], Tensor]


def _is_bool(mask: Tensor) -> bool:
    return mask.dtype == torch.bool


@dataclass(frozen=True)
class Row:
    """[B, H, K] float32: attention of one query row, softmax over all keys, autocast off.

    `heads="mean"` averages the heads to [B, 1, K]; "joined" takes all heads as one of full width, scaled by its own
    width, also [B, 1, K]. `logits` leaves the softmax out.
    """

    index: int = 0
    logits: bool = False
    heads: Literal["split", "mean", "joined"] = "split"

    def __call__(self, call: Call) -> Tensor:
        row = self.index % call.query.shape[2]
        query = call.query[:, :, row].float()
        # Contiguous: keys are strided views over heads, and the product would copy them transposed, ten times as slow.
        key = call.key.to(torch.float32, memory_format=torch.contiguous_format).contiguous()
        groups, share = key.shape[1], query.shape[1] // key.shape[1]
        paid = (query.unflatten(1, (groups, share)) @ key.transpose(-1, -2)).flatten(1, 2)
        if self.heads == "joined":
            paid = paid.sum(1, keepdim=True) * (query.shape[1] * query.shape[2]) ** -0.5
        else:
            paid = paid * call.scaling
        if (hidden := call.hidden(row)) is not None:
            paid = paid + hidden.to(paid.device, torch.float32)
        paid = paid if self.logits else paid.softmax(-1)
        return paid.mean(1, keepdim=True) if self.heads == "mean" else paid


@dataclass(frozen=True)
class KeyStates:
    """[B, G, K, d]: the keys as the kernel gets them."""

    def __call__(self, call: Call) -> Tensor:
        return call.key


class Tap:
    """`with Tap({module: [reader, ...]}) as tap:` and, after the forward, `tap[module, reader]`.

    Taps nest, also over the same modules, and are gone after the `with` whatever happens in it. Another thread's
    forward is not seen.
    """

    def __init__(self, readers: Mapping[nn.Module, Sequence[Reader]]) -> None:
        self.readers = {module: tuple(dict.fromkeys(wanted)) for module, wanted in readers.items()}
        self._seen: dict[tuple[nn.Module, Reader], list[Tensor]] = {}

    def __getitem__(self, at: tuple[nn.Module, Reader]) -> list[Tensor]:
        """Return what a reader made of a module's calls, one tensor a call or packed segment, in their order."""
        if at in self._seen:
            return self._seen[at]
        raise LookupError(
            f"{type(at[0]).__name__} was not seen: it was not run inside the `with`, or it does not call its kernel "
            "through transformers' ALL_ATTENTION_FUNCTIONS"
        )

    def __enter__(self) -> "Tap":
        self._names = {_kernel(module) for module in self.readers}
        for name in self._names:
            _gate(name)
        self._token = _OPEN.set((*_OPEN.get(), self))
        return self

    def __exit__(self, *exception: object) -> None:
        _OPEN.reset(self._token)
        for name in self._names:
            _ungate(name)

    @torch.no_grad()
    def see(self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]) -> None:
        """Hand one kernel call to the readers of its module."""
        with torch.autocast(query.device.type, enabled=False):
            for call in _calls(module, query, key, mask, options):
                for reader in self.readers[module]:
                    self._seen.setdefault((module, reader), []).append(reader(call))


def _calls(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> Iterator[Call]:
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", False) if causal is None else causal
    bounds = options.get("cu_seq_lens_q")
    if bounds is None:
        yield Call(query, key, mask, scaling, causal, options.get("sliding_window"))
        return
    lengths = bounds.diff().tolist()  # several sequences packed behind one another, as FlashAttention takes them
    for q, k in zip(query.split(lengths, 2), key.split(lengths, 2), strict=True):
        yield Call(q, k, None, scaling, causal, options.get("sliding_window"))


def _kernel(module: nn.Module) -> str:
    name = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if name is None:
        raise TypeError(f"{type(module).__name__} is no attention module of transformers: its config names no kernel")
    return name


# What stands in the registry is shared by the process, who listens is not: gates are counted, taps lie in a ContextVar.
_OPEN: ContextVar[tuple[Tap, ...]] = ContextVar("open taps", default=())
_GATES: dict[str, tuple[int, Callable | None]] = {}  # kernel name -> open gates, what stood in the registry before
_LOCK = threading.Lock()


def _gate(name: str) -> None:
    with _LOCK:
        count, before = _GATES.get(name, (0, None))
        if count == 0:
            before = ALL_ATTENTION_FUNCTIONS._local_mapping.get(name)
            ALL_ATTENTION_FUNCTIONS[name] = _listening(ALL_ATTENTION_FUNCTIONS.get(name))
        _GATES[name] = count + 1, before


def _ungate(name: str) -> None:
    with _LOCK:
        count, before = _GATES[name]
        if count > 1:
            _GATES[name] = count - 1, before
            return
        del _GATES[name]
        if before is None:
            del ALL_ATTENTION_FUNCTIONS[name]
        else:
            ALL_ATTENTION_FUNCTIONS[name] = before


def _listening(kernel: Callable | None) -> Callable:
    def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *args, **options):
        for tap in _OPEN.get():
            if module in tap.readers:
                tap.see(module, query, key, mask, options)
        return (kernel or _eager(module))(module, query, key, value, mask, *args, **options)

    return attention


def _eager(module: nn.Module) -> Callable:
    """Find the eager kernel of a module: it is in no registry, each modeling file has its own."""
    for kind in inspect.getmro(type(module)):
        if found := getattr(sys.modules[kind.__module__], "eager_attention_forward", None):
            return found
    raise LookupError(
        f"{type(module).__module__} has no eager_attention_forward: {type(module).__name__} cannot be tapped"
    )
