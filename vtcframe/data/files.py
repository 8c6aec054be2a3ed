"""TODO: vtcframe/data/files.py."""

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
    """Sort key by which frame 9 comes before frame 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]


LARGEST_CELL = 2**31 - 1  # characters: a cell may hold a picture


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
    write_atomic(path, [text.encode()])
    return path
