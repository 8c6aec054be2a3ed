"""The plain formats of questions: JSONL, CSV, TSV and Parquet."""

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from vtcframe.data.files import collect, field, read_jsonl, read_table
from vtcframe.data.sample import Embedded, Sample
from vtcframe.errors import UsageError
from vtcframe.registry import entries


def read_samples(path: Path, images: Path | None = None) -> list[Sample]:
    """Read questions of the format that the ending of the file names, or of questions.jsonl in a folder.

    Fields: `id`, `question`, `image` or `images`, `video` (a folder of frames, an animated GIF or WebP, or a list of
    frames) and, if known, `answer` and `type`; other fields are ignored. Paths are relative to the folder `images`, by
    default that of the file. The cells of a table may hold pictures. Without the column `id`, the number of the row is
    the id. UsageError, naming file and place, for a record that is no question, an id that is not unique, or a file
    without records.
    """
    if path.is_dir():
        if not (path / "questions.jsonl").is_file():
            raise UsageError(
                f"the folder {path} has no questions.jsonl. One question about all of its pictures is "
                'data.benchmark: {name: ImageFolder, question: "..."}'
            )
        path = path / "questions.jsonl"
    if (read_records := FORMATS.get(path.suffix.lower())) is None:
        names = ", ".join(entry.name for entry in entries() if entry.kind == "benchmark")
        raise UsageError(
            f"{path}: give a {' '.join(FORMATS)} file, or the benchmark of the file as data.benchmark: {names}"
        )
    folder = path.parent if images is None else images
    return collect(path, read_records(path, folder), lambda fields: _sample(fields, folder))


def read_groups(path: Path) -> dict[str, list[str]]:
    """Read groups.json beside questions: name of a group -> types of question that are also scored together.

    Without that file there are no groups. UsageError, naming the file, for anything but lists of types by names.
    """
    file = (path if path.is_dir() else path.parent) / "groups.json"
    if not file.is_file():
        return {}
    try:
        groups = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the groups of question types {file}: {error}") from error
    if not isinstance(groups, dict) or not all(
        isinstance(types, list) and all(isinstance(name, str) for name in types) for types in groups.values()
    ):
        raise UsageError(
            f'{file} holds {groups!r}: give names with lists of question types, {{"group": ["type", "type"]}}'
        )
    return groups


@dataclass(frozen=True)
class InText(Embedded):
    """A picture in base64, in a cell of a table."""

    text: str
    place: str

    def __str__(self) -> str:
        return self.place

    def files(self) -> Sequence[BinaryIO]:
        return [_decode_base64(self.text)]


@dataclass(frozen=True)
class InParquet(Embedded):
    """The pictures of one cell: bytes, base64, a path, the struct {bytes, path} of Hugging Face, or a list of these.

    A process reads a whole row group and keeps the last one, so that it reads each only once if rows come in order.
    """

    path: Path
    column: str
    group: int
    row: int  # in the row group
    number: int  # in the file, from 1
    folder: Path  # that paths are relative to

    def __str__(self) -> str:
        return f"{self.path}, row {self.number}, column {self.column}"

    def files(self) -> Sequence[Path | BinaryIO]:
        cell = _group(self.path, self.column, self.group)[self.row].as_py()
        return [_open(value, self.folder) for value in (cell if isinstance(cell, list) else [cell])]


@lru_cache(maxsize=1)
def _group(path: Path, column: str, group: int) -> Any:
    import pyarrow.parquet as pq  # an extra, installed: the questions were read with it

    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column], use_threads=False).column(column)


def _open(value: Any, folder: Path) -> Path | BinaryIO:
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return BytesIO(value)
    if isinstance(value, str):
        return folder / value if _is_path(value) else _decode_base64(value)
    raise TypeError(f"a picture is bytes, base64 or a path, got {value!r}")


def _is_path(text: str) -> bool:
    """Return whether a text is a path and not base64, which has no full stop."""
    return "." in text


def _decode_base64(text: str) -> BinaryIO:
    try:
        return BytesIO(base64.b64decode("".join(text.split()), validate=True))
    except binascii.Error as error:
        raise ValueError(f"{text[:40]!r} is no base64 ({error}), and a path has a full stop in it") from error


def _table(path: Path, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, (place, cells) in enumerate(read_table(path), start=1):
        fields: dict[str, Any] = {"id": number}
        fields |= {name: cell for name, cell in cells.items() if cell or name in ("id", "question")}
        if "image" in fields and not _is_path(fields["image"]):
            fields["image"] = InText(fields["image"], f"{place}, column image")
        yield place, fields


def _parquet(path: Path, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError(f"{path} is read by pyarrow: pip install 'vtcframe[parquet]'") from error
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "question" not in names:
                raise UsageError(f"{path} has no column 'question', only {', '.join(map(repr, names))}")
            records = file.read(columns=[name for name in ("id", "question", "answer", "type") if name in names])
            heights = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"cannot read the questions {path}: {error}") from error
    spots = ((group, row) for group, height in enumerate(heights) for row in range(height))
    pictured = [name for name in ("image", "images") if name in names]
    for number, ((group, row), record) in enumerate(zip(spots, records.to_pylist(), strict=True), start=1):
        cells: dict[str, Any] = {name: InParquet(path, name, group, row, number, folder) for name in pictured}
        if "images" in cells:
            cells["images"] = [cells["images"]]
        yield f"{path}, row {number}", {"id": number, **record, **cells}


FORMATS: dict[str, Callable[[Path, Path], Iterator[tuple[str, Any]]]] = {
    ".jsonl": lambda path, folder: read_jsonl(path),
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}


def _sample(fields: dict[str, Any], folder: Path) -> Sample:
    identity = field(fields, "id", str | int)
    question = field(fields, "question", str)
    if ("image" in fields and "images" in fields) or not fields.keys() & {"image", "images", "video"}:
        raise UsageError("give `image` (one path) or `images` (a list of paths), exactly one of them, or a `video`")
    images = fields["images"] if "images" in fields else [fields["image"]] if "image" in fields else []
    if not (_all(images, str | Embedded) and (images or "video" in fields)):
        raise UsageError(f"pictures are given as paths, at least one a question, got {images!r}")
    clips = ()
    if "video" in fields:
        video = fields["video"]
        if not isinstance(video, str) and not _all(video, str):
            raise UsageError(f"a video is given as a path or as a list of its frames' paths, got {video!r}")
        clips = (tuple(folder / name for name in ([video] if isinstance(video, str) else video)),)
    answer, kind = (field({name: None} | fields, name, str | None) for name in ("answer", "type"))
    sources = tuple(image if isinstance(image, Embedded) else folder / image for image in images)
    return Sample(str(identity), question, sources, answer, kind, clips)


def _all(values: Any, kind: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
