"""Command-line arguments and configuration files with short names, each read once, as jsonargparse takes them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from vtcframe.config.short_names import expand
from vtcframe.config.type_hints import alternatives, hints_at, item_hints
from vtcframe.errors import UsageError

CONFIG_OPTIONS = "--config", "-c"


class _Dumper(yaml.SafeDumper):
    """Quotes every string, because the loader of jsonargparse takes more words for numbers than this dumper knows."""


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def read_config(path: str, hint: Any) -> dict[str, Any]:
    """Read a YAML file and expand the short names in it.

    UsageError, naming the file, for what cannot be read and for components that cannot be used.
    """
    try:
        content = get_loader("yaml")(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the configuration {path}: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict | None):
        raise UsageError(f"{path} holds a {type(content).__name__}, and not the keys of a configuration")
    try:
        return expand(content or {}, hint)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def expand_arguments(arguments: Sequence[str], hint: Any) -> list[str]:
    """Return arguments with every configuration file replaced by its content, and short names expanded everywhere.

    `hint` is the mapping of sections to what they configure. UsageError, naming file or option, for components that
    cannot be used.
    """
    expanded = []
    for option, value in _options(arguments):
        if value is None:
            expanded.append(option)
        elif option in CONFIG_OPTIONS:
            expanded.append(f"{option}={_dump(read_config(value, hint))}")
        else:
            expanded += _expand_option(option, value, hint)
    return expanded


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield options with their values, None for a flag, whether they were joined by "=" or not."""
    rest = list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not equals and rest and not rest[0].startswith("-"):
            equals, value = "=", rest.pop(0)
        yield option, value if equals else None


def _expand_option(option: str, text: str, hint: Any) -> list[str]:
    try:
        value = get_loader("yaml")(text)
    except yaml.YAMLError:
        return [f"{option}={text}"]  # what is no YAML is used as it stands
    expanded = expand_value(option.removeprefix("--"), value, hint)
    argument = f"{option}={text if expanded == value else _dump(expanded)}"
    if isinstance(value, list) and not option.endswith("+"):
        return [f"{option}=[]", argument]  # jsonargparse merges a list into an earlier one of its length
    return [argument]


def expand_value(key: str, value: Any, hint: Any) -> Any:
    """Expand the short names in the value of a key, or of a path of keys. "pruners+" appends to the list `pruners`."""
    path = key.removesuffix("+")
    hints = hints_at(alternatives(hint), path)
    return expand(value, item_hints(hints) + hints if path != key else hints, path)


def _dump(node: Any) -> str:
    return yaml.dump(
        node, Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9
    ).strip()
