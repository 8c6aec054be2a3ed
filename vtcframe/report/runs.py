"""Finished run folders: their rows, manifests, benchmarks, and the names of their models and data."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vtcframe.core.serialization import UNPRUNED as UNTOUCHED
from vtcframe.data.benchmarks.base import Benchmark
from vtcframe.data.old_rows import convert_run
from vtcframe.data.results import Prediction, Score, columns, format_budget, mean_scores
from vtcframe.errors import UsageError
from vtcframe.registry import find_entry
from vtcframe.runs.baselines import CONFIGURATION, DOWNSAMPLE

UNPRUNED = "unpruned"
REQUIRED_KEYS = (
    "model.backbone model.generation model.runs trainer.precision data.path data.benchmark data.transforms".split()
)
DATA_SUFFIX = re.compile(r"\.(jsonl|csv|tsv|parquet)$")  # of question files in a plain format


@dataclass(frozen=True)
class Run:
    """A finished run folder."""

    name: str  # path relative to the folder on the command line
    path: Path
    manifest: Mapping[str, Any]  # content of run.json
    rows: Sequence[Prediction]  # without views
    benchmark: Benchmark | None
    model: str = ""  # a name that is unique among the models of the report
    data: str = ""  # a name that is unique among the data of the report

    @property
    def facts(self) -> Mapping[str, Any]:
        """The configuration of the run, by dotted key."""
        return self.manifest["run"]

    @property
    def downsampled(self) -> dict[str, Any] | None:
        """The budget of a baseline that downsamples pictures without pruning; None for any other run."""
        transforms = self.facts["data.transforms"]
        if self.facts["model.runs"] != [UNTOUCHED] or not transforms or transforms[-1]["name"] != DOWNSAMPLE:
            return None
        return {key: value for key, value in transforms[-1].items() if key != "name"}

    @property
    def model_facts(self) -> dict[str, Any]:
        """The facts that distinguish one model from another."""
        return {key: self.facts[key] for key in ("model.backbone", "model.generation", "trainer.precision")}

    @property
    def data_facts(self) -> dict[str, Any]:
        """The facts that distinguish one set of questions from another, without the downsampling of a baseline."""
        facts = {key: value for key, value in self.facts.items() if key.startswith(("data.", "digest"))}
        transforms = facts["data.transforms"]
        return facts | {"data.transforms": transforms[:-1] if self.downsampled else transforms}

    @property
    def configuration(self) -> str | None:
        """The YAML configuration that a sweep wrote for the run; None without a sweep."""
        file = self.path / CONFIGURATION
        return file.read_text(encoding="utf-8") if file.exists() else None

    def grade(self, row: Prediction) -> float | None:
        """Return the correctness of an answer, 0..1; None if no reference answer exists."""
        grade = row.correct if self.benchmark is None else self.benchmark.grade(row)
        return None if grade is None else float(grade)

    def score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        """Return the score of each column for one method at one budget. The headline figure comes last."""
        if self.benchmark is None:
            return mean_scores(columns(rows, self.facts["data.groups"]), self.grade)
        return self.benchmark.score(rows)

    def labelled_rows(self) -> Iterator[tuple[str, str, str, Prediction]]:
        """Yield for every answer its method without seeds, the seeds, the budget as text, and the row."""
        for row in self.rows:
            if row.error is None:
                seeds = list(_find_seeds(row.method))
                budget = row.budget
                label = _remove_seeds(str(row.label), seeds)
                if self.downsampled:
                    label = DOWNSAMPLE
                    seeds = []
                    budget = self.downsampled
                yield label, ",".join(map(str, seeds)), format_budget(budget), row


@dataclass
class LoadedRuns:
    """The runs below some folders."""

    runs: list[Run] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)  # names of the folders of unfinished runs


def load_runs(folders: Iterable[Path]) -> LoadedRuns:
    """Read every finished run below the folders, in the order of their paths. Raises UsageError if there is none."""
    loaded = LoadedRuns()
    roots = list(folders)
    for folder in roots:
        for manifest_file in sorted(folder.rglob("run.json")):
            path = manifest_file.parent
            name = path.relative_to(folder).as_posix() if path != folder else folder.name
            manifest = _read_manifest(manifest_file)
            if manifest["merged"] is None or not (path / "predictions.jsonl").exists():
                loaded.unfinished.append(name)
            elif path not in (run.path for run in loaded.runs):
                benchmark = _load_benchmark(manifest["run"]["data.benchmark"], path)
                loaded.runs.append(Run(name, path, manifest, _read_rows(path), benchmark))
    if not loaded.runs:
        unfinished = f" ({len(loaded.unfinished)} are not finished)" if loaded.unfinished else ""
        raise UsageError(f"there is no finished run below {', '.join(map(str, roots))}{unfinished}: run one first")
    models = _UniqueNames()
    data = _UniqueNames()
    loaded.runs = [
        replace(
            run,
            model=models.name_for(_model_name(run), run.model_facts),
            data=data.name_for(_data_name(run), run.data_facts),
        )
        for run in loaded.runs
    ]
    return loaded


def _find_seeds(data: Any) -> Iterator[int]:
    """Yield the option `seed` of every component in a method's data, in order."""
    values = (
        data.items() if isinstance(data, Mapping) else [("", value) for value in data] if isinstance(data, list) else ()
    )
    for key, value in values:
        if key == "seed" and value is not None:
            yield value
        else:
            yield from _find_seeds(value)


def _remove_seeds(label: str, seeds: Sequence[int]) -> str:
    """Return the label of a method without the options `seed=...` of its data."""
    for seed in seeds:
        option = f"seed={seed}"
        text = next((text for text in (f"{option}, ", f", {option}", option) if text in label), option)
        label = label.replace(text, "", 1)
    return label


class _UniqueNames:
    """Assigns different names to objects with different facts."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def name_for(self, name: str, facts: Mapping[str, Any]) -> str:
        """Return `name`, with a number appended if it is already used for other facts."""
        key = json.dumps([name, facts], sort_keys=True)
        if key not in self._names:
            count = sum(json.loads(other)[0] == name for other in self._names)
            self._names[key] = f"{name} ({count + 1})" if count else name
        return self._names[key]


def _model_name(run: Run) -> str:
    if run.configuration is not None:
        return run.path.parent.parent.name
    return last_part(run.facts["model.backbone"]["path"])


def _data_name(run: Run) -> str:
    if run.configuration is not None:
        return run.path.parent.name
    benchmark = run.facts["data.benchmark"]
    return DATA_SUFFIX.sub("", last_part(run.facts["data.path"])) if benchmark is None else benchmark["name"]


def last_part(path: str) -> str:
    """Return the last part of a path, of a Hub name or of the name of a bundled file."""
    return re.split(r"[/:\\]", path.rstrip("/\\"))[-1]


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        _ = manifest["merged"], manifest["attempts"], [manifest["run"][key] for key in REQUIRED_KEYS]
        manifest["run"] = convert_run(manifest["run"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is not a valid run manifest ({error!r}): leave its folder out") from error
    return manifest


def _read_rows(path: Path) -> list[Prediction]:
    rows = []
    with (path / "predictions.jsonl").open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(Prediction.from_json(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise UsageError(f"{path}/predictions.jsonl, line {number}, is not a row: {error}") from error
    return rows


def _load_benchmark(data: Mapping[str, Any] | None, path: Path) -> Benchmark | None:
    if data is None:
        return None
    try:
        return find_entry("benchmark", data["name"]).load()(**{key: data[key] for key in data if key != "name"})
    except (LookupError, ImportError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: the benchmark {data!r} cannot be loaded: {error}") from error
