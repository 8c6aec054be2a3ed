"""What vtcframe.yaml holds: a plan as keys and plain values, the reverse of instantiating it."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib.metadata import packages_distributions, version
from typing import Any

from vtcframe.config.type_hints import Hints, alternatives, item_hints, kinds_at, option_hints
from vtcframe.core.budget import Budget
from vtcframe.core.stages import Plan, Pruner, Stage
from vtcframe.core.verbs import Component
from vtcframe.registry import Entry, entries


def plan_content(plan: Plan) -> dict[str, Any]:
    """Return `stages`, or `pruner` and `budget` of a method, and the versions of the distributions that they come from.

    ValueError for components that no other program can import, or that are no dataclasses.
    """
    if plan.method is None or plan.stages == (Stage("projector", plan.method, plan.nominal),):
        content: dict[str, Any] = {"stages": _plain(list(plan.stages), alternatives(list[Stage]))}
    else:
        content = {"pruner": _plain(plan.method, (Pruner,))}
        if plan.nominal:
            content["budget"] = _plain(plan.nominal, (Budget,))
    return {**content, "versions": _versions(plan.method or plan.stages)}


def _plain(value: Any, hints: Hints) -> Any:
    """Return a value as YAML holds it: a component with all of its options but those that are None by default."""
    if isinstance(value, list | tuple):
        return [_plain(item, item_hints(hints)) for item in value]
    if not is_dataclass(value):
        if isinstance(value, Component):
            raise ValueError(f"{type(value).__name__} is no dataclass, so its options are unknown: make it a dataclass")
        return value
    option = option_hints(type(value))
    options = {
        field.name: _plain(getattr(value, field.name), alternatives(option.get(field.name)))
        for field in fields(value)
        if field.init and not (getattr(value, field.name) is None and field.default is None)
    }
    if not isinstance(value, Component):
        return options
    entry = _entry(type(value))
    path = entry.import_path if entry else _import_path(type(value))
    if not kinds_at(hints) or "name" in options:  # where `expand` has no short form
        return {"class_path": path, "init_args": options}
    name = entry.name if entry and entry.kind in kinds_at(hints) else path
    return {"name": name, **options} if options else name


def _entry(component: type) -> Entry | None:
    """Return the entry of a registered class, None for any other."""
    candidates = (entry for entry in entries() if entry.name == component.__name__)
    return next((entry for entry in candidates if entry.load() is component), None)


def _import_path(component: type) -> str:
    if component.__module__ == "__main__" or "." in component.__qualname__:
        raise ValueError(
            f"{component.__qualname__} of {component.__module__} cannot be imported by another program: "
            "define it at the top of a module"
        )
    return f"{component.__module__}.{component.__name__}"


def _versions(value: Any) -> dict[str, str]:
    """Return the versions of the distributions that a plan's components come from, vtcframe first."""
    versions = {"vtcframe": version("vtcframe")}
    for component in _components(value):
        if entry := _entry(component):
            versions[entry.distribution] = entry.version
        else:
            for name in packages_distributions().get(component.__module__.partition(".")[0], [])[:1]:
                versions[name] = version(name)
    return versions


def _components(value: Any) -> Iterator[type]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _components(item)
    elif is_dataclass(value):
        if isinstance(value, Component):
            yield type(value)
        for field in fields(value):
            yield from _components(getattr(value, field.name))
