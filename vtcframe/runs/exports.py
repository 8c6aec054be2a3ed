"""Other formats of predictions.jsonl: a column for each field of a row, as JSON unless it is text or a number."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from vtcframe.atomic import atomic_path
from vtcframe.data.results import Prediction
from vtcframe.errors import UsageError
from vtcframe.runs.shards import report_write_errors

ARROW = {str: "string", int: "int64", float: "double"}
GROUP = 10_000  # rows in a row group of a Parquet file


def _arrow(declared: Any) -> str | None:
    """Return the name of a field's type in Arrow, or None if it is written as JSON."""
    options = get_args(declared) if isinstance(declared, UnionType) else (declared,)
    return next((ARROW[kind] for kind in options if kind in ARROW), None)


COLUMNS = {field.name: _arrow(field.type) for field in fields(Prediction)}


def check_format(form: str) -> None:
    """Raise UsageError, before the run, for a format that cannot be written in this environment."""
    if form == "parquet" and find_spec("pyarrow") is None:
        raise UsageError("Parquet is written by pyarrow, which is not installed: pip install 'vtcframe[parquet]'")


def export(form: str, rows: Iterable[Mapping[str, Any]], path: Path) -> Path:
    """Write rows in a format beside the file `path`, and return the new path. UnfinishedError if that fails."""
    path = path.with_suffix(f".{form}")
    with report_write_errors(path), atomic_path(path) as part:
        FORMS[form](({name: _cell(row.get(name), kind) for name, kind in COLUMNS.items()} for row in rows), part)
    return path


def _cell(value: Any, kind: str | None) -> Any:
    return value if kind is not None or value is None else json.dumps(value, ensure_ascii=False)


def _csv(rows: Iterator[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(COLUMNS))
        table.writeheader()
        table.writerows(rows)


def _parquet(rows: Iterator[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa  # an extra
    import pyarrow.parquet as pq

    schema = pa.schema([(name, kind or "string") for name, kind in COLUMNS.items()])
    with pq.ParquetWriter(path, schema) as file:
        while group := list(islice(rows, GROUP)):
            file.write_table(pa.Table.from_pylist(group, schema))


FORMS: dict[str, Callable[[Iterator[dict[str, Any]], Path], None]] = {"csv": _csv, "parquet": _parquet}
