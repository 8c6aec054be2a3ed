"""vtcframe.yaml: a compression as a small file, which may lie in the folder of a checkpoint.

It has `stages`, as `model.stages` of predict does, or `pruner` and `budget` where a method chooses its stages itself.
Such a file may come from a third party. Loading it therefore imports only classes that are registered, or defined in
the module of a registered class, unless the caller allows others.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader
from transformers.utils.hub import cached_file

from vtcframe.atomic import write_atomic
from vtcframe.config.parser import instantiate
from vtcframe.config.plan_writing import plan_content
from vtcframe.config.short_names import expand, is_import_path
from vtcframe.core.budget import Budget
from vtcframe.core.stages import Plan, Pruner, Stage, plan_for, plan_from_stages
from vtcframe.errors import UsageError
from vtcframe.registry import entries

FILE = "vtcframe.yaml"
HEADER = b"# Which visual tokens the language model reads: compress(model, stages=load_stages(...)) of vtcframe\n"
HINTS = {"stages": list[Stage], "pruner": Pruner, "budget": Budget}
KEYS = {"stages"}, {"pruner", "budget"}, {"pruner"}  # the keys of a file, beside `versions`
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
# Errors repeat the names of distributions and their versions from a file; nothing else of it that is not checked.
DISTRIBUTION = re.compile(r"[A-Za-z0-9][\w.-]*")
VERSION = re.compile(r"[\w.!+-]+")


def load_stages(path: str | Path, imports: Collection[str] = ()) -> tuple[Stage, ...]:
    """Load the stages that `Compressed.save_pretrained` wrote, for `compress(model, stages=...)`.

    `path` is a file, a folder with vtcframe.yaml in it, or the name of a repository on the Hugging Face Hub. `imports`
    are import paths of classes that are not registered and may be imported nevertheless. UsageError, naming the file,
    for what cannot be read, for unknown components, and for a file that would import anything else.
    """
    return load_plan(path, imports).stages


def load_plan(path: str | Path, imports: Collection[str] = ()) -> Plan:
    """Load a plan as `load_stages` does its stages, with the method that they belong to if the file names one."""
    file, content = _find(path), None
    try:
        content = get_loader("yaml")(file.read_text(encoding="utf-8"))
        return _parse_plan(content, [imports] if isinstance(imports, str) else imports)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"cannot read {file}: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, LookupError, ImportError) as error:
        raise UsageError(f"{file}: {error}{_describe_versions(content)}") from error


def save_plan(plan: Plan, folder: str | Path) -> Path:
    """Write vtcframe.yaml into a folder, which is created if it is missing, and return the file.

    ValueError for a plan that would not be the same when loaded: with components that no other program can import, or
    that are no dataclasses of plain values. UsageError if the file cannot be written.
    """
    content = plan_content(plan)
    try:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        loaded = _parse_plan(get_loader("yaml")(text), set(_import_paths(content)))
    except (yaml.YAMLError, UsageError) as error:
        raise ValueError(f"{plan} cannot be written as YAML: {error}") from error
    if loaded.stages != plan.stages:
        raise ValueError(f"{plan} cannot be written as YAML: it would be loaded as {loaded}")
    file = Path(folder) / FILE
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, [HEADER, text.encode()])
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror or error}") from error
    return file


def _find(path: str | Path) -> Path:
    """Return the file at a path, in a folder or on the Hugging Face Hub. UsageError if there is none."""
    local = Path(path)
    if local.is_dir():
        local = local / FILE
    if local.is_file():
        return local
    if not HUB_NAME.fullmatch(str(path)):
        raise UsageError(
            f"there is no file {local}: give a file that save_pretrained wrote, its folder or a name on the Hub"
        )
    try:
        return Path(str(cached_file(str(path), FILE)))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"there is no file {local}, and none on the Hub: {str(error).partition(chr(10))[0]}"
        ) from error


def _parse_plan(content: Any, imports: Collection[str]) -> Plan:
    """Make the plan of a file's content. UsageError for what cannot be made, and what components raise."""
    config = {key: value for key, value in content.items() if key != "versions"} if isinstance(content, Mapping) else {}
    if set(config) not in KEYS:
        keys = ", ".join(map(str, config)) or "no keys"
        raise UsageError(f"it has {keys}: give stages, or pruner and budget")
    for path in _import_paths(config):  # before names are expanded: that imports classes
        if path not in imports and not _is_importable(path):
            raise UsageError(
                f"{path} is not registered, and a file must not choose what is imported: install the distribution that "
                f"registers it, or allow it by imports=[{path!r}] if you trust it"
            )
    objects = instantiate(HINTS, expand(config, HINTS), prog=FILE)
    return (
        plan_from_stages(objects["stages"])
        if "stages" in objects
        else plan_for(objects["pruner"], objects.get("budget"))
    )


def _import_paths(node: Any) -> Iterator[str]:
    """Yield every string in a configuration, at any key, that might be imported."""
    if isinstance(node, Mapping):
        for value in node.values():
            yield from _import_paths(value)
    elif isinstance(node, list):
        for value in node:
            yield from _import_paths(value)
    elif isinstance(node, str):
        try:
            inner = get_loader("yaml")(node)  # jsonargparse parses strings again, so one may hold a component
        except yaml.YAMLError:
            inner = node
        if isinstance(inner, Mapping | list):
            raise UsageError(f"{node!r} is YAML in a string: write it without quotes")
        if isinstance(inner, str) and (IMPORT_PATH.fullmatch(inner.strip()) or is_import_path(inner.strip())):
            yield inner.strip()


def _is_importable(path: str) -> bool:
    """Return whether a class is registered, or defined in the module of a registered class."""
    module, package = path.rpartition(".")[0], path.partition(".")[0]
    near = [entry for entry in entries() if entry.import_path.partition(".")[0] == package]
    return any(entry.import_path == path for entry in near) or any(entry.load().__module__ == module for entry in near)


def _describe_versions(content: Any) -> str:
    """Return a line for each distribution that a file was written with and that has another version here, or none."""
    versions = content.get("versions") if isinstance(content, Mapping) else None
    lines = []
    for name, saved in (versions if isinstance(versions, Mapping) else {}).items():
        if not (DISTRIBUTION.fullmatch(str(name)) and VERSION.fullmatch(str(saved))):
            continue
        try:
            if (installed := version(name)) != saved:
                lines.append(f"\nIt was written with {name} {saved}, and {installed} is installed")
        except PackageNotFoundError:
            lines.append(
                f"\nIt was written with {name} {saved}, which is not installed: pip install {name}, if you trust it"
            )
    return "".join(lines)
