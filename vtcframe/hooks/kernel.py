"""Interception of attention: a listener receives query and key of an attention module before its kernel is called.

Modules of transformers look up their kernel by name in ALL_ATTENTION_FUNCTIONS: a wrapper replaces the entry of that
name. Modules that call `scaled_dot_product_attention` themselves (timm, open_clip's own, remote code) and torch's
MultiheadAttention (open_clip) use no registry: a wrapper replaces the module's forward. Wrappers pass on all arguments
unchanged, so the model computes what it would have computed.
"""

import inspect
import sys
import threading
from collections.abc import Callable, Collection, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# (module, query [B, H, Q, d], key [B, G, K, d], mask as KernelCall has it, {"scaling", "is_causal", ...})
Listener = Callable[[nn.Module, Tensor, Tensor, Tensor | None, dict[str, Any]], None]

_SWITCHES = ("fused_attn", "use_fsdpa")  # by which timm and open_clip choose the fused kernel


@contextmanager
def intercept_attention(modules: Collection[nn.Module], listener: Listener) -> Iterator[None]:
    """Call `listener` before every kernel call of `modules` in this thread.

    TypeError for a module that is no attention module, ValueError for one that computes its N x N matrix without a
    kernel.
    """
    places = {_place_of(module) for module in modules}
    with ExitStack() as stack:
        for place in places:
            _install(place)
            stack.callback(_uninstall, place)
        entry = frozenset(modules), listener
        _LISTENERS.set((*_LISTENERS.get(), entry))
        try:
            yield
        finally:  # no reset by token: it would also remove listeners that were added later and are still active
            _LISTENERS.set(tuple(other for other in _LISTENERS.get() if other is not entry))


def _exclude_from_graphs(notify: Callable[..., None]) -> Callable[..., None]:
    """Return a function that torch.compile calls and does not trace: it could not see the listeners of this context."""
    dynamo = sys.modules.get("torch._dynamo")  # imported if any model is compiled
    return notify if dynamo is None else dynamo.disable(notify)


def _notify(module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]) -> None:
    for modules, listener in _LISTENERS.get():
        if module in modules:
            listener(module, query, key, mask, options)


# Wrappers are shared by the process, listeners are not: wrappers are counted, listeners lie in a ContextVar.
Place = str | nn.Module  # the name of a kernel in transformers' registry, or the module whose forward it is
_LISTENERS: ContextVar[tuple[tuple[frozenset[nn.Module], Listener], ...]] = ContextVar("listeners", default=())
_INSTALLED: dict[Place, tuple[int, Any]] = {}  # place -> how many users it has, the original
_LOCK = threading.Lock()


def _place_of(module: nn.Module) -> Place:
    name = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if name is not None:
        return name
    kind = type(module).__name__
    if isinstance(module, nn.MultiheadAttention):
        if module.bias_k is not None or module.add_zero_attn:
            raise ValueError(f"{kind} adds keys that are no tokens: build it without add_bias_kv and add_zero_attn")
        return module
    if "scaled_dot_product_attention" not in inspect.unwrap(type(module).forward).__code__.co_names:
        raise TypeError(
            f"{kind} is no attention module: its config names no kernel of transformers, its forward does not call "
            "scaled_dot_product_attention, and it is no torch.nn.MultiheadAttention"
        )
    for switch in _SWITCHES:
        if not getattr(module, switch, True):
            raise ValueError(
                f"{kind} has {switch}=False and makes its whole attention matrix itself: set {switch}=True on it "
                "(for timm, timm.layers.set_fused_attn(True) before the model is made)"
            )
    return module


def _entry(place: Place) -> tuple[MutableMapping[str, Any], str]:
    if isinstance(place, str):
        return ALL_ATTENTION_FUNCTIONS._local_mapping, place
    return vars(place), "forward"


def _install(place: Place) -> None:
    with _LOCK:
        count, before = _INSTALLED.get(place, (0, None))
        if count == 0:
            table, name = _entry(place)
            before = table.get(name)
            table[name] = _intercepting_kernel(place) if isinstance(place, str) else _intercepting_forward(place)
        _INSTALLED[place] = count + 1, before


def _uninstall(place: Place) -> None:
    with _LOCK:
        count, before = _INSTALLED[place]
        if count > 1:
            _INSTALLED[place] = count - 1, before
            return
        del _INSTALLED[place]
        table, name = _entry(place)
        if before is None:
            del table[name]
        else:
            table[name] = before


def _intercepting_kernel(name: str) -> Callable[..., Any]:
    kernel = ALL_ATTENTION_FUNCTIONS.get(name)
    notify = _exclude_from_graphs(_notify)

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *args, **options
    ):  # Qwen's towers name the mask
        notify(module, query, key, attention_mask, options)
        return (kernel or _eager(module))(module, query, key, value, attention_mask, *args, **options)

    return attention


def _eager(module: nn.Module) -> Callable[..., Any]:
    """Find the eager kernel of a module: it is in no registry, each modeling file has its own."""
    for kind in inspect.getmro(type(module)):
        if kernel := getattr(sys.modules[kind.__module__], "eager_attention_forward", None):
            return kernel
    raise LookupError(
        f"{type(module).__module__} has no eager_attention_forward: {type(module).__name__} cannot be tapped"
    )


def _intercepting_forward(module: nn.Module) -> Callable[..., Any]:
    plain, show = module.forward, partial(_exclude_from_graphs(_notify), module)
    if isinstance(module, nn.MultiheadAttention):
        # Its kernel gets query and key in many ways, some inside C++, so they are projected once more here.
        def projecting(*args: Any, **options: Any) -> Any:
            show(*_multihead_call(module, *args, **options))
            return plain(*args, **options)

        return projecting

    def watching(*args: Any, **options: Any) -> Any:
        with _InterceptSdpa(show):  # not around the whole model: under such a mode other modules take other paths
            return plain(*args, **options)

    return watching


class _InterceptSdpa(TorchFunctionMode):
    def __init__(self, show: Callable[..., None]) -> None:
        super().__init__()
        self.show = show

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.show(*_sdpa_call(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


KernelArguments = tuple[Tensor, Tensor, Tensor | None, dict[str, Any]]


def _sdpa_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> KernelArguments:
    """Read the arguments of scaled_dot_product_attention. ValueError for shapes that a KernelCall does not have."""
    count, length = query.shape[-2], key.shape[-2]
    if query.ndim != 4 or (is_causal and count != length):
        raise ValueError(
            f"the kernel gets a query {list(query.shape)} and a key {list(key.shape)}: only [B, H, Q, d] can be read, "
            "and causality only where there are as many queries as keys"
        )
    if attn_mask is not None:
        attn_mask = attn_mask[(None,) * (4 - attn_mask.ndim)].expand(-1, -1, count, length)
    return query, key, attn_mask, {"scaling": scale, "is_causal": is_causal}


@torch.no_grad()
def _multihead_call(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> KernelArguments:
    """Project query and key as the module does. `is_causal` only hints at the contents of `attn_mask`."""
    if query.ndim == 2:
        query, key = query[None], key[None]
    elif not module.batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    if module.in_proj_weight is None:
        weights = module.q_proj_weight, module.k_proj_weight
    else:
        weights = module.in_proj_weight.chunk(3)[:2]
    biases = (None, None) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)[:2]
    query, key = (
        F.linear(x, weight, bias).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for x, weight, bias in zip((query, key), weights, biases, strict=True)
    )
    masks = []
    if attn_mask is not None:
        masks.append(attn_mask[None, None] if attn_mask.ndim == 2 else attn_mask.unflatten(0, (-1, module.num_heads)))
    if key_padding_mask is not None:
        masks.append(key_padding_mask.view(-1, 1, 1, key.shape[2]).expand(-1, -1, query.shape[2], -1))
    masks = [~mask if mask.dtype == torch.bool else mask for mask in masks]  # here True hides
    if len(masks) == 2:
        masks = [torch.logical_and(*masks) if masks[0].dtype == masks[1].dtype == torch.bool else _add_masks(*masks)]
    return query, key, masks[0] if masks else None, {"is_causal": False}


def _add_masks(*masks: Tensor) -> Tensor:
    added = [
        torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask
        for mask in masks
    ]
    return added[0] + added[1]
