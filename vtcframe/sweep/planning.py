"""The runs that a sweep still needs: those that were interrupted, and new ones for what no folder has."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtcframe.assets import bundled
from vtcframe.config.arguments import read_config
from vtcframe.config.short_names import shorten
from vtcframe.errors import UsageError
from vtcframe.runs.baselines import CONFIGURATION, DOWNSAMPLE
from vtcframe.sweep.config import Sweep, describe_pruner, describe_refusal

PICTURE = 1024, 768  # width and height in pixels of the picture with which processors are tried
SPEED = "batch_size", "num_workers"  # options of the data that change no answer
Pair = tuple[str, str]  # a pruner with its options, or Downsample; and a budget


@dataclass(frozen=True)
class PlannedRun:
    """A run of predict, in a folder MODEL/DATA/NUMBER.

    Attributes:
        folder: Its folder.
        config: Its configuration; None if the folder has one, and the run is resumed.
        summary: Its methods and budgets.
    """

    folder: Path
    config: Mapping[str, Any] | None
    summary: str

    def __str__(self) -> str:
        return f"{self.folder}: {'resumes ' if self.config is None else ''}{self.summary}"


def plan_runs(sweep: Sweep) -> list[PlannedRun]:
    """Return the runs of a sweep: interrupted ones that it still includes, then new ones for what is missing.

    UsageError if the folder holds runs of another sweep.
    """
    methods = {describe_pruner(pruner): pruner for pruner in sweep.methods()}
    budgets = {_budget_key(budget): budget for budget in sweep.budgets}
    accepted: set[Pair] = set()
    for method, pruner in methods.items():
        for key, budget in budgets.items():
            if (reason := describe_refusal(pruner, budget)) is None:
                accepted.add((method, key))
            else:
                print(f"{method} at {key} is left out: {reason}")
    runs = []
    for model in sweep.models:
        smaller = {_budget_key(amount): amount for amount in _downsample_budgets(sweep, model)}
        for data in sweep.data:
            runs += _plan_pair(sweep, model, data, methods, budgets, accepted, smaller)
    return runs


def _plan_pair(
    sweep: Sweep,
    model: str,
    data: str,
    methods: Mapping[str, Any],
    budgets: Mapping[str, dict[str, Any]],
    accepted: set[Pair],
    smaller: Mapping[str, dict[str, Any]],
) -> list[PlannedRun]:
    """Return the runs of one model on one set of questions."""
    folder = Path(sweep.folder) / model / data
    required = accepted | {(DOWNSAMPLE, key) for key in smaller}
    runs, present, number = _existing_runs(folder, _configuration(sweep, model, data, folder), required)
    groups: dict[tuple[str, ...], list[str]] = {}  # missing budgets -> methods: a run compares all of both
    for method in methods:
        if missing := tuple(budget for budget in budgets if (method, budget) in accepted - present):
            groups.setdefault(missing, []).append(method)
    new: list[dict[str, Any]] = [
        {"compare": {"pruners": [methods[name] for name in names], "budgets": [budgets[key] for key in keys]}}
        for keys, names in groups.items()
    ]
    new += [
        {"transform": {"name": DOWNSAMPLE, **amount}}
        for key, amount in smaller.items()
        if (DOWNSAMPLE, key) not in present
    ]
    for offset, sections in enumerate(new, start=number + 1):
        path = folder / f"{offset:02d}"
        config = _configuration(sweep, model, data, path, **sections)
        runs.append(PlannedRun(path, config, _summarize(_pairs(config))))
    return runs


def _existing_runs(
    folder: Path, current: Mapping[str, Any], required: set[Pair]
) -> tuple[list[PlannedRun], set[Pair], int]:
    """Return the runs to resume, the pairs that finished and resumed runs have, and the highest number of a run."""
    from vtcframe.runs.command import SECTIONS  # lazily: it imports Lightning

    runs: list[PlannedRun] = []
    present: set[Pair] = set()
    number = 0
    for path in sorted(file.parent for file in folder.glob(f"*/{CONFIGURATION}") if file.parent.name.isdecimal()):
        number = max(number, int(path.name))
        config = shorten(read_config(str(path / CONFIGURATION), SECTIONS), SECTIONS)
        _check_same_sweep(path, config, current)
        pairs = _pairs(config)
        if not is_run_finished(path):
            if not required.issuperset(pairs):
                print(f"{path} is not resumed: it has methods or budgets that the sweep no longer includes")
                continue
            runs.append(PlannedRun(path, None, _summarize(pairs)))
        present.update(pairs)
    return runs, present, number


def _configuration(
    sweep: Sweep,
    model: str,
    data: str,
    folder: Path,
    compare: Mapping[str, Any] | None = None,
    transform: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a configuration of predict that compares pruners, or adds a transform after those of the data."""
    transforms = [*(sweep.data[data].get("transforms") or []), *([transform] if transform else [])]
    return {
        "model": {
            "backbone": sweep.models[model],
            **({"compare": compare} if compare else {}),
            "generation": sweep.generation,
        },
        "data": sweep.data[data] | ({"transforms": transforms} if transforms else {}),
        "trainer": sweep.trainer,
        "writer": {"folder": str(folder), "pictures": sweep.pictures if compare else 0},
    }


def _downsample_budgets(sweep: Sweep, model: str) -> Iterator[dict[str, Any]]:
    """Yield the budgets that the model meets if a picture is shrunk; print the reason for each of the others."""
    from PIL import Image
    from transformers import AutoProcessor

    from vtcframe.data.transforms import Downsample

    if not sweep.baselines:
        return
    try:
        processor = AutoProcessor.from_pretrained(bundled(sweep.models[model]["path"]), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"models.{model}: its processor cannot be loaded: {error}") from error
    for budget in sweep.budgets:
        amount = {name: budget[name] for name in ("tokens", "ratio") if budget.get(name) is not None}
        try:
            Downsample(**amount).fitted(processor)(Image.new("RGB", PICTURE))
        except ValueError as error:
            print(f"{model}: {DOWNSAMPLE} at {_budget_key(amount)} is left out: {error}")
        else:
            yield amount


def is_run_finished(folder: Path) -> bool:
    """Return whether the run in a folder is finished."""
    try:
        manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return manifest.get("merged") is not None and (folder / "predictions.jsonl").exists()


# Comparison of runs


def _budget_key(budget: Mapping[str, Any]) -> str:
    options = {
        name: value for name, value in budget.items() if value is not None and (name, value) != ("per", "sample")
    }
    return ", ".join(f"{name} {value}" for name, value in sorted(options.items()))


def _pairs(config: Mapping[str, Any]) -> list[Pair]:
    """Return the pairs of a configuration that `_configuration` made: those it compares, or the one of downsampling."""
    if compare := config["model"].get("compare"):
        return [
            (describe_pruner(pruner), _budget_key(budget))
            for pruner in compare["pruners"]
            for budget in compare["budgets"]
        ]
    transform = config["data"]["transforms"][-1]
    return [(DOWNSAMPLE, _budget_key({name: value for name, value in transform.items() if name != "name"}))]


def _summarize(pairs: Sequence[Pair]) -> str:
    methods, budgets = (", ".join(dict.fromkeys(column)) for column in zip(*pairs, strict=True))
    return f"{methods} at {budgets}"


def _check_same_sweep(path: Path, existing: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise UsageError if a run has another model, other questions or other options of generate."""
    before = dict(_identity(existing, downsampled="compare" not in existing["model"]))
    now = dict(_identity(current))
    keys = [key for key in dict.fromkeys((*before, *now)) if before.get(key) != now.get(key)]
    if keys:
        lines = [f"  {key}: {before.get(key)!r} there, {now.get(key)!r} here" for key in keys]
        raise UsageError("\n".join([f"{path} is of another sweep:", *lines, "give another folder, or other names"]))


def _identity(config: Mapping[str, Any], downsampled: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield key and value of what the runs of one model and one set of questions have in common."""
    yield "model.backbone", config["model"]["backbone"]
    yield "model.generation", config["model"]["generation"]
    yield "trainer.precision", config["trainer"].get("precision")
    transforms = config["data"].get("transforms") or []
    yield "data.transforms", transforms[:-1] if downsampled else transforms
    for key, value in config["data"].items():
        if key not in (*SPEED, "transforms"):
            yield f"data.{key}", value
