"""Which keys of a configuration hold components: read from type hints.

A "hint" is a type hint of Python, a `Kind`, or a mapping of keys to hints. The value of a key is a component if its
hint is the base class of a registered kind, or a subclass of one.
"""

import inspect
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vtcframe.registry import entries, kind_of

Hints = tuple[Any, ...]  # the alternatives of a union


@dataclass(frozen=True)
class Kind:
    """A component of a registered kind: what its base class is as a hint, without the need to import that class."""

    name: str


def alternatives(hint: Any) -> Hints:
    """Return the members of a union or tuple of hints, without None and Any; for any other hint the hint itself."""
    if isinstance(hint, tuple) or get_origin(hint) in (Union, UnionType):
        members = hint if isinstance(hint, tuple) else get_args(hint)
        return tuple(member for part in members for member in alternatives(part))
    if type(hint).__name__ == "TypeAliasType":  # of Python 3.12: `type Parts = list[Scorer]`
        return alternatives(hint.__value__)
    return () if hint in (None, NoneType, Any) else (hint,)


def kinds_at(hints: Hints) -> tuple[str, ...]:
    """Return the kinds of the components that may stand there."""
    kinds = [_kind(hint) for hint in hints]
    return tuple(dict.fromkeys(kind for kind in kinds if kind is not None))


def _kind(hint: Any) -> str | None:
    if isinstance(hint, Kind):
        return hint.name
    return kind_of(hint) if isinstance(hint, type) and get_origin(hint) is None else None


def accepts_text(hints: Hints, text: str) -> bool:
    """Return whether a string may stand there that is not the name of a component."""
    return any(hint is str or (get_origin(hint) is Literal and text in get_args(hint)) for hint in hints)


def item_hints(hints: Hints) -> Hints:
    """Return the hints of the items of a list, tuple or other sequence."""
    items = []
    for hint in hints:
        origin = get_origin(hint)
        if isinstance(origin, type) and issubclass(origin, Iterable) and not issubclass(origin, Mapping):
            items += [argument for argument in get_args(hint) if argument is not ...]
    return alternatives(tuple(items))


def hints_at(hints: Hints, path: str) -> Hints:
    """Return the hints of the value at a path of keys, joined by dots: "stages.pruner" is the pruner of any stage."""
    for key in path.split("."):
        hints = key_hints(hints, key)
    return hints


def key_hints(hints: Hints, key: str) -> Hints:
    """Return the hints of the value at a key of a mapping, of a class's options, or of any item of a list."""
    return alternatives(tuple(part for hint in hints for part in _hints_of_key(hint, key)))


def _hints_of_key(hint: Any, key: str) -> Iterable[Any]:
    origin = get_origin(hint)
    if isinstance(hint, Mapping):
        return [hint[key]] if key in hint else []
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return get_args(hint)[1:]
    if items := item_hints((hint,)):
        return key_hints(items, key)
    if kind := _kind(hint):
        return [hint] if key == "init_args" else _hints_of_option(kind, key)
    return [options[key]] if isinstance(hint, type) and key in (options := option_hints(hint)) else []


def _hints_of_option(kind: str, option: str) -> Iterable[Any]:
    """Yield the hints that registered components of a kind have for an option: which of them it is, is not known."""
    for entry in entries():
        if entry.kind == kind:
            with suppress(ImportError, TypeError):  # reported where the component itself is named
                options = option_hints(entry.load())
                if option in options:
                    yield options[option]


@cache
def option_hints(component: type) -> Mapping[str, Any]:
    """Return option -> hint of a class: of its fields if it is a dataclass, and of the parameters of its `__init__`."""
    if component.__module__ == "builtins":
        return {}
    options: dict[str, Any] = {}
    for base in component.__mro__:
        if "__init__" in vars(base):
            options = {**_resolve(vars(base)["__init__"]), **options}
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                break  # otherwise it passes options on to the class that it extends
    return {**_resolve(component), **options} if is_dataclass(component) else options


def _resolve(annotated: Any) -> dict[str, Any]:
    """Return name -> hint of a class or function, without hints whose names its module does not have when it runs."""
    with suppress(Exception):
        return get_type_hints(annotated)
    hints: dict[str, Any] = {}
    for part in reversed(annotated.__mro__) if isinstance(annotated, type) else (annotated,):
        for name, annotation in inspect.get_annotations(part).items():
            namespace = {"__annotations__": {name: annotation}, "__module__": part.__module__}
            with suppress(Exception):  # a name that is imported for type checkers only, for example
                hints |= get_type_hints(type("Single", (), namespace))
    return hints
