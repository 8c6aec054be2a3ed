"""What a sweep's file asks for, with the command line's changes, checked before anything runs."""

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
NAME = re.compile(r"\w[\w.-]*")  # of a model or of questions: a folder's, too


@dataclass(frozen=True)
class Sweep:
    """What the file asks for.

    Args:
        models: Name -> backbone: what `model.backbone` of predict takes.
        data: Name -> questions: what `data` of predict takes.
        budgets: For example [{ratio: 0.25}, {tokens: 64}].
        pruners: Methods that are run at each of them.
        seeds: With which of them each pruner is run that has a seed and was given none.
        baselines: Whether random, uniform, pooling and, where the model's resolution allows it, downsampling are run.
        generation: Options of transformers' generate.
        trainer: Options of Lightning's trainer.
        pictures: For how many questions it is drawn what each method keeps.
        folder: Where to.
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
        """Return the pruners with their seeds, baselines first, as one writes them in a configuration."""
        baselines = (*CHANCE, POOL) if self.baselines else ()
        return [one for spec in (*baselines, *self.pruners) for one in self._seeded(spec)]

    def _seeded(self, spec: Any) -> list[Any]:
        expanded, made = expand(spec, PRUNER, "pruners"), pruner_of(spec)
        options = expanded.get("init_args", {})
        if not is_dataclass(made) or "seed" in options or "seed" not in {one.name for one in fields(made)}:
            return [spec]
        return [shorten({**expanded, "init_args": {**options, "seed": seed}}, PRUNER) for seed in self.seeds]


def asked(path: str, options: Sequence[str]) -> Sweep:
    """Read the file, with `--KEY.KEY=VALUE` in place of what it says. UsageError for what no sweep can be."""
    hints = _hints()
    told = shorten(read_config(path, hints), hints)
    for option in options:
        key, equals, value = option.removeprefix("--").partition("=")
        if not option.startswith("--") or not equals:
            raise UsageError(f"{option!r} is no option: write --KEY=VALUE, for example --data.pope.limit=100")
        *outer, last = key.split(".")
        node = told
        for name in outer:
            node = node.setdefault(name, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise UsageError(f"{option!r}: {'.'.join(outer)} has no keys")
        node[last] = expand_value(key, get_loader("yaml")(value), hints)
    told = shorten(told, hints)
    told["models"] = _models(told.get("models"))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Sweep)
    try:
        checked = parser.parse_object(told).as_dict()
    except (ArgumentError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path}: {error}") from error
    sweep = Sweep(**checked)
    _check(sweep)
    return sweep


def _hints() -> dict[str, Any]:
    """Return the type hints of the keys with components."""
    from vtcframe.core.stages import Pruner
    from vtcframe.data.datamodule import Questions

    return {"data": dict[str, Questions], "pruners": list[Pruner]}


def _models(told: Any) -> dict[str, Any]:
    """Return backbones by their names; those of a list by the last part of their paths."""
    if isinstance(told, dict):
        return {name: {"path": one} if isinstance(one, str) else one for name, one in told.items()}
    if not isinstance(told, list):
        raise UsageError(f"models is a list of backbones, or name -> backbone, got {told!r}")
    named: dict[str, Any] = {}
    for one in told:
        backbone = {"path": one} if isinstance(one, str) else one
        if not isinstance(backbone, dict) or not isinstance(backbone.get("path"), str):
            raise UsageError(f"a model is a path or {{path: ..., dtype: ...}}, got {one!r}")
        name = re.split(r"[/:\\]", backbone["path"].rstrip("/\\"))[-1]
        if name in named:
            raise UsageError(f"two models are called {name!r}: give models as name -> backbone")
        named[name] = backbone
    return named


def _check(sweep: Sweep) -> None:
    """Try what predict would refuse only once it runs."""
    from vtcframe.inference.checkpoint import Backbone

    for name, backbone in sweep.models.items():
        _made(f"models.{name}", Backbone, backbone)
    for spec in sweep.methods():
        refusals = [refusal(spec, budget) for budget in sweep.budgets]
        if None not in refusals:
            raise UsageError(f"{words(spec)} can be run at none of the budgets: {refusals[0]}")


def refusal(spec: Any, budget: Any) -> str | None:
    """Say why a pruner cannot be run at a budget; None if it can. UsageError where one of them is none."""
    from vtcframe.core.budget import Budget
    from vtcframe.core.stages import plan_for

    pruner, amount = pruner_of(spec), _made("budgets", Budget, budget)
    try:
        plan_for(pruner, amount)
    except ValueError as error:
        return str(error)
    return None


def _made(key: str, kind: type, value: Any) -> Any:
    """Make one thing of a configuration. UsageError, naming its key."""
    name = kind.__name__.lower()
    try:
        return instantiate({name: kind}, {name: value})[name]
    except (ImportError, ValueError, TypeError) as error:
        raise UsageError(f"{key}: {error}") from error


def pruner_of(spec: Any) -> Any:
    """Make a pruner as one writes it in a configuration. UsageError for what is none."""
    from vtcframe.core.stages import Pruner

    return _made("pruners", Pruner, expand(spec, PRUNER, "pruners"))


def words(spec: Any) -> str:
    """Return a pruner with all of its options in words."""
    return str(pruner_of(spec))
