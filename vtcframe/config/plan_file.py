"""vtcframe.yaml: a compression as a small file, which may lie in a checkpoint's folder.

It says `stages` as `model.stages` of predict does, or `pruner` and `budget` where a method acts at stages of its own.
It may be a stranger's, so reading it imports nothing but what is registered or defined beside that, unless its reader
allows more.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader
from transformers.utils.hub import cached_file

from vtcframe.atomic import write_atomic
from vtcframe.config.short_names import COMPONENT_KEYS, expand
from vtcframe.core.budget import Budget
from vtcframe.core.stages import Plan, Pruner, Stage, plan_for, planned
from vtcframe.core.verbs import Component
from vtcframe.errors import UsageError
from vtcframe.registry import Entry, entries

FILE = "vtcframe.yaml"
HEADER = b"# Which visual tokens the language model reads: compress(model, stages=load_stages(...)) of vtcframe\n"
KEYS = {"stages"}, {"pruner", "budget"}, {"pruner"}  # what a file says, beside `versions`
HUB = re.compile(r"[\w.-]+/[\w.-]+")
IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
# What a file calls a distribution or a version is repeated in errors: nothing else is.
DISTRIBUTION, VERSION = re.compile(r"[A-Za-z0-9][\w.-]*"), re.compile(r"[\w.!+-]+")


def load_stages(path: str | Path, imports: Collection[str] = ()) -> tuple[Stage, ...]:
    """Read the stages that `Compressed.save_pretrained` wrote, for `compress(model, stages=...)`.

    `path` is a file, a folder with vtcframe.yaml in it, or the name of a repository on the Hugging Face Hub. `imports`
    are import paths of classes that are not registered and may be imported all the same. UsageError, naming the file,
    for what cannot be read, is not known here, or would import anything else.
    """
    return load_plan(path, imports).stages


def load_plan(path: str | Path, imports: Collection[str] = ()) -> Plan:
    """Read what `load_stages` does, with the method that the stages are of where the file names one."""
    file, told = _found(path), None
    try:
        told = get_loader("yaml")(file.read_text(encoding="utf-8"))
        return _plan(told, [imports] if isinstance(imports, str) else imports)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"cannot read {file}: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, LookupError, ImportError) as error:
        raise UsageError(f"{file}: {error}{_otherwise(told)}") from error


def save_plan(plan: Plan, folder: str | Path) -> Path:
    """Write vtcframe.yaml into a folder, made if it is not there, and return the file.

    ValueError for what would not read back the same: components that no other program can import, or that are no
    dataclasses of plain values. UsageError where it cannot be written.
    """
    if plan.method is None or plan.stages == (Stage("projector", plan.method, plan.nominal),):
        told: dict[str, Any] = {"stages": [_plain(stage) for stage in plan.stages]}
    else:
        told = {"pruner": _plain(plan.method, "pruner")} | ({"budget": _plain(plan.nominal)} if plan.nominal else {})
    told["versions"] = _versions(plan.method or plan.stages)
    try:
        text = yaml.safe_dump(told, sort_keys=False, allow_unicode=True)
        read = _plan(get_loader("yaml")(text), set(_import_paths(told)))
    except (yaml.YAMLError, UsageError) as error:
        raise ValueError(f"{plan} cannot be written as YAML: {error}") from error
    if read.stages != plan.stages:
        raise ValueError(f"{plan} cannot be written as YAML: read back it is {read}")
    file = Path(folder) / FILE
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, [HEADER, text.encode()])
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror or error}") from error
    return file


# Reading


def _found(path: str | Path) -> Path:
    local = Path(path)
    if local.is_dir():
        local = local / FILE
    if local.is_file():
        return local
    if not HUB.fullmatch(str(path)):
        raise UsageError(
            f"there is no file {local}: give one that save_pretrained wrote, its folder or a name on the Hub"
        )
    try:
        return Path(str(cached_file(str(path), FILE)))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"there is no file {local}, and none on the Hub: {str(error).partition(chr(10))[0]}"
        ) from error


def _plan(told: Any, imports: Collection[str]) -> Plan:
    """Make the plan that a file's content says. UsageError, or what components raise, for what cannot be made."""
    said = {key: value for key, value in told.items() if key != "versions"} if isinstance(told, Mapping) else {}
    if set(said) not in KEYS:
        raise UsageError(f"it says {', '.join(map(str, said)) or 'nothing'}: give stages, or pruner and budget")
    said = expand(said)
    for path in _import_paths(said):
        if path not in imports and not _known(path):
            raise UsageError(
                f"{path} is not registered, and it is not for a file to say what is imported: install what registers "
                f"it, or allow it by imports=[{path!r}] if you trust it"
            )
    from vtcframe.config.parser import MODE, Parser  # lazily: it imports Lightning

    parser = Parser(parser_mode=MODE, prog=FILE)
    for key, kind in {"stages": list[Stage], "pruner": Pruner, "budget": Budget}.items():
        if key in said:
            parser.add_argument(f"--{key}", type=kind)
    make = getattr(parser, "instantiate", parser.instantiate_classes)  # the older name until jsonargparse 4.49
    made = make(parser.parse_object(said))
    return planned(made["stages"]) if "stages" in said else plan_for(made["pruner"], made.get("budget"))


def _import_paths(node: Any) -> Iterator[str]:
    """Yield every string of a configuration that jsonargparse might import, wherever it stands."""
    if isinstance(node, Mapping):
        for value in node.values():
            yield from _import_paths(value)
    elif isinstance(node, list):
        for value in node:
            yield from _import_paths(value)
    elif isinstance(node, str):
        try:
            inner = get_loader("yaml")(node)  # as jsonargparse does with strings: there may be a component in them
        except yaml.YAMLError:
            inner = node
        if isinstance(inner, Mapping | list):
            raise UsageError(f"{node!r} is YAML inside YAML: write it out")
        if isinstance(inner, str) and IMPORT_PATH.fullmatch(inner.strip()):
            yield inner.strip()


def _known(path: str) -> bool:
    """Tell whether a class is registered, or defined in the module of a class that is."""
    module, package = path.rpartition(".")[0], path.partition(".")[0]
    near = [entry for entry in entries() if _target(entry).partition(".")[0] == package]
    return any(_target(entry) == path for entry in near) or any(entry.load().__module__ == module for entry in near)


def _otherwise(told: Any) -> str:
    """Say which distributions a file was written with that are others here, or are not here."""
    said = told.get("versions") if isinstance(told, Mapping) else None
    lines = []
    for name, there in (said if isinstance(said, Mapping) else {}).items():
        if not (DISTRIBUTION.fullmatch(str(name)) and VERSION.fullmatch(str(there))):
            continue
        try:
            if (here := version(name)) != there:
                lines.append(f"\nIt was written with {name} {there}, and {here} is installed")
        except PackageNotFoundError:
            lines.append(
                f"\nIt was written with {name} {there}, which is not installed: pip install {name}, if you trust it"
            )
    return "".join(lines)


# Writing


def _plain(value: Any, key: str = "") -> Any:
    """Write components out as `expand` takes them, with all their options but those that are None by default."""
    if isinstance(value, list | tuple):
        return [_plain(item, key) for item in value]
    if not is_dataclass(value):
        if isinstance(value, Component):
            raise ValueError(f"{type(value).__name__} is no dataclass, so that its options are not known: make it one")
        return value
    options = {
        field.name: _plain(getattr(value, field.name), field.name)
        for field in fields(value)
        if field.init and not (getattr(value, field.name) is None and field.default is None)
    }
    if not isinstance(value, Component):
        return options
    entry = _entry(type(value))
    if key not in COMPONENT_KEYS or "name" in options:
        return {"class_path": _target(entry) if entry else _path(type(value)), "init_args": options}
    name = entry.name if entry else _path(type(value))
    return {"name": name, **options} if options else name


def _entry(component: type) -> Entry | None:
    """Return what a class is registered as, None where it is not."""
    near = (entry for entry in entries() if entry.name == component.__name__)
    return next((entry for entry in near if entry.load() is component), None)


def _target(entry: Entry) -> str:
    return entry.target.replace(":", ".")


def _path(component: type) -> str:
    if component.__module__ == "__main__" or "." in component.__qualname__:
        raise ValueError(
            f"{component.__qualname__} of {component.__module__} cannot be imported by another program: "
            "define it at the top of a module"
        )
    return f"{component.__module__}.{component.__name__}"


def _versions(value: Any) -> dict[str, str]:
    """Return the versions of the distributions that a plan's components come from, ours first."""
    found = {"vtcframe": version("vtcframe")}
    for component in _components(value):
        if entry := _entry(component):
            found[entry.distribution] = entry.version
        else:
            for name in packages_distributions().get(component.__module__.partition(".")[0], [])[:1]:
                found[name] = version(name)
    return found


def _components(value: Any) -> Iterator[type]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _components(item)
    elif is_dataclass(value):
        if isinstance(value, Component):
            yield type(value)
        for field in fields(value):
            yield from _components(getattr(value, field.name))
