"""Reading of files of questions, with the place of each record for errors."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vtcframe.atomic import write_atomic
from vtcframe.data.sample import Sample
from vtcframe.errors import UsageError


def natural_key(path: Path) -> list[tuple[int, str]]:
    """Return a sort key for paths that orders numbers by their value: frame 9 before frame 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]


LARGEST_CELL = 2**31 - 1  # characters: a cell may hold a picture in base64


def collect(path: Path, records: Iterable[tuple[str, Any]], make: Callable[[Any], Sample]) -> list[Sample]:
    """Return the sample of each of `records`, which are pairs of a place and a record.

    UsageError with the place of a record that `make` refuses or whose id is not unique, and with `path` if there are no
    records.
    """
    samples: list[Sample] = []
    places: dict[str, str] = {}
    for place, record in records:
        with add_place(place):
            sample = make(record)
            if sample.id in places:
                raise UsageError(f"the id {sample.id!r} is also that of {places[sample.id]}: ids must be unique")
        places[sample.id] = place
        samples.append(sample)
    if not samples:
        raise UsageError(f"{path} holds no questions")
    return samples


@contextmanager
def add_place(place: str | Path) -> Iterator[None]:
    """Put a place before the message of a UsageError."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error


def field(fields: Any, name: str, kind: Any) -> Any:
    """Return a field of a record. UsageError if it is missing, or of another type."""
    if not isinstance(fields, dict):
        raise UsageError(f"a JSON object with the field {name!r} was expected, this is a {type(fields).__name__}")
    if name not in fields:
        raise UsageError(f"there is no field {name!r}, only {', '.join(map(repr, fields)) or 'nothing'}")
    if not isinstance(fields[name], kind) or isinstance(fields[name], bool):
        raise UsageError(f"the field {name!r} must be {getattr(kind, '__name__', kind)}, got {fields[name]!r}")
    return fields[name]


def read_text(path: Path) -> str:
    """Read a file of questions. UsageError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the questions {path}: {error}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file. UsageError if it cannot be read."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is no JSON: {error}") from error


def numbered(path: Path, records: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield place and record: the place of the first is "FILE, question 1"."""
    return ((f"{path}, question {number}", record) for number, record in enumerate(records, start=1))


def by_id(path: Path) -> Iterator[tuple[str, tuple[str, Any]]]:
    """Yield place and (id, record) of a JSON file with one object. UsageError for another value."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds a {type(content).__name__}, and not an object of questions by their ids")
    return ((f"{path}, question {name}", (name, record)) for name, record in content.items())


def read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield place and content of the lines of a JSONL file that are not empty. UsageError for a line without JSON."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise UsageError(f"{path}, line {number}: no JSON: {error}") from error


def read_table(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return place and cells of the rows of a CSV or TSV file with a header. UsageError for another file."""
    limit = csv.field_size_limit(LARGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read the questions {path}: {error}") from error
    finally:
        csv.field_size_limit(limit)
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise UsageError(f"{path}, row {number} has {'more' if None in row else 'fewer'} cells than the header")
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]


def write_text(path: Path, text: str) -> Path:
    """Write a file atomically, with its parent folders, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, [text.encode()])
    return path
