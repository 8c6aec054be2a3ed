"""Short names of components in YAML: `VtcCls` and `{name: VtcCls, last: 3}` for a class and its options.

Which keys hold components is read from the type hints of what is configured (see vtcframe.config.type_hints).
"""

import importlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import yaml
from jsonargparse import get_loader

from vtcframe.config.type_hints import (
    Hints,
    accepts_text,
    alternatives,
    hints_at,
    item_hints,
    key_hints,
    kinds_at,
    option_hints,
)
from vtcframe.errors import UsageError
from vtcframe.registry import entries, find_entry

CLASS, OPTIONS = "class_path", "init_args"  # what jsonargparse calls a class and its options


def expand(node: Any, hint: Any, key: str = "") -> Any:
    """Write the components of a configuration out as `class_path` and `init_args`, and import their classes.

    `hint` is the type hint of `node`, a Kind, or a mapping of keys to hints; `key` is the key of `node`, for errors. A
    name with a dot is the import path of a class that is not registered. UsageError, naming the key, for a name that no
    component has and for a component that cannot be used.
    """
    return _expand(node, alternatives(hint), key)


def expand_text(text: str, hint: Any, key: str = "") -> Any:
    """Parse YAML, or a bare name, and `expand` it."""
    try:
        node = get_loader("yaml")(text)
    except yaml.YAMLError:
        node = text  # what is no YAML is used as it stands
    return expand(node, hint, key)


def _expand(node: Any, hints: Hints, key: str) -> Any:
    if isinstance(node, list | tuple):
        return [_expand(item, item_hints(hints), key) for item in node]
    if isinstance(node, str):
        return _expand_name(node, hints, key)
    if not isinstance(node, dict):
        return node
    kinds = kinds_at(hints)
    if kinds and "name" in node:
        options = {name: value for name, value in node.items() if name != "name"}
        path = _class_path(str(node["name"]), kinds, key)
        return {CLASS: path, OPTIONS: _expand(options, (_options_of(path, key),), key)}
    if isinstance(path := node.get(CLASS), str):
        options = (_options_of(path, key),)
        return {name: _expand(value, options, key) if name == OPTIONS else value for name, value in node.items()}
    return {
        name: _expand(value, _value_hints(hints, name), f"{key}.{name}".lstrip(".")) for name, value in node.items()
    }


def _value_hints(hints: Hints, key: Any) -> Hints:
    """Return the hints of the value at a key in YAML, which jsonargparse lets be a path: "data.benchmark: Pope"."""
    return key_hints(hints, str(key)) or hints_at(hints, str(key))


def _expand_name(name: str, hints: Hints, key: str) -> Any:
    kinds = kinds_at(hints)
    if not kinds:
        return name
    try:
        path = _class_path(name, kinds, key)
    except UsageError:
        if accepts_text(hints, name):
            return name
        raise
    if "." in name and accepts_text(hints, name):
        return name
    _options_of(path, key)
    return {CLASS: path}


def _class_path(name: str, kinds: tuple[str, ...], key: str) -> str:
    """Return the import path of a component: of a registered one by its name."""
    if "." in name:
        return name
    errors = []
    for kind in kinds:
        try:
            return find_entry(kind, name).import_path
        except LookupError as error:
            errors.append(error)
    raise UsageError(_at(key, errors[0])) from errors[0]


def _options_of(path: str, key: str) -> Mapping[str, Any]:
    """Import a class and return its options with their hints; none for a path that jsonargparse will refuse."""
    try:
        component = _registered(path)
    except (ImportError, TypeError) as error:
        raise UsageError(_at(key, error)) from error
    if component is None and is_import_path(path):
        module, _, name = path.rpartition(".")
        with suppress(Exception):  # jsonargparse imports it again, and reports the error with its key
            component = getattr(importlib.import_module(module), name)
    return option_hints(component) if isinstance(component, type) else {}


def is_import_path(text: str) -> bool:
    """Return whether a string can be the import path of a class: identifiers, joined by dots."""
    return "." in text and all(part.isidentifier() for part in text.split("."))


def _registered(path: str) -> type | None:
    """Load the registered component with an import path. ImportError or TypeError as `Entry.load` raises them."""
    return next((entry.load() for entry in entries() if entry.import_path == path), None)


def _at(key: str, error: Exception) -> str:
    return f"{key}: {error}" if key else str(error)


def shorten(node: Any, hint: Any) -> Any:
    """Write registered components by their short names: the reverse of `expand`."""
    return _shorten(node, alternatives(hint))


def _shorten(node: Any, hints: Hints) -> Any:
    if isinstance(node, list | tuple):
        return [_shorten(item, item_hints(hints)) for item in node]
    if not isinstance(node, dict):
        return node
    if not isinstance(path := node.get(CLASS), str):
        return {name: _shorten(value, _value_hints(hints, name)) for name, value in node.items()}
    options = _shorten(node.get(OPTIONS) or {}, (_options_of(path, ""),))
    names = {entry.import_path: entry.name for entry in entries() if entry.kind in kinds_at(hints)}
    if path not in names or "name" in options or not node.keys() <= {CLASS, OPTIONS}:
        return {name: options if name == OPTIONS else value for name, value in node.items()}
    return {"name": names[path], **options} if options else names[path]
