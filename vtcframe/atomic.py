"""Atomic writes: a file gets its name only after its content is complete and on disk."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` after the block.

    The data is synced to disk before the rename. After an exception in the block `path` does not change.
    """
    part = path.with_name(path.name + ".part")
    yield part
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def write_atomic(path: Path, lines: Iterable[bytes]) -> None:
    """Replace the content of a file atomically: readers get either the old or the new content."""
    with atomic_path(path) as part, part.open("wb") as file:
        file.writelines(lines)
