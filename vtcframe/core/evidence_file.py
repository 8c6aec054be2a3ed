"""Needs as JSON, the form in which an evidence file stores them: module, class and fields of each need."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from vtcframe.core.need_bases import Need
from vtcframe.errors import UsageError


class UnknownNeedError(UsageError, LookupError):
    """Raised for a file that names a kind of need which no imported module defines."""


def describe_need(need: Need) -> dict[str, Any]:
    """Return a need as JSON: {"kind": class, "module": module, "fields": {name: value}}. Needs in fields are nested."""
    options = {field.name: getattr(need, field.name) for field in fields(need)}  # pyright: ignore[reportArgumentType]
    described = {name: describe_need(value) if isinstance(value, Need) else value for name, value in options.items()}
    return {"kind": type(need).__qualname__, "module": type(need).__module__, "fields": described}


def parse_need(described: dict[str, Any]) -> Need:
    """Return the need that `describe_need` described.

    UnknownNeedError for a kind whose module is not imported: a file never causes an import.
    """
    # files of earlier versions name the class alone, with the fields beside it
    options = described.get("fields", {name: value for name, value in described.items() if name != "kind"})
    kind = _kind(described["kind"], described.get("module"))
    return kind(**{name: _value(value) for name, value in options.items()})


def _value(value: Any) -> Any:
    if isinstance(value, dict) and "kind" in value:
        return parse_need(value)
    return tuple(map(_value, value)) if isinstance(value, list) else value


def _kind(name: str, module: str | None) -> type:
    """Find an imported kind by class and module. Without a module, search the kinds of vtcframe by class alone."""
    for kind in _kinds(Need):
        if kind.__qualname__ == name and (kind.__module__ == module or (module is None and _is_builtin(kind))):
            return kind
    place = module or "vtcframe's methods"
    raise UnknownNeedError(
        f"the evidence was gathered for {name} of {place}, which is not imported: import {module or 'that method'} "
        "before you load the file"
    )


def _kinds(base: type) -> Iterator[type]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


def _is_builtin(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "vtcframe"
