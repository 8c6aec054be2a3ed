"""The registry of components: vtcframe and plug-ins register theirs through the entry-point group `vtcframe`.

An entry point of that group refers to an object (a module, for example) with the hook `vtcframe_components`, which
returns kind -> lazy targets "package.module:Class". The name of the class is the public name. A target is imported when
its component is first used.
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
KINDS = {  # kind -> the base class of its components
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
NO_KIND = "none"  # the heading of public names that are not components
TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Hooks:
    """The specification of the hooks that a plug-in may implement."""

    @hookspec
    def vtcframe_components(self) -> dict[str, list[str]]:  # pyright: ignore[reportReturnType] (a specification)
        """Return kind -> lazy targets, e.g. {"scorer": ["my_package.scorers:Entropy"]}."""


class Core:
    """The plug-in with the components of vtcframe itself."""

    @staticmethod
    @hookimpl
    def vtcframe_components() -> dict[str, list[str]]:
        """Return the components that `vtcframe/__init__.pyi` lists."""
        stub = (files("vtcframe") / "__init__.pyi").read_text(encoding="utf-8")
        components = listed_names(stub)
        components.pop(NO_KIND, None)
        return components


def listed_names(stub: str) -> dict[str, list[str]]:
    """Return kind -> targets of the names that a stub imports below its headings `# kind: KIND`.

    ValueError for a statement that is not an import, and for an import above the first heading.
    """
    headings = [(stub.count("\n", 0, match.start()) + 1, match[1]) for match in KIND_HEADING.finditer(stub)]
    targets: dict[str, list[str]] = {}
    for node in ast.parse(stub).body:
        if not isinstance(node, ast.ImportFrom):
            raise ValueError(f"line {node.lineno} of the stub is no import: a stub contains imports only")
        above = [kind for line, kind in headings if line < node.lineno]
        if not above:
            raise ValueError(f"line {node.lineno} of the stub has no heading: write # kind: KIND above it")
        targets.setdefault(above[-1], []).extend(f"vtcframe.{node.module}:{alias.name}" for alias in node.names)
    return targets


@dataclass(frozen=True)
class Entry:
    """A registered component."""

    kind: str
    name: str
    target: str  # "package.module:Class"
    distribution: str
    version: str

    @property
    def import_path(self) -> str:
        """The target as a dotted path: "package.module.Class"."""
        return self.target.replace(":", ".")

    def load(self) -> type:
        """Import the class and return it.

        ImportError if its module cannot be imported, and TypeError if the class breaks the rules of its kind. Both
        name the distribution.
        """
        title = f"{self.kind} {self.name} of {self.distribution} {self.version}"
        try:
            component = _resolve(self.target)
        except (Exception, SystemExit) as error:  # the module of a plug-in may raise anything
            raise ImportError(f"{title} cannot be imported: {_describe_exception(error)}") from error
        base = _resolve(KINDS[self.kind])
        if not (isinstance(component, type) and issubclass(component, base)):
            path = KINDS[self.kind].replace(":", ".")
            raise TypeError(f"{self.target} of {self.distribution} {self.version} is no {self.kind}: extend {path}")
        if missing := ", ".join(sorted(getattr(component, "__abstractmethods__", ()))):
            raise TypeError(f"{title} is abstract: it must define {missing}")
        frozen = is_dataclass(component) and getattr(component, "__dataclass_params__").frozen  # noqa: B009 (pyright)
        if self.kind != "adapter" and not frozen:
            raise TypeError(f"{title} is no frozen dataclass: write @dataclass(frozen=True) above it")
        return component


def _describe_exception(error: BaseException) -> str:
    """Return the type and the message of an exception in one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _resolve(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Failure:
    """A plug-in that is left out because it cannot be registered."""

    plugin: str  # the name of its entry point
    distribution: str
    version: str
    cause: str

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} of {self.distribution} {self.version} is left out: {self.cause}"


def entries() -> tuple[Entry, ...]:
    """Return the components of all installed distributions: vtcframe first, the others sorted by distribution.

    A plug-in with an error is left out completely, with a single warning. All other plug-ins are registered.
    """
    return _scan()[0]


def failures() -> tuple[Failure, ...]:
    """Return every plug-in that is left out, in the order of `entries`."""
    return _scan()[1]


def find_entry(kind: str, name: str) -> Entry:
    """Return the component of a kind by its class name.

    LookupError for an unknown name; it lists the closest name, the registered names and the plug-ins that are left out.
    """
    candidates = {entry.name: entry for entry in entries() if entry.kind == kind}
    if name in candidates:
        return candidates[name]
    near = difflib.get_close_matches(name, candidates, 1, 0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    left_out = "".join(f"\n{failure}" for failure in failures())  # a failed plug-in may contain the component
    names = ", ".join(sorted(candidates)) or "none"
    raise LookupError(f"no {kind} is called {name!r}.{hint} Installed: {names}.{left_out}")


def kind_of(component: type) -> str | None:
    """Return the kind of a class; None if the class is not a component."""
    bases = {f"{base.__module__}:{base.__qualname__}" for base in component.__mro__}
    return next((kind for kind, base in KINDS.items() if base in bases), None)


def entry_of(component: type) -> Entry | None:
    """Return the entry of a class, or of another class of the same package; None for a package without entries."""
    package = component.__module__.partition(".")[0]
    neighbour = None
    for entry in entries():
        module, _, name = entry.target.partition(":")
        if getattr(sys.modules.get(module), name, None) is component:
            return entry
        if neighbour is None and module.partition(".")[0] == package:
            neighbour = entry
    return neighbour


def plugin_prefix(error: BaseException) -> str:
    """Return "DISTRIBUTION VERSION: " if code of a plug-in raised an exception or a cause of it, else ""."""
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
    components: dict[tuple[str, str], Entry] = {}
    left_out = []
    for point in sorted(entry_points(group=GROUP), key=_order):
        try:
            added = {}
            for entry in _components(point):
                if other := {**components, **added}.get((entry.kind, entry.name)):
                    raise ValueError(
                        f"{entry.kind} {entry.name} is provided by {other.distribution} ({other.target}) already"
                    )
                added[entry.kind, entry.name] = entry
        except (Exception, SystemExit) as error:  # a plug-in may raise anything and must not affect the others
            left_out.append(Failure(point.name, *_origin(point), _describe_exception(error)))
            warnings.warn(str(left_out[-1]), stacklevel=4)
        else:
            components |= added
    return tuple(components.values()), tuple(left_out)


def _order(point: EntryPoint) -> tuple[bool, tuple[str, str], str]:
    """Return a sort key that puts vtcframe first, so that no plug-in can take a name of vtcframe."""
    return _origin(point)[0] != "vtcframe", _origin(point), point.name


def _origin(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist else ("?", "?")


def _components(point: EntryPoint) -> Iterator[Entry]:
    manager = pluggy.PluginManager(GROUP)  # a separate manager for each plug-in, so that errors stay separate
    manager.add_hookspecs(Hooks)
    plugin = point.load()
    manager.register(plugin)
    manager.check_pending()
    if not manager.hook.vtcframe_components.get_hookimpls():
        raise ValueError(f"{point.value} has no hook vtcframe_components: mark it with vtcframe.registry.hookimpl")
    results = manager.hook.vtcframe_components() or [None]  # pluggy leaves None out
    for components in results:
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
