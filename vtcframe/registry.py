"""The door: every component, ours included, comes through the entry-point group `vtcframe`.

A distribution points an entry point of that group at an object (a module, say) with the hook `vtcframe_components`,
which maps a kind to lazy targets "package.module:Class". The class name is the public name. Nothing heavy is
imported before a target is loaded.
"""

import difflib
import importlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points

import pluggy

GROUP = "vtcframe"
KINDS = {  # kind -> the class that its components extend
    "adapter": "vtcframe.adapter:Adapter",
    "scorer": "vtcframe.pipeline:Scorer",
    "ensembler": "vtcframe.pipeline:Ensembler",
    "allocator": "vtcframe.pipeline:Allocator",
    "selector": "vtcframe.pipeline:Selector",
    "merger": "vtcframe.pipeline:Merger",
    "pruner": "vtcframe.pipeline:Pruner",
}

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
        return {
            "scorer": [f"vtcframe.scorers:{name}" for name in ("ClsAttention", "Random", "TokenNorm")],
            "ensembler": [f"vtcframe.ensemblers:{name}" for name in ("Mean", "RankFusion", "Weighted")],
            "allocator": ["vtcframe.allocators:Even"],
            "selector": [f"vtcframe.selectors:{name}" for name in ("Grid", "TopK")],
            "pruner": [
                "vtcframe.pipeline:Pipeline",
                *(f"vtcframe.methods:{name}" for name in ("FasterVlm", "RandomPruner", "UniformPruner", "VtcCls")),
            ],
        }


@dataclass(frozen=True)
class Entry:
    """One registered component."""

    kind: str
    name: str
    target: str  # "package.module:Class"
    distribution: str
    version: str

    def load(self) -> type:
        """Import the class. TypeError if it is not of its kind."""
        found = _resolve(self.target)
        base = _resolve(KINDS[self.kind])
        if not (isinstance(found, type) and issubclass(found, base)):
            raise TypeError(f"{self.target} of {self.distribution} {self.version} is no {self.kind}: extend {base}")
        return found


def _resolve(target: str):
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@cache
def entries() -> tuple[Entry, ...]:
    """Every component of every installed distribution, ours first, the others by the distribution's name.

    A plugin that cannot be registered whole is left out with a warning; all others work.
    """
    found: dict[tuple[str, str], Entry] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: (_origin(p)[0] != "vtcframe", _origin(p), p.name)):
        name, version = _origin(point)
        try:
            mine = {(entry.kind, entry.name): entry for entry in _components(point)}
            for kind, clash in mine.keys() & found.keys():
                raise ValueError(f"{kind} {clash} is already provided by {found[kind, clash].distribution}")
        except Exception as error:  # whatever a stranger's plugin raises must not take the others along
            cause = f"{type(error).__name__}: {error}"
            warnings.warn(f"plugin {point.name!r} of {name} {version} is left out: {cause}", stacklevel=2)
        else:
            found |= mine
    return tuple(found.values())


def _origin(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist else ("?", "?")


def _components(point: EntryPoint) -> Iterator[Entry]:
    manager = pluggy.PluginManager(GROUP)  # one for each plugin: a broken one cannot disturb the next
    manager.add_hookspecs(Hooks)
    manager.register(point.load())
    manager.check_pending()
    for components in manager.hook.vtcframe_components():
        for kind, targets in components.items():
            if kind not in KINDS:
                raise ValueError(f"no kind is called {kind!r}: use {', '.join(KINDS)}")
            for target in targets:
                yield Entry(kind, target.rpartition(":")[2], target, *_origin(point))


def named(kind: str, name: str) -> Entry:
    """Look a component up by the name of its class. LookupError with the nearest names."""
    mine = {entry.name: entry for entry in entries() if entry.kind == kind}
    if name in mine:
        return mine[name]
    near = difflib.get_close_matches(name, mine, 1, 0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise LookupError(f"no {kind} is called {name!r}.{hint} Installed: {', '.join(sorted(mine)) or 'none'}.")
