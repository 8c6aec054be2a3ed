"""The door: every component, ours included, comes through the entry-point group `vtcframe`.

A distribution points an entry point of that group at an object (a module, say) with the hook `vtcframe_components`,
which maps a kind to lazy targets "package.module:Class". The class name is the public name. Nothing heavy is
imported before a target is loaded.
"""

import ast
import difflib
import importlib
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from traceback import walk_tb
from typing import Any

import pluggy

GROUP = "vtcframe"
KINDS = {  # kind -> the class that its components extend
    "adapter": "vtcframe.adapters.base:EncoderAdapter",
    "scorer": "vtcframe.core.verbs:Scorer",
    "ensembler": "vtcframe.core.verbs:Ensembler",
    "allocator": "vtcframe.core.verbs:Allocator",
    "selector": "vtcframe.core.verbs:Selector",
    "merger": "vtcframe.core.verbs:Merger",
    "pruner": "vtcframe.core.stages:Pruner",
    "transform": "vtcframe.data.transforms:Transform",
    "benchmark": "vtcframe.data.benchmarks.base:Benchmark",
}

KIND_HEADING = re.compile(r"^# kind: (\w+)$", re.MULTILINE)  # in vtcframe/__init__.pyi
TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Hooks:
    """What a plugin may implement."""

    @hookspec
    def vtcframe_components(self) -> dict[str, list[str]]:  # pyright: ignore[reportReturnType] (a specification)
        """Return kind -> lazy targets, e.g. {"scorer": ["my_package.scorers:Entropy"]}."""


class Core:
    """Our own components."""

    @staticmethod
    @hookimpl
    def vtcframe_components() -> dict[str, list[str]]:
        """Return what this distribution brings."""
        return _listed_components()


def _listed_components() -> dict[str, list[str]]:
    """Return kind -> targets of our own components, which `vtcframe/__init__.pyi` lists by kind."""
    stub = (files("vtcframe") / "__init__.pyi").read_text(encoding="utf-8")
    kinds = [(stub[: match.start()].count("\n"), match[1]) for match in KIND_HEADING.finditer(stub)]
    targets: dict[str, list[str]] = {}
    for node in ast.parse(stub).body:
        assert isinstance(node, ast.ImportFrom), "the stub holds imports only"
        kind = [name for line, name in kinds if line < node.lineno][-1]
        if kind != "none":
            targets.setdefault(kind, []).extend(f"vtcframe.{node.module}:{alias.name}" for alias in node.names)
    return targets


@dataclass(frozen=True)
class Entry:
    """One registered component."""

    kind: str
    name: str
    target: str  # "package.module:Class"
    distribution: str
    version: str

    def load(self) -> type:
        """Import the class. ImportError, or TypeError if it is not as its kind must be, naming the distribution."""
        whose = f"{self.kind} {self.name} of {self.distribution} {self.version}"
        try:
            found = _resolve(self.target)
        except (Exception, SystemExit) as error:  # a stranger's module raises whatever it likes
            raise ImportError(f"{whose} cannot be imported: {_brief(error)}") from error
        base = _resolve(KINDS[self.kind])
        if not (isinstance(found, type) and issubclass(found, base)):
            kind = KINDS[self.kind].replace(":", ".")
            raise TypeError(f"{self.target} of {self.distribution} {self.version} is no {self.kind}: extend {kind}")
        if missing := ", ".join(sorted(getattr(found, "__abstractmethods__", ()))):
            raise TypeError(f"{whose} is abstract: it must define {missing}")
        frozen = is_dataclass(found) and getattr(found, "__dataclass_params__").frozen  # noqa: B009 (pyright)
        if self.kind != "adapter" and not frozen:
            raise TypeError(f"{whose} is no frozen dataclass: write @dataclass(frozen=True) above it")
        return found


def _brief(error: BaseException) -> str:
    """Return an exception in one line."""
    told = " ".join(str(error).split())
    return f"{type(error).__name__}: {told}" if told else type(error).__name__


def _resolve(target: str):
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Failure:
    """A plugin that was left out."""

    plugin: str  # the name of its entry point
    distribution: str
    version: str
    cause: str

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} of {self.distribution} {self.version} is left out: {self.cause}"


def entries() -> tuple[Entry, ...]:
    """Every component of every installed distribution, ours first, the others by the distribution's name.

    A plugin that cannot be registered whole is left out, with one warning; all others work.
    """
    return _scan()[0]


def failures() -> tuple[Failure, ...]:
    """Every plugin that was left out, in the order of `entries`."""
    return _scan()[1]


def named(kind: str, name: str) -> Entry:
    """Look a component up by the name of its class. LookupError with the nearest names, and what was left out."""
    mine = {entry.name: entry for entry in entries() if entry.kind == kind}
    if name in mine:
        return mine[name]
    near = difflib.get_close_matches(name, mine, 1, 0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    lost = "".join(f"\n{failure}" for failure in failures())  # it may be the very one that was asked for
    raise LookupError(f"no {kind} is called {name!r}.{hint} Installed: {', '.join(sorted(mine)) or 'none'}.{lost}")


def load(node: Any) -> None:
    """Import the registered components that a configuration names by class_path, as `Entry.load` does."""
    if isinstance(node, list | tuple):
        for item in node:
            load(item)
    elif isinstance(node, dict):
        path = str(node.get("class_path"))
        for entry in entries():
            if entry.target.replace(":", ".") == path:
                entry.load()
        load(list(node.values()))


def kind_of(component: type) -> str | None:
    """Return the kind of a class, None for a class of none."""
    bases = {f"{base.__module__}:{base.__qualname__}" for base in component.__mro__}
    return next((kind for kind, base in KINDS.items() if base in bases), None)


def bringing(component: type) -> Entry | None:
    """Return the entry that a class came by; else one that came from the same package; else None."""
    package = component.__module__.partition(".")[0]
    near = None
    for entry in entries():
        module, _, name = entry.target.partition(":")
        if getattr(sys.modules.get(module), name, None) is component:
            return entry
        if near is None and module.partition(".")[0] == package:
            near = entry
    return near


def raised_in(error: BaseException) -> str:
    """Return "DISTRIBUTION VERSION: " where a plug-in raised an exception, or what it came from; else nothing."""
    cause: BaseException | None = error
    while cause is not None:
        for frame, _ in reversed(list(walk_tb(cause.__traceback__))):
            package = frame.f_globals.get("__name__", "").partition(".")[0]
            for entry in entries():
                if entry.distribution != "vtcframe" and entry.target.partition(":")[0].partition(".")[0] == package:
                    return f"{entry.distribution} {entry.version}: "
        cause = cause.__cause__ or cause.__context__
    return ""


@cache
def _scan() -> tuple[tuple[Entry, ...], tuple[Failure, ...]]:
    found: dict[tuple[str, str], Entry] = {}
    lost = []
    for point in sorted(entry_points(group=GROUP), key=lambda p: (_origin(p)[0] != "vtcframe", _origin(p), p.name)):
        try:
            mine = {}
            for entry in _components(point):
                if other := {**found, **mine}.get((entry.kind, entry.name)):
                    raise ValueError(
                        f"{entry.kind} {entry.name} is provided by {other.distribution} ({other.target}) already"
                    )
                mine[entry.kind, entry.name] = entry
        except (Exception, SystemExit) as error:  # whatever a stranger's plugin raises must not take the others along
            lost.append(Failure(point.name, *_origin(point), _brief(error)))
            warnings.warn(str(lost[-1]), stacklevel=4)
        else:
            found |= mine
    return tuple(found.values()), tuple(lost)


def _origin(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist else ("?", "?")


def _components(point: EntryPoint) -> Iterator[Entry]:
    manager = pluggy.PluginManager(GROUP)  # one for each plugin: a broken one cannot disturb the next
    manager.add_hookspecs(Hooks)
    plugin = point.load()
    manager.register(plugin)
    manager.check_pending()
    if not manager.hook.vtcframe_components.get_hookimpls():
        raise ValueError(f"{point.value} has no hook vtcframe_components: mark it with vtcframe.registry.hookimpl")
    answers = manager.hook.vtcframe_components() or [None]  # pluggy leaves None out
    for components in answers:
        if not isinstance(components, dict):
            raise TypeError(f"vtcframe_components returns kind -> list of targets, not {components!r}")
        for kind, targets in components.items():
            if kind not in KINDS:
                raise ValueError(f"no kind is called {kind!r}: use {', '.join(KINDS)}")
            if not isinstance(targets, list | tuple):
                raise TypeError(f"the targets of {kind} are a list, not {targets!r}")
            for target in targets:
                if not (isinstance(target, str) and TARGET.fullmatch(target)):
                    raise ValueError(f"{target!r} is no target: write 'package.module:Class'")
                yield Entry(kind, target.rpartition(":")[2], target, *_origin(point))
