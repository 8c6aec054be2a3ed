"""The configuration of a sweep: its file and the changes of the command line, checked before anything runs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, get_loader

from vtcframe.config.arguments import expand_value, read_config
from vtcframe.config.parser import instantiate
from vtcframe.config.short_names import expand, shorten
from vtcframe.config.type_hints import Kind
from vtcframe.errors import UsageError
from vtcframe.runs.baselines import CHANCE, POOL

PRUNER = Kind("pruner")
NAME = re.compile(r"\w[\w.-]*")  # of a model or of questions, which is also the name of a folder


@dataclass(frozen=True)
class Sweep:
    """The configuration of a sweep.

    Args:
        models: Name -> backbone, as `model.backbone` of predict.
        data: Name -> questions, as `data` of predict.
        budgets: For example [{ratio: 0.25}, {tokens: 64}].
        pruners: Methods that are run at each budget.
        seeds: Seeds with which each pruner is run that has the option `seed` and does not set it.
        baselines: Whether random, uniform and pooling baselines are run, and downsampling where the model's processor
            makes fewer tokens of a smaller picture.
        generation: Options of transformers' generate.
        trainer: Options of Lightning's trainer.
        pictures: Number of questions for which the kept tokens of each method are drawn.
        folder: Folder that the runs are written to, as MODEL/DATA/NUMBER.
    """

    models: dict[str, dict[str, Any]]
    data: dict[str, dict[str, Any]]
    budgets: list[dict[str, Any]]
    pruners: list[Any] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    baselines: bool = True
    generation: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=lambda: {"accelerator": "auto", "devices": 1})
    pictures: int = 2
    folder: str = "runs/sweep"

    def __post_init__(self) -> None:
        for key in ("models", "data", "budgets", "seeds"):
            if not getattr(self, key):
                raise UsageError(f"{key} is empty: give at least one")
        for name in (*self.models, *self.data):
            if not NAME.fullmatch(name):
                raise UsageError(f"{name!r} cannot be a folder's name: use letters, digits, '.', '_' and '-'")
        if not (self.pruners or self.baselines):
            raise UsageError("there is nothing to run: give pruners, or leave baselines as they are")

    def methods(self) -> list[Any]:
        """Return the configurations of the pruners, one for each seed, baselines first."""
        baselines = (*CHANCE, POOL) if self.baselines else ()
        return [method for pruner in (*baselines, *self.pruners) for method in self._with_seeds(pruner)]

    def _with_seeds(self, config: Any) -> list[Any]:
        expanded = expand(config, PRUNER, "pruners")
        options = expanded.get("init_args", {})
        pruner = read_pruner(config)
        if not is_dataclass(pruner) or "seed" in options or "seed" not in {option.name for option in fields(pruner)}:
            return [config]
        return [shorten({**expanded, "init_args": {**options, "seed": seed}}, PRUNER) for seed in self.seeds]


def read_sweep(path: str, options: Sequence[str]) -> Sweep:
    """Read the configuration of a sweep; `options` are `--KEY.KEY=VALUE`, which replace values of the file.

    UsageError, naming the key, for what cannot be run.
    """
    hints = _component_hints()
    config = shorten(read_config(path, hints), hints)
    for option in options:
        _set_option(config, option, hints)
    config = shorten(config, hints)
    config["models"] = _name_models(config.get("models"))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Sweep)
    try:
        checked = parser.parse_object(config).as_dict()
    except (ArgumentError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path}: {error}") from error
    sweep = Sweep(**checked)
    _check(sweep)
    return sweep


def _set_option(config: dict[str, Any], option: str, hints: dict[str, Any]) -> None:
    """Set the value of `--KEY.KEY=VALUE` in a configuration. UsageError for an option of another form."""
    key, equals, value = option.removeprefix("--").partition("=")
    if not option.startswith("--") or not equals:
        raise UsageError(f"{option!r} is no option: write --KEY=VALUE, for example --data.pope.limit=100")
    *outer, last = key.split(".")
    node: Any = config
    for name in outer:
        node = node.setdefault(name, {}) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise UsageError(f"{option!r}: {'.'.join(outer)} has no keys")
    node[last] = expand_value(key, get_loader("yaml")(value), hints)


def _component_hints() -> dict[str, Any]:
    """Return the type hints of the keys with components."""
    from vtcframe.core.stages import Pruner
    from vtcframe.data.datamodule import Questions

    return {"data": dict[str, Questions], "pruners": list[Pruner]}


def _name_models(models: Any) -> dict[str, Any]:
    """Return name -> backbone. The backbones of a list are named after the last part of their paths."""
    if isinstance(models, dict):
        return {name: {"path": model} if isinstance(model, str) else model for name, model in models.items()}
    if not isinstance(models, list):
        raise UsageError(f"models is a list of backbones, or name -> backbone, got {models!r}")
    named: dict[str, Any] = {}
    for model in models:
        backbone = {"path": model} if isinstance(model, str) else model
        if not isinstance(backbone, dict) or not isinstance(backbone.get("path"), str):
            raise UsageError(f"a model is a path or {{path: ..., dtype: ...}}, got {model!r}")
        name = re.split(r"[/:\\]", backbone["path"].rstrip("/\\"))[-1]
        if name in named:
            raise UsageError(f"two models are called {name!r}: give models as name -> backbone")
        named[name] = backbone
    return named


def _check(sweep: Sweep) -> None:
    """Raise UsageError for backbones, pruners and budgets that predict would refuse once it runs."""
    from vtcframe.inference.checkpoint import Backbone

    for name, backbone in sweep.models.items():
        _instantiate(f"models.{name}", Backbone, backbone)
    for pruner in sweep.methods():
        refusals = [describe_refusal(pruner, budget) for budget in sweep.budgets]
        if None not in refusals:
            raise UsageError(f"{describe_pruner(pruner)} can be run at none of the budgets: {refusals[0]}")


def describe_refusal(pruner: Any, budget: Any) -> str | None:
    """Return why a pruner cannot be run at a budget, None if it can. Both are configurations.

    UsageError for a configuration of neither.
    """
    from vtcframe.core.budget import Budget
    from vtcframe.core.stages import plan_for

    amount = _instantiate("budgets", Budget, budget)
    try:
        plan_for(read_pruner(pruner), amount)
    except ValueError as error:
        return str(error)
    return None


def _instantiate(key: str, kind: type, config: Any) -> Any:
    """Make an object of a configuration. UsageError, naming its key."""
    name = kind.__name__.lower()
    try:
        return instantiate({name: kind}, {name: config})[name]
    except (ImportError, ValueError, TypeError) as error:
        raise UsageError(f"{key}: {error}") from error


def read_pruner(config: Any) -> Any:
    """Make the pruner of a configuration with short names. UsageError for what is not one."""
    from vtcframe.core.stages import Pruner

    return _instantiate("pruners", Pruner, expand(config, PRUNER, "pruners"))


def describe_pruner(config: Any) -> str:
    """Return a pruner of a configuration with all of its options, as reports name it."""
    return str(read_pruner(config))
