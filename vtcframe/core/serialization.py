"""Components, stages and plans as plain data, the form in which run folders and YAML files store them."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from vtcframe.core.budget import Budget
from vtcframe.core.stages import Plan, Stage
from vtcframe.registry import entries

UNPRUNED = {"name": "unpruned"}  # stands for the model without pruning, in place of a method


def component_data(component: Any) -> dict[str, Any]:
    """Return {"name": ..., option: value, ...} of a component, without options that are None.

    The name of a registered class is its public name, of any other class its import path. Options are JSON values.
    Nested components and budgets have the same form, and tuples become lists.
    """
    return {"name": _name(type(component)), **_options(component)}


def budget_data(budget: Budget | None) -> dict[str, Any] | None:
    """Return a budget as the configuration writes it, without options that are None and without `per="sample"`."""
    if budget is None:
        return None
    return {key: value for key, value in _options(budget).items() if (key, value) != ("per", "sample")}


def stage_data(stage: Stage) -> dict[str, Any]:
    """Return {"at": ..., "pruner": ..., "budget": ..., ...} of a stage, without options that are None."""
    return _options(stage)


def plan_data(plan: Plan | None) -> dict[str, Any]:
    """Return the data of a plan's method, else {"stages": [...]}; `UNPRUNED` for the model without pruning."""
    if plan is None:
        return UNPRUNED
    if plan.method is not None:
        return component_data(plan.method)
    return {"stages": [stage_data(stage) for stage in plan.stages]}


def component_from_data(data: Mapping[str, Any]) -> Any:
    """Create the registered component that `component_data` described.

    LookupError for a name that is not registered. Errors of the component's class about its options pass through.
    """
    registered = {entry.name: entry for entry in entries()}
    if data.get("name") not in registered:
        raise LookupError(f"no registered component is called {data.get('name')!r}")
    options = {key: _value_from_data(value) for key, value in data.items() if key != "name"}
    return registered[data["name"]].load()(**options)


def constructor_call(component: Any) -> str:
    """Return Python code that creates a component, without options that have their defaults: "VtcCls(last=7)"."""
    options = {
        field.name: getattr(component, field.name)
        for field in fields(component)
        if field.init and getattr(component, field.name) != _default(field)
    }
    return f"{type(component).__name__}({', '.join(f'{name}={_code(value)}' for name, value in options.items())})"


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _code(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_code, value))}{',' if len(value) == 1 else ''})"
    return constructor_call(value) if is_dataclass(value) else repr(value)


def _name(kind: type) -> str:
    for entry in entries():
        name = entry.target.rpartition(":")[2]
        if name == kind.__name__ and entry.load() is kind:
            return name
    return f"{kind.__module__}.{kind.__qualname__}"


def _options(value: Any) -> dict[str, Any]:
    names = [field.name for field in fields(value) if field.init] if is_dataclass(value) else list(vars(value))
    options = {name: getattr(value, name) for name in names}
    return {name: _plain(option) for name, option in options.items() if option is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Budget):
        return budget_data(value)
    if isinstance(value, Stage):
        return stage_data(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str | int | float | bool | None):
        return value
    return component_data(value)


def _value_from_data(value: Any) -> Any:
    if isinstance(value, Mapping):
        return component_from_data(value) if "name" in value else Budget(**value)
    return tuple(_value_from_data(item) for item in value) if isinstance(value, list) else value
