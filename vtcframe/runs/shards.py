"""What processes leave while they run: a file for each process of each attempt, only ever appended to.

A shard is a line that tells who writes it, a line for each sample (its rows as one JSON array), and at the end a line
that says so. A killed process leaves at most its last line torn, and torn lines are never read.
"""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vtcframe.errors import UnfinishedError, UsageError

NAME = re.compile(r"(\d{4,})-(\d{5,})\.jsonl")  # attempt, process
END = {"end": True}
HEARTBEAT_S = 5.0  # seconds between a process's signs of life
STALE_BEATS, DEAD_BEATS = 3, 60  # pulses without one until it is gone: if its lock is free, or whatever its lock says


class Lock:
    """Held as long as its process lives: the system lets go of it when that dies, however it does.

    Not every shared file system tells other machines so. The file's time, which moves on by the pulse, does.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock, self._over = path, FileLock(path, thread_local=False), threading.Event()

    def take(self) -> bool:
        """Try to. False where another process has it; True also on a file system that knows no locks."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        except NotImplementedError:
            self.path.touch()
        threading.Thread(target=self._beat, daemon=True).start()
        return True

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            with suppress(OSError):  # a full disk, say, is told by those who write
                os.utime(self.path)

    def give(self) -> None:
        """Let go of it."""
        self._over.set()
        self._lock.release(force=True)


def is_locked(path: Path) -> bool | None:
    """Tell whether a process has a lock, as far as this machine is told; None where there are no locks.

    Being asked moves the file's time on.
    """
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except NotImplementedError:
        return None
    lock.release()
    return False


class HeartbeatMonitor:
    """Tells whether the process that has a lock is gone."""

    def __init__(self, path: Path) -> None:
        self.path, self._time, self._since = path, -1, time.monotonic()

    def gone(self) -> bool:
        """True once there was no sign of life for some pulses."""
        moved = self.path.stat().st_mtime_ns
        if moved != self._time:
            self._time, self._since = moved, time.monotonic()
        silence = (time.monotonic() - self._since) / HEARTBEAT_S
        if silence > DEAD_BEATS:
            return True
        if silence <= STALE_BEATS:
            return False
        free = is_locked(self.path) is False
        self._time = self.path.stat().st_mtime_ns  # asking was no sign of life
        return free


@contextmanager
def report_write_errors(path: Path) -> Iterator[None]:
    """Turn what keeps a file from being written into UnfinishedError, naming it."""
    try:
        yield
    except OSError as error:
        raise UnfinishedError(f"cannot write {path}: {error.strerror or error}") from error


class Shard:
    """One that is being written. UnfinishedError where it cannot be; what it holds already is kept."""

    def __init__(self, folder: Path, attempt: int, process: int) -> None:
        self.path = shard_path(folder, attempt, process)
        self._lock = Lock(self.path.with_suffix(".lock"))
        with report_write_errors(self.path):
            self._lock.take()
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        self._append([{"host": socket.gethostname(), "pid": os.getpid()}])

    def append(self, samples: Sequence[Sequence[dict[str, Any]]]) -> None:
        """Add the rows of each sample, and wait until the disk has them."""
        self._append(samples)

    def _append(self, values: Sequence[Any]) -> None:
        left = b"".join(json.dumps(value, ensure_ascii=False).encode() + b"\n" for value in values)
        with report_write_errors(self.path):
            while left:  # the system may take a part only
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)

    def close(self, finished: bool = False) -> None:
        """Let go of it; `finished`: it holds all that its process was to answer."""
        try:
            if finished:
                self._append([END])
        finally:
            os.close(self._file)
            self._lock.give()


def shard_path(folder: Path, attempt: int, process: int) -> Path:
    """Return where a process's shard lies."""
    return folder / f"{attempt:04d}-{process:05d}.jsonl"


@dataclass(frozen=True, slots=True)
class RowLocation:
    """Where a sample's rows stand: one line of a shard, or their own lines of a merged file."""

    path: Path
    offset: int
    length: int
    failed: bool

    def rows(self) -> list[dict[str, Any]]:
        """Read them."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            lines = file.read(self.length).splitlines()
        return [row for line in lines for row in _listed(json.loads(line))]


def row_locations(path: Path) -> Iterator[tuple[str, RowLocation]]:
    """Yield id and place of each sample of a shard or merged file, a torn last line left out.

    UsageError, naming file, line and cure, for what cannot be read or was not written by a run.
    """
    last: tuple[str, RowLocation] | None = None
    try:
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    rows = _listed(json.loads(line))
                    identity, failed = rows[0]["id"] if rows else None, any(row["error"] is not None for row in rows)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise UsageError(
                        f"{path}, line {number} is no row of a run: remove the file, and its samples are answered again"
                    ) from error
                start, offset = offset, offset + len(line)
                if last is not None and last[0] == identity:
                    start = last[1].offset
                    failed |= last[1].failed
                elif last is not None:
                    yield last
                last = None if identity is None else (identity, RowLocation(path, start, offset - start, failed))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    if last is not None:
        yield last


def _listed(value: Any) -> list[dict[str, Any]]:
    """Return the rows of a line: a shard's array, a merged file's one row, or none of a shard's first and last line."""
    if isinstance(value, list):
        return value
    return [] if value == END or value.keys() == {"host", "pid"} else [value]


def is_finished(path: Path) -> bool:
    """Tell whether a shard's process has answered all that it was to."""
    with path.open("rb") as file:
        end = json.dumps(END).encode() + b"\n"
        file.seek(max(0, path.stat().st_size - len(end)))
        return file.read() == end


def writer_of(path: Path) -> str:
    """Return who writes a shard, in words."""
    process = int(NAME.fullmatch(path.name)[2])  # pyright: ignore[reportOptionalSubscript] (shards are named so)
    try:
        with path.open(encoding="utf-8") as file:
            told = json.loads(file.readline())
        return f"process {process} (pid {told['pid']} on {told['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return f"process {process}"
