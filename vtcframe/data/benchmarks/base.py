"""What a benchmark is, and how its files are read."""

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vtcframe.config import UsageError
from vtcframe.metrics import Row, Score, columns, means
from vtcframe.sample import Sample, natural
from vtcframe.whole import replace_whole

SHORT = "\nAnswer the question using a single word or phrase."  # the wordings of LLaVA-1.5's evaluation
LETTER = "\nAnswer with the option's letter from the given choices directly."
LARGEST_CELL = 2**31 - 1  # characters: a cell may hold a picture


class Benchmark(ABC):
    """Reads a published benchmark's files as they are downloaded, and scores answers by its own rules.

    Components are frozen dataclasses, as the verbs are. Their `prompt` is what a question is followed by.
    """

    @abstractmethod
    def read(self, path: Path, images: Path | None) -> list[Sample]:
        """Read the questions of a file or folder. Pictures lie in `images`, else where the download has them.

        UsageError, naming file and question, for what is no such thing and for an id that comes twice.
        """

    def grade(self, row: Row) -> float | None:
        """How right an answer is, 0..1; None where that cannot be known."""
        return row.correct

    def score(self, rows: Sequence[Row]) -> dict[str, Score]:
        """Column -> score of what one method answered at one budget; the figure that papers report comes last.

        That is the mean grade by type of question and of "all", unless the benchmark has other rules.
        """
        return means(columns(rows), self.grade)

    def export(self, rows: Sequence[Row], folder: Path) -> list[Path]:
        """Write the answers of one method at one budget as the official tool or server takes them; return the files.

        Nothing, where there is none. A row without a prediction is written with an empty answer.
        """
        return []


@dataclass(frozen=True)
class ImageFolder(Benchmark):
    """One question about every picture in a folder and the folders in it; ids are the paths from there."""

    question: str

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        known = {ending for ending, form in Image.registered_extensions().items() if form in Image.OPEN}
        found = sorted((file for file in path.rglob("*") if file.suffix.lower() in known), key=natural)
        if not found:
            raise UsageError(f"there are no pictures in the folder {path}")
        return [Sample(file.relative_to(path).as_posix(), self.question, (file,)) for file in found]


def collect(path: Path, records: Iterable[tuple[str, Any]], make: Callable[[Any], Sample]) -> list[Sample]:
    """Make a sample of each record, which comes with its place.

    UsageError with that place for what `make` refuses and for an id that comes twice; with the `path` where there are
    no records.
    """
    samples: list[Sample] = []
    places: dict[str, str] = {}
    for place, record in records:
        with at(place):
            sample = make(record)
            if sample.id in places:
                raise UsageError(f"the id {sample.id!r} is that of {places[sample.id]} already: ids must differ")
        places[sample.id] = place
        samples.append(sample)
    if not samples:
        raise UsageError(f"{path} holds no questions")
    return samples


@contextmanager
def at(place: str | Path) -> Iterator[None]:
    """Let a UsageError tell its place."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error


def field(fields: Any, name: str, kind: Any) -> Any:
    """Return a field of a record. UsageError where it is missing, or not of its kind."""
    if not isinstance(fields, dict):
        raise UsageError(f"a JSON object with the field {name!r} was expected, this is a {type(fields).__name__}")
    if name not in fields:
        raise UsageError(f"there is no field {name!r}, only {', '.join(map(repr, fields)) or 'nothing'}")
    if not isinstance(fields[name], kind) or isinstance(fields[name], bool):
        raise UsageError(f"the field {name!r} must be {getattr(kind, '__name__', kind)}, got {fields[name]!r}")
    return fields[name]


def read_text(path: Path) -> str:
    """Read a file of questions. UsageError where that cannot be done."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the questions {path}: {error}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file. UsageError where that cannot be done."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is no JSON: {error}") from error


def numbered(path: Path, records: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield records with their places: FILE, question 1."""
    return ((f"{path}, question {number}", record) for number, record in enumerate(records, start=1))


def by_id(path: Path) -> Iterator[tuple[str, tuple[str, Any]]]:
    """Yield place, and id and record, of a JSON file's one object. UsageError where that is none."""
    told = read_json(path)
    if not isinstance(told, dict):
        raise UsageError(f"{path} holds a {type(told).__name__}, and not an object of questions by their ids")
    return ((f"{path}, question {name}", (name, record)) for name, record in told.items())


def read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield place and content of the lines of a JSONL file, without empty ones. UsageError for what is no JSON."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise UsageError(f"{path}, line {number}: no JSON: {error}") from error


def read_table(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return place and cells of the rows of a CSV or TSV file with a header. UsageError for what is none."""
    usual = csv.field_size_limit(LARGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read the questions {path}: {error}") from error
    finally:
        csv.field_size_limit(usual)
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise UsageError(f"{path}, row {number} has {'more' if None in row else 'fewer'} cells than the header")
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]


def write(path: Path, text: str) -> Path:
    """Write a file that has its name only once it is whole, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(path, [text.encode()])
    return path
