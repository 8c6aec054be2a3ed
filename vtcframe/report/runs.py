"""What finished run folders hold: whose answers, to which questions, scored by which rules."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vtcframe.core.component_data import UNPRUNED as UNTOUCHED
from vtcframe.data.benchmarks.base import Benchmark
from vtcframe.data.old_rows import convert_run
from vtcframe.data.results import Prediction, Score, columns, format_budget, mean_scores
from vtcframe.errors import UsageError
from vtcframe.registry import find_entry
from vtcframe.runs.baselines import CONFIGURATION, DOWNSAMPLE

UNPRUNED = "unpruned"
READ = "model.backbone model.generation model.runs trainer.precision data.path data.benchmark data.transforms".split()
ENDING = re.compile(r"\.(jsonl|csv|tsv|parquet)$")  # of questions in a plain format


@dataclass(frozen=True)
class Run:
    """A finished run folder."""

    name: str  # its path below the folder that was asked for
    path: Path
    told: Mapping[str, Any]  # run.json
    rows: Sequence[Prediction]  # without views
    benchmark: Benchmark | None
    model: str = ""  # names that no other model and no other questions of the report bear
    data: str = ""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the run is of, by the keys of its configuration."""
        return self.told["run"]

    @property
    def downsampled(self) -> dict[str, Any] | None:
        """The budget of a baseline that shrinks pictures and prunes nothing; None for any other run."""
        transforms = self.facts["data.transforms"]
        if self.facts["model.runs"] != [UNTOUCHED] or not transforms or transforms[-1]["name"] != DOWNSAMPLE:
            return None
        return {key: value for key, value in transforms[-1].items() if key != "name"}

    @property
    def answerer(self) -> dict[str, Any]:
        """What makes its model another one."""
        return {key: self.facts[key] for key in ("model.backbone", "model.generation", "trainer.precision")}

    @property
    def questions(self) -> dict[str, Any]:
        """What makes its questions other ones."""
        asked = {key: value for key, value in self.facts.items() if key.startswith(("data.", "digest"))}
        shown = asked["data.transforms"]
        return asked | {"data.transforms": shown[:-1] if self.downsampled else shown}

    @property
    def configuration(self) -> str | None:
        """The YAML that a sweep wrote for it."""
        file = self.path / CONFIGURATION
        return file.read_text(encoding="utf-8") if file.exists() else None

    def grade(self, row: Prediction) -> float | None:
        """How right an answer is, 0..1."""
        right = row.correct if self.benchmark is None else self.benchmark.grade(row)
        return None if right is None else float(right)

    def score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        """Column -> score of what one method answered at one budget, the figure that papers report last."""
        if self.benchmark is None:
            return mean_scores(columns(rows, self.facts["data.groups"]), self.grade)
        return self.benchmark.score(rows)

    def answers(self) -> Iterator[tuple[str, str, str, Prediction]]:
        """Yield method without its seeds, the seeds, budget in words, and row of every answer."""
        for row in self.rows:
            if row.error is None:
                seeds, budget = list(_seeds(row.method)), row.budget
                label = _without(str(row.label), seeds)
                if self.downsampled:
                    label, seeds, budget = DOWNSAMPLE, [], self.downsampled
                yield label, ",".join(map(str, seeds)), format_budget(budget), row


@dataclass
class LoadedRuns:
    """What lies below some folders."""

    runs: list[Run] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)  # names of folders whose run is not over


def load_runs(folders: Iterable[Path]) -> LoadedRuns:
    """Read every finished run below these folders, in the order of their paths. UsageError where there is none."""
    here = LoadedRuns()
    given = list(folders)
    for folder in given:
        for manifest in sorted(folder.rglob("run.json")):
            path = manifest.parent
            name = path.relative_to(folder).as_posix() if path != folder else folder.name
            told = _told(manifest)
            if told["merged"] is None or not (path / "predictions.jsonl").exists():
                here.unfinished.append(name)
            elif path not in (run.path for run in here.runs):
                here.runs.append(Run(name, path, told, _rows(path), _benchmark(told["run"]["data.benchmark"], path)))
    if not here.runs:
        left = f" ({len(here.unfinished)} are not finished)" if here.unfinished else ""
        raise UsageError(f"there is no finished run below {', '.join(map(str, given))}{left}: run one first")
    models, data = _Names(), _Names()
    here.runs = [
        replace(run, model=models.of(_model(run), run.answerer), data=data.of(_data(run), run.questions))
        for run in here.runs
    ]
    return here


def _seeds(data: Any) -> Iterator[int]:
    """Yield the option `seed` of every component in data of a method, in their order."""
    values = (
        data.items() if isinstance(data, Mapping) else [("", value) for value in data] if isinstance(data, list) else ()
    )
    for key, value in values:
        if key == "seed" and value is not None:
            yield value
        else:
            yield from _seeds(value)


def _without(label: str, seeds: Sequence[int]) -> str:
    """Return the label of a method without the seeds that its data has."""
    for seed in seeds:
        option = f"seed={seed}"
        text = next((text for text in (f"{option}, ", f", {option}", option) if text in label), option)
        label = label.replace(text, "", 1)
    return label


class _Names:
    """Gives things that differ names that differ."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def of(self, name: str, facts: Mapping[str, Any]) -> str:
        told = json.dumps([name, facts], sort_keys=True)
        if told not in self._names:
            alike = sum(json.loads(other)[0] == name for other in self._names)
            self._names[told] = f"{name} ({alike + 1})" if alike else name
        return self._names[told]


def _model(run: Run) -> str:
    if run.configuration is not None:
        return run.path.parent.parent.name
    return short(run.facts["model.backbone"]["path"])


def _data(run: Run) -> str:
    if run.configuration is not None:
        return run.path.parent.name
    benchmark = run.facts["data.benchmark"]
    return ENDING.sub("", short(run.facts["data.path"])) if benchmark is None else benchmark["name"]


def short(path: str) -> str:
    """Return the last part of a path, of a name on the Hub or of a bundled one."""
    return re.split(r"[/:\\]", path.rstrip("/\\"))[-1]


def _told(manifest: Path) -> dict[str, Any]:
    try:
        told = json.loads(manifest.read_text(encoding="utf-8"))
        _ = told["merged"], told["attempts"], [told["run"][key] for key in READ]
        told["run"] = convert_run(told["run"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{manifest} does not say what run it is of ({error!r}): leave its folder out") from error
    return told


def _rows(path: Path) -> list[Prediction]:
    rows = []
    with (path / "predictions.jsonl").open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(Prediction.from_json(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise UsageError(f"{path}/predictions.jsonl, line {number}, is no row: {error}") from error
    return rows


def _benchmark(told: Mapping[str, Any] | None, path: Path) -> Benchmark | None:
    if told is None:
        return None
    try:
        return find_entry("benchmark", told["name"]).load()(**{key: told[key] for key in told if key != "name"})
    except (LookupError, ImportError, TypeError, ValueError) as error:
        raise UsageError(f"{path} was asked {told!r}, whose rules cannot be had: {error}") from error
