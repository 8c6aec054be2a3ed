"""What a component does wrong becomes one sentence: which component, whose it is, what is wrong, and the cure.

Of what it returns is looked at what costs no device sync.
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

# of the machine, and no component's fault; behind an AcceleratorError (torch >= 2.8) the device answers nobody any more
RESOURCE_ERRORS = (MemoryError, torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))


CASTS = {torch.float32: ".float()", torch.bool: ".bool()", torch.int64: ".long()"}


def provider(component: Any) -> str:
    """Return " of DISTRIBUTION VERSION"; nothing for what is ours or came through no entry point."""
    entry = entry_of(type(component))
    return f" of {entry.distribution} {entry.version}" if entry and entry.distribution != "vtcframe" else ""


def component_error(component: Any, says: str) -> ComponentError:
    """Return the error that a component, told with its kind and its origin, `says` what it does wrong."""
    return ComponentError(
        f"{kind_of(type(component)) or 'component'} {_describe_component(component)}{provider(component)} {says}"
    )


def call_component(component: Any, function: Callable[..., Any], *given: Any) -> Any:
    """Call a function of a component. ComponentError if it raises, unless memory ran out or the device broke."""
    try:
        return function(*given)
    except (ComponentError, UsageError, *RESOURCE_ERRORS):
        raise
    except SystemExit as error:  # of a signal's handler, unless it is the component that would leave
        if _lines(component, error)[-1:] != _lines(None, error)[-1:]:
            raise
        raise component_error(component, _describe_exception(component, function, error)) from error
    except Exception as error:  # a stranger's code raises whatever it likes
        refuses = _is_builtin(component) or kind_of(type(component)) == "transform"  # of a picture, as it may
        if refuses and isinstance(error, ValueError):
            raise ComponentError(str(error)) from error  # which says all there is to say
        raise component_error(component, _describe_exception(component, function, error)) from error


def _describe_exception(component: Any, function: Callable[..., Any], error: BaseException) -> str:
    trace = error.__traceback__
    if isinstance(error, TypeError) and trace is not None and trace.tb_next is None:  # it was not even entered
        return f"cannot be called as its kind is: {error}{_signature(component, function)}"
    told = " ".join(str(error).split())
    own = _lines(component, error)
    where = f" ({own[-1][0]}, line {own[-1][1]})" if own else ""
    return f"raised {type(error).__name__}{': ' if told else ''}{told}{where}"


def _lines(component: Any, error: BaseException) -> list[tuple[str, int]]:
    """Return module and line of each step to where something was raised, of the component's package; None: of all."""
    lines = [(frame.f_globals.get("__name__", ""), line) for frame, line in walk_tb(error.__traceback__)]
    package = None if component is None else _package(type(component).__module__)
    return [(name, line) for name, line in lines if package in (None, _package(name))]


def _package(module: str) -> str:
    return module.partition(".")[0]


def _signature(component: Any, function: Callable[..., Any]) -> str:
    """Say how the abstract class of its kind declares a method."""
    name = getattr(function, "__name__", "__call__")
    bases = [one for one in type(component).__mro__ if f"{one.__module__}:{one.__qualname__}" in KINDS.values()]
    return f": write def {name}({', '.join(inspect.signature(getattr(bases[0], name)).parameters)})" if bases else ""


def _is_builtin(component: Any) -> bool:
    return type(component).__module__.startswith("vtcframe.")


def _describe_component(component: Any) -> str:
    if type(component).__repr__ is object.__repr__:
        return type(component).__name__
    try:
        return repr(component)
    except Exception:  # that is a fault too, but not the one to be told
        return type(component).__name__


def check_tensor(
    component: Any, made: Any, name: str, shape: Sequence[int | None], dtype: torch.dtype | None, device: torch.device
) -> Tensor:
    """Return what a component made. ComponentError unless it is a tensor of that shape, type and device; None: any.

    `name` says what it is, with its axes: "scores [S, V, N]". Integers of any width will do for int64.
    """
    if not isinstance(made, Tensor):
        raise component_error(component, f"returned {describe_type(made)}, and no tensor of {name}")
    if made.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, made.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        cure = ": give one map as scores[None]" if list(made.shape) == list(shape[1:]) else ""
        raise component_error(component, f"returned {name} of shape {list(made.shape)}, and not [{wanted}]{cure}")
    whole = not (made.dtype == torch.bool or made.is_floating_point() or made.is_complex())
    if dtype not in (None, made.dtype) and not (whole and dtype == torch.int64):
        wanted, got = (str(kind).removeprefix("torch.") for kind in (dtype, made.dtype))
        raise component_error(component, f"returned {name} of type {got}, and not {wanted}: end with {CASTS[dtype]}")
    if made.device != device:
        raise component_error(
            component, f"returned {name} on {made.device}, and not on {device}: make new tensors there"
        )
    return made


def needs_of(component: Any) -> tuple[Need, ...]:
    """Return the `needs` of a component. ComponentError for what is no tuple of needs."""
    needs: Any = call_component(component, lambda: component.needs)
    if callable(needs):
        raise component_error(component, "has a method for its `needs`: write @property above it")
    if not isinstance(needs, tuple | list):
        raise component_error(
            component,
            f"has {describe_type(needs)} for its `needs`: return a tuple, a single one with a comma behind it",
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


def check_scores(component: Any, made: Any, layout: Layout, axes: str) -> Tensor:
    """Return the scores that a scorer or an ensembler made."""
    shape = (None, *layout.column.shape)[-axes.count(",") - 1 :]
    return check_tensor(component, made, f"scores {axes}", shape, torch.float32, layout.column.device)


def check_quotas(allocator: Any, made: Any, layout: Layout) -> Tensor:
    """Return the quotas [V], none below 0, cut to what views have."""
    quota = check_tensor(allocator, made, "quotas [V]", layout.count.shape, torch.int64, layout.count.device).long()
    if (quota < 0).any():
        raise component_error(allocator, f"returned quotas below 0: {quota.tolist()}")
    return quota.minimum(layout.count)


def check_slots(merger: Any, made: Any, quota: Tensor) -> Tensor:
    """Return the slots [V] that a merger wants of the quotas [V], no more than there are."""
    slots = check_tensor(merger, made, "slots [V]", quota.shape, torch.int64, quota.device).long()
    if ((slots < 0) | (slots > quota)).any():
        raise component_error(merger, f"wants {slots.tolist()} slots where the quotas are {quota.tolist()}")
    return slots


def check_mask(selector: Any, made: Any, layout: Layout) -> Tensor:
    """Return the mask of what a selector keeps."""
    return check_tensor(selector, made, "a mask [V, N]", layout.column.shape, torch.bool, layout.column.device)


def check_pruned(component: Any, made: Any, evidence: Evidence) -> Pruned:
    """Return what a pruner or merger left of evidence, whose rows it may have joined."""
    if not isinstance(made, Pruned):
        raise component_error(component, f"returned {describe_type(made)}, and not a Pruned")
    if not isinstance(made.layout, Layout):
        raise component_error(
            component, f"returned a Pruned whose layout is {describe_type(made.layout)}: give that of the evidence"
        )
    rows, device = made.layout.column.shape, evidence.tokens.device
    left = check_tensor(
        component, made.tokens, "tokens [V, M, D]", (rows[0], None, evidence.tokens.shape[2]), None, device
    )
    check_tensor(component, made.place, "places [V, M]", left.shape[:2], torch.int64, device)
    check_tensor(component, made.scores, "scores [V, N]", rows, torch.float32, device)
    return made


def describe_type(made: Any) -> str:
    """Say what an object is, where it is not what it should be."""
    if isinstance(made, type):
        return f"the class {made.__name__} itself"
    if made is None:
        return "None"
    name = type(made).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
