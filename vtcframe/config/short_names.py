"""What a configuration says: short names of components, bundled files, and errors its writer can mend.

Nothing here imports torch, so that a typo is answered at once.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from vtcframe.errors import UsageError
from vtcframe.registry import entries, load, named

COMPONENT_KEYS = {  # key in the YAML -> kind in the registry
    "pruner": "pruner",
    "pruners": "pruner",
    "scorer": "scorer",
    "scorers": "scorer",
    "ensembler": "ensembler",
    "allocator": "allocator",
    "selector": "selector",
    "merger": "merger",
    "rest": "selector",
    "transforms": "transform",
    "benchmark": "benchmark",
}


def read(path: str) -> Any:
    """Read a YAML file and expand its short names. UsageError, naming the file, for what cannot be read or found."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the configuration {path}: {error}") from error
    try:
        return parse(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def parse(text: str) -> Any:
    """Parse YAML and expand its short names."""
    return expand(get_loader("yaml")(text))


def expand(node: Any, key: str = "") -> Any:
    """Write components below `key` out as class_path and init_args.

    `VtcCls` and `{name: VtcCls, last: 3}` are short for that wherever a component stands. A name with a dot is the
    import path of a class that is not registered. UsageError with the key for names that nothing has.
    """
    kind = COMPONENT_KEYS.get(key.rpartition(".")[2])
    if isinstance(node, list):
        return [expand(item, key) for item in node]
    if isinstance(node, dict):
        node = {k: expand(value, f"{key}.{k}" if key else str(k)) for k, value in node.items()}
        if kind is None or "name" not in node:
            return node
        return {"class_path": _class_path(kind, str(node.pop("name")), key), "init_args": node}
    if kind is not None and isinstance(node, str):
        return {"class_path": _class_path(kind, node, key)}
    return node


def shorten(node: Any, key: str = "") -> Any:
    """Write registered components below `key` by their short names: the reverse of `expand`."""
    if isinstance(node, list):
        return [shorten(item, key) for item in node]
    if not isinstance(node, dict):
        return node
    node = {k: shorten(value, str(k)) for k, value in node.items()}
    if key not in COMPONENT_KEYS:
        return node
    names = {entry.target.replace(":", "."): entry.name for entry in entries()}
    if (name := names.get(str(node.get("class_path")))) is None:
        return node
    return {"name": name, **node["init_args"]} if node.get("init_args") else name


def _class_path(kind: str, name: str, key: str) -> str:
    if "." in name:
        return name
    try:
        return named(kind, name).target.replace(":", ".")
    except LookupError as error:
        raise UsageError(f"{key}: {error}") from error


def resolve(arguments: Sequence[str]) -> list[str]:
    """Expand short names in command-line options and look through every configuration file they give."""
    resolved = []
    for option, value in _options(arguments):
        if value is None:
            resolved.append(option)
            continue
        if option in ("-c", "--config"):
            read(value)
        else:
            value, is_list = _expanded(option.removeprefix("--"), value)
            if is_list:  # jsonargparse merges it into an earlier one of its length, but not into an empty one
                resolved.append(f"{option}=[]")
        resolved.append(f"{option}={value}")
    return resolved


def load_components(arguments: Sequence[str]) -> None:
    """Import what resolved arguments and their files name. UsageError for a component that cannot be used."""
    try:
        for option, value in _options(arguments):
            if value is not None:
                load(read(value) if option in ("-c", "--config") else _yaml(value))
    except (ImportError, TypeError) as error:
        raise UsageError(str(error)) from error


def _yaml(text: str) -> Any:
    try:
        return get_loader("yaml")(text)
    except yaml.YAMLError:
        return text


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield options with their values, None for a flag, whether they were joined by "=" or not."""
    rest = list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not equals and rest and not rest[0].startswith("-"):
            equals, value = "=", rest.pop(0)
        yield option, value if equals else None


def _expanded(key: str, text: str) -> tuple[str, bool]:
    """Return the value of an option with its short names expanded, and whether it is a list."""
    try:
        given = get_loader("yaml")(text)
    except yaml.YAMLError:
        return text, False  # no YAML: it is meant as it stands
    expanded = expand(given, key)
    return text if expanded == given else json.dumps(expanded), isinstance(given, list)
