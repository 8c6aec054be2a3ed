"""Files that have their names only once they are whole."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield where to write: behind the `with` the disk has it, and it takes the name `path`. Not after an exception."""
    part = path.with_name(path.name + ".part")
    yield part
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def write_atomic(path: Path, lines: Iterable[bytes]) -> None:
    """Give a file new content: under its name there is the old or the new one, and nothing between."""
    with atomic_path(path) as part, part.open("wb") as file:
        file.writelines(lines)
