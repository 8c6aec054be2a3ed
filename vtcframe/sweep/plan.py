"""Which runs a sweep still needs: those that are not over, and new ones for what none of its folders has."""

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
from vtcframe.sweep.config import Sweep, refusal, words

PICTURE = 1024, 768  # pixels: of whether a model's processor makes fewer tokens of a smaller one
SPEED = "batch_size", "num_workers"  # of the data: they change no answer
Pair = tuple[str, str]  # a pruner with its options, or Downsample; a budget; both in words that tell them apart


@dataclass(frozen=True)
class Planned:
    """One run of predict, in a folder MODEL/DATA/NUMBER."""

    folder: Path
    config: Mapping[str, Any] | None  # None: it has one, and goes on
    told: str  # methods and budgets

    def __str__(self) -> str:
        return f"{self.folder}: {'goes on with ' if self.config is None else ''}{self.told}"


def plan(sweep: Sweep) -> list[Planned]:
    """Return what is to be run: unfinished runs that are still asked for, then new ones for what is missing.

    UsageError where the folder holds runs of another sweep.
    """
    methods = {words(spec): spec for spec in sweep.methods()}
    budgets = {_key(budget): budget for budget in sweep.budgets}
    served: set[Pair] = set()
    for method, spec in methods.items():
        for budget, amount in budgets.items():
            if (why := refusal(spec, amount)) is None:
                served.add((method, budget))
            else:
                print(f"{method} at {budget} is left out: {why}")
    runs = []
    for model in sweep.models:
        smaller = {_key(amount): amount for amount in _shrinkable(sweep, model)} if sweep.baselines else {}
        for data in sweep.data:
            runs += _planned(sweep, model, data, methods, budgets, served, smaller)
    return runs


def _planned(
    sweep: Sweep,
    model: str,
    data: str,
    methods: Mapping[str, Any],
    budgets: Mapping[str, dict[str, Any]],
    served: set[Pair],
    smaller: Mapping[str, dict[str, Any]],
) -> list[Planned]:
    from vtcframe.runs.command import SECTIONS  # lazily: it imports Lightning

    folder = Path(sweep.folder) / model / data
    shown = _configuration(sweep, model, data, folder)
    wanted = served | {(DOWNSAMPLE, one) for one in smaller}
    there: set[Pair] = set()
    runs, number = [], 0
    for path in sorted(file.parent for file in folder.glob(f"*/{CONFIGURATION}") if file.parent.name.isdecimal()):
        number = max(number, int(path.name))
        config = shorten(read_config(str(path / CONFIGURATION), SECTIONS), SECTIONS)
        _refuse_another(path, config, shown)
        pairs = _pairs(config)
        if not finished(path):
            if not wanted.issuperset(pairs):
                print(f"{path} is left unfinished: it asks for what is not asked for any more")
                continue
            runs.append(Planned(path, None, _told(pairs)))
        there.update(pairs)
    missing: dict[tuple[str, ...], list[str]] = {}  # budgets -> methods: each a run, which is all of them at all
    for method in methods:
        if left := tuple(budget for budget in budgets if (method, budget) in wanted - there):
            missing.setdefault(left, []).append(method)
    new: list[dict[str, Any]] = [
        {"compare": {"pruners": [methods[one] for one in own], "budgets": [budgets[one] for one in left]}}
        for left, own in missing.items()
    ]
    new += [
        {"transform": {"name": DOWNSAMPLE, **amount}}
        for one, amount in smaller.items()
        if (DOWNSAMPLE, one) not in there
    ]
    for at, what in enumerate(new, start=number + 1):
        path = folder / f"{at:02d}"
        config = _configuration(sweep, model, data, path, **what)
        runs.append(Planned(path, config, _told(_pairs(config))))
    return runs


def _configuration(
    sweep: Sweep,
    model: str,
    data: str,
    folder: Path,
    compare: Mapping[str, Any] | None = None,
    transform: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the configuration of predict: pruners that are compared, or a transform that comes behind the data's."""
    shown = [*(sweep.data[data].get("transforms") or []), *([transform] if transform else [])]
    return {
        "model": {
            "backbone": sweep.models[model],
            **({"compare": compare} if compare else {}),
            "generation": sweep.generation,
        },
        "data": sweep.data[data] | ({"transforms": shown} if shown else {}),
        "trainer": sweep.trainer,
        "writer": {"folder": str(folder), "pictures": sweep.pictures if compare else 0},
    }


def _shrinkable(sweep: Sweep, model: str) -> Iterator[dict[str, Any]]:
    """Yield the budgets of which the model makes that few tokens if a picture is shrunk; say why of the others."""
    from PIL import Image
    from transformers import AutoProcessor

    from vtcframe.data.transforms import Downsample

    try:
        processor = AutoProcessor.from_pretrained(bundled(sweep.models[model]["path"]), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"models.{model}: its processor cannot be loaded: {error}") from error
    for budget in sweep.budgets:
        amount = {name: budget[name] for name in ("tokens", "ratio") if budget.get(name) is not None}
        try:
            Downsample(**amount).fitted(processor)(Image.new("RGB", PICTURE))
        except ValueError as error:
            print(f"{model}: no {DOWNSAMPLE} at {_key(amount)} beside: {error}")
        else:
            yield amount


def finished(folder: Path) -> bool:
    """Whether the run in a folder is over."""
    try:
        told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return told.get("merged") is not None and (folder / "predictions.jsonl").exists()


# What tells runs apart


def _key(budget: Mapping[str, Any]) -> str:
    told = {name: value for name, value in budget.items() if value is not None and (name, value) != ("per", "sample")}
    return ", ".join(f"{name} {value}" for name, value in sorted(told.items()))


def _pairs(config: Mapping[str, Any]) -> list[Pair]:
    """Return what a configuration of ours compares, or the one budget that it shrinks pictures to."""
    if compare := config["model"].get("compare"):
        return [(words(one), _key(budget)) for one in compare["pruners"] for budget in compare["budgets"]]
    transform = config["data"]["transforms"][-1]
    return [(DOWNSAMPLE, _key({name: value for name, value in transform.items() if name != "name"}))]


def _told(pairs: Sequence[Pair]) -> str:
    methods, budgets = (", ".join(dict.fromkeys(own)) for own in zip(*pairs, strict=True))
    return f"{methods} at {budgets}"


def _refuse_another(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """UsageError where a run was made with another model, other questions or other options of generate."""
    before, now = dict(_facts(there, downsampled="compare" not in there["model"])), dict(_facts(here))
    keys = [key for key in dict.fromkeys((*before, *now)) if before.get(key) != now.get(key)]
    if keys:
        lines = [f"  {key}: {before.get(key)!r} there, {now.get(key)!r} here" for key in keys]
        raise UsageError("\n".join([f"{path} is of another sweep:", *lines, "give another folder, or other names"]))


def _facts(config: Mapping[str, Any], downsampled: bool = False) -> Iterator[tuple[str, Any]]:
    yield "model.backbone", config["model"]["backbone"]
    yield "model.generation", config["model"]["generation"]
    yield "trainer.precision", config["trainer"].get("precision")
    shown = config["data"].get("transforms") or []
    yield "data.transforms", shown[:-1] if downsampled else shown
    for key, value in config["data"].items():
        if key not in (*SPEED, "transforms"):
            yield f"data.{key}", value
