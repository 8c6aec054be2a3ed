"""Calls of components, and checks of what they return.

A violation becomes one ComponentError sentence: the component, its distribution, the fault and the cure. Returned
values are checked only as far as that needs no device synchronisation.
"""

import inspect
from collections.abc import Callable, Sequence
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor

from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.core.need_bases import Need
from vtcframe.core.pruned import Pruned
from vtcframe.errors import ComponentError, UsageError
from vtcframe.registry import KINDS, entry_of, kind_of

# Errors of the machine, for which no component is blamed. After an AcceleratorError (torch >= 2.8) the device no longer
# answers at all.
RESOURCE_ERRORS = (MemoryError, torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))


CASTS = {torch.float32: ".float()", torch.bool: ".bool()", torch.int64: ".long()"}


def provider(component: Any) -> str:
    """Return " of DISTRIBUTION VERSION", or "" for components of vtcframe and those without an entry point."""
    entry = entry_of(type(component))
    return f" of {entry.distribution} {entry.version}" if entry and entry.distribution != "vtcframe" else ""


def component_error(component: Any, fault: str) -> ComponentError:
    """Return an error that names a component, its kind and its distribution, followed by the fault."""
    return ComponentError(
        f"{kind_of(type(component)) or 'component'} {_describe_component(component)}{provider(component)} {fault}"
    )


def call_component(component: Any, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of a component. ComponentError if it raises, unless memory ran out or the device failed."""
    try:
        return function(*args)
    except (ComponentError, UsageError, *RESOURCE_ERRORS):
        raise
    except SystemExit as error:  # let it pass if a signal handler raised it and not the component
        if _traceback_lines(component, error)[-1:] != _traceback_lines(None, error)[-1:]:
            raise
        raise component_error(component, _describe_exception(component, function, error)) from error
    except Exception as error:  # third-party code may raise anything
        # a ValueError of a built-in component, or of a transform that rejects a picture, needs no further explanation
        is_refusal = _is_builtin(component) or kind_of(type(component)) == "transform"
        if is_refusal and isinstance(error, ValueError):
            raise ComponentError(str(error)) from error
        raise component_error(component, _describe_exception(component, function, error)) from error


def _describe_exception(component: Any, function: Callable[..., Any], error: BaseException) -> str:
    trace = error.__traceback__
    if isinstance(error, TypeError) and trace is not None and trace.tb_next is None:  # the call itself failed
        return f"has a wrong signature: {error}{_signature(component, function)}"
    message = " ".join(str(error).split())
    lines = _traceback_lines(component, error)
    place = f" ({lines[-1][0]}, line {lines[-1][1]})" if lines else ""
    return f"raised {type(error).__name__}{': ' if message else ''}{message}{place}"


def _traceback_lines(component: Any, error: BaseException) -> list[tuple[str, int]]:
    """Return module and line of each traceback step in the component's package, or of every step for None."""
    lines = [(frame.f_globals.get("__name__", ""), line) for frame, line in walk_tb(error.__traceback__)]
    package = None if component is None else _package(type(component).__module__)
    return [(name, line) for name, line in lines if package in (None, _package(name))]


def _package(module: str) -> str:
    return module.partition(".")[0]


def _signature(component: Any, function: Callable[..., Any]) -> str:
    """Return the signature that the abstract class of the component's kind declares for a method."""
    name = getattr(function, "__name__", "__call__")
    bases = [base for base in type(component).__mro__ if f"{base.__module__}:{base.__qualname__}" in KINDS.values()]
    return f": write def {name}({', '.join(inspect.signature(getattr(bases[0], name)).parameters)})" if bases else ""


def _is_builtin(component: Any) -> bool:
    return type(component).__module__.startswith("vtcframe.")


def _describe_component(component: Any) -> str:
    if type(component).__repr__ is object.__repr__:
        return type(component).__name__
    try:
        return repr(component)
    except Exception:  # a failing __repr__ must not hide the error that is being reported
        return type(component).__name__


def check_tensor(
    component: Any, value: Any, name: str, shape: Sequence[int | None], dtype: torch.dtype | None, device: torch.device
) -> Tensor:
    """Return what a component returned. ComponentError unless it is a tensor of that shape, dtype and device.

    None for a size or for `dtype` allows any. `name` describes the tensor with its axes: "scores [S, V, N]". Integers
    of any width are accepted for int64.
    """
    if not isinstance(value, Tensor):
        raise component_error(component, f"returned {describe_type(value)}, and no tensor of {name}")
    fits = all(size in (None, actual) for size, actual in zip(shape, value.shape, strict=False))
    if value.ndim != len(shape) or not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        cure = ": give one map as scores[None]" if list(value.shape) == list(shape[1:]) else ""
        raise component_error(component, f"returned {name} of shape {list(value.shape)}, and not [{sizes}]{cure}")
    is_integer = not (value.dtype == torch.bool or value.is_floating_point() or value.is_complex())
    if dtype not in (None, value.dtype) and not (is_integer and dtype == torch.int64):
        expected, actual = (str(kind).removeprefix("torch.") for kind in (dtype, value.dtype))
        raise component_error(
            component, f"returned {name} of type {actual}, and not {expected}: end with {CASTS[dtype]}"
        )
    if value.device != device:
        raise component_error(
            component, f"returned {name} on {value.device}, and not on {device}: make new tensors there"
        )
    return value


def needs_of(component: Any) -> tuple[Need, ...]:
    """Return the `needs` of a component. ComponentError if they are no tuple or list of hashable needs."""
    needs: Any = call_component(component, lambda: component.needs)
    if callable(needs):
        raise component_error(component, "has a method for its `needs`: write @property above it")
    if not isinstance(needs, tuple | list):
        raise component_error(
            component,
            f"has {describe_type(needs)} for its `needs`: return a tuple, with a comma after a single need",
        )
    for need in needs:
        if not isinstance(need, Need):
            raise component_error(
                component,
                f"has {need!r} among its `needs`: use the kinds of vtcframe.core.needs, such as AttentionRows, or a "
                "kind of your own that extends vtcframe.AttentionNeed or vtcframe.HiddenNeed",
            )
        try:
            hash(need)
        except TypeError as error:
            raise component_error(
                component,
                f"has a need that cannot be hashed, {need!r}: write @dataclass(frozen=True) above "
                f"{type(need).__name__}, and give its fields tuples in place of lists",
            ) from error
    return tuple(needs)


def check_scores(component: Any, scores: Any, layout: Layout, axes: str) -> Tensor:
    """Return the scores of a scorer, axes "[S, V, N]", or of an ensembler, axes "[V, N]"."""
    shape = (None, *layout.column.shape)[-axes.count(",") - 1 :]
    return check_tensor(component, scores, f"scores {axes}", shape, torch.float32, layout.column.device)


def check_quotas(allocator: Any, quotas: Any, layout: Layout) -> Tensor:
    """Return the quotas [V] of an allocator, limited to the number of tokens of each view. None may be negative."""
    quotas = check_tensor(allocator, quotas, "quotas [V]", layout.count.shape, torch.int64, layout.count.device).long()
    if (quotas < 0).any():
        raise component_error(allocator, f"returned quotas below 0: {quotas.tolist()}")
    return quotas.minimum(layout.count)


def check_slots(merger: Any, slots: Any, quota: Tensor) -> Tensor:
    """Return the slots [V] that a merger takes from the quotas [V]; each lies between 0 and the quota."""
    slots = check_tensor(merger, slots, "slots [V]", quota.shape, torch.int64, quota.device).long()
    if ((slots < 0) | (slots > quota)).any():
        raise component_error(merger, f"wants {slots.tolist()} slots where the quotas are {quota.tolist()}")
    return slots


def check_mask(selector: Any, mask: Any, layout: Layout) -> Tensor:
    """Return the mask [V, N] of the tokens that a selector keeps."""
    return check_tensor(selector, mask, "a mask [V, N]", layout.column.shape, torch.bool, layout.column.device)


def check_pruned(component: Any, pruned: Any, evidence: Evidence) -> Pruned:
    """Return the result of a pruner or merger for `evidence`; its rows may be views or joined samples."""
    if not isinstance(pruned, Pruned):
        raise component_error(component, f"returned {describe_type(pruned)}, and not a Pruned")
    if not isinstance(pruned.layout, Layout):
        raise component_error(
            component, f"returned a Pruned whose layout is {describe_type(pruned.layout)}: give that of the evidence"
        )
    rows = pruned.layout.column.shape
    device = evidence.tokens.device
    tokens = check_tensor(
        component, pruned.tokens, "tokens [V, M, D]", (rows[0], None, evidence.tokens.shape[2]), None, device
    )
    check_tensor(component, pruned.place, "places [V, M]", tokens.shape[:2], torch.int64, device)
    check_tensor(component, pruned.scores, "scores [V, N]", rows, torch.float32, device)
    return pruned


def describe_type(value: Any) -> str:
    """Return the type of an unexpected value for an error message: "None", "a list", "the class TopK itself"."""
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
