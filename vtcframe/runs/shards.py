"""Shards: files that processes append rows to, one for each process of each attempt.

The first line of a shard names its process, each following line has the rows of a sample as a JSON array, and the last
line marks its end. If a process is killed, at most its last line is incomplete; incomplete lines are never read.
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
HEARTBEAT_S = 5.0  # seconds between the heartbeats of a process
STALE_BEATS = 3  # missed heartbeats after which a process whose lock is free counts as dead
DEAD_BEATS = 60  # missed heartbeats after which a process counts as dead whatever its lock says


class Lock:
    """A file lock with a heartbeat. The operating system releases it when its process dies.

    Not every shared file system shows locks to other machines. Therefore the holder also updates the modification time
    of the file every HEARTBEAT_S seconds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path, thread_local=False)
        self._released = threading.Event()

    def acquire(self) -> bool:
        """Try to acquire the lock. False if another process holds it; True also on a file system without locks."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        except NotImplementedError:
            self.path.touch()
        threading.Thread(target=self._beat, daemon=True).start()
        return True

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            with suppress(OSError):  # a full disk, for example, is reported by those who write
                os.utime(self.path)

    def release(self) -> None:
        """Release the lock."""
        self._released.set()
        self._lock.release(force=True)


def is_locked(path: Path) -> bool | None:
    """Return whether a process holds a lock, as far as this machine can see; None on file systems without locks.

    The call changes the modification time of the file.
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
    """Detects the death of the process that holds a lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._modified = -1
        self._since = time.monotonic()

    def is_dead(self) -> bool:
        """Return whether the process has missed so many heartbeats that it counts as dead."""
        modified = self.path.stat().st_mtime_ns
        if modified != self._modified:
            self._modified, self._since = modified, time.monotonic()
        silence = (time.monotonic() - self._since) / HEARTBEAT_S
        if silence > DEAD_BEATS:
            return True
        if silence <= STALE_BEATS:
            return False
        free = is_locked(self.path) is False
        self._modified = self.path.stat().st_mtime_ns  # `is_locked` has changed it
        return free


@contextmanager
def report_write_errors(path: Path) -> Iterator[None]:
    """Turn OSError into UnfinishedError that names the file which cannot be written."""
    try:
        yield
    except OSError as error:
        raise UnfinishedError(f"cannot write {path}: {error.strerror or error}") from error


class Shard:
    """A shard that is being written. UnfinishedError if it cannot be written; the rows in it are kept."""

    def __init__(self, folder: Path, attempt: int, process: int) -> None:
        self.path = shard_path(folder, attempt, process)
        self._lock = Lock(self.path.with_suffix(".lock"))
        with report_write_errors(self.path):
            self._lock.acquire()
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        self._append([{"host": socket.gethostname(), "pid": os.getpid()}])

    def append(self, samples: Sequence[Sequence[dict[str, Any]]]) -> None:
        """Append the rows of each sample, and wait until they are on the disk."""
        self._append(samples)

    def _append(self, values: Sequence[Any]) -> None:
        rest = b"".join(json.dumps(value, ensure_ascii=False).encode() + b"\n" for value in values)
        with report_write_errors(self.path):
            while rest:  # a write may take only a part
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)

    def close(self, finished: bool = False) -> None:
        """Release the shard. `finished`: its process has answered all of its samples."""
        try:
            if finished:
                self._append([END])
        finally:
            os.close(self._file)
            self._lock.release()


def shard_path(folder: Path, attempt: int, process: int) -> Path:
    """Return the path of the shard of a process."""
    return folder / f"{attempt:04d}-{process:05d}.jsonl"


@dataclass(frozen=True, slots=True)
class RowLocation:
    """Where the rows of a sample are: one line of a shard, or several lines of a merged file."""

    path: Path
    offset: int
    length: int
    failed: bool

    def rows(self) -> list[dict[str, Any]]:
        """Read the rows."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            lines = file.read(self.length).splitlines()
        return [row for line in lines for row in _listed(json.loads(line))]


def row_locations(path: Path) -> Iterator[tuple[str, RowLocation]]:
    """Yield id and location of each sample of a shard or merged file, without an incomplete last line.

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
    """Return the rows of a line: the array of a shard, the one row of a merged file, or none for other lines."""
    if isinstance(value, list):
        return value
    return [] if value == END or value.keys() == {"host", "pid"} else [value]


def is_finished(path: Path) -> bool:
    """Return whether the process of a shard has answered all of its samples."""
    with path.open("rb") as file:
        end = json.dumps(END).encode() + b"\n"
        file.seek(max(0, path.stat().st_size - len(end)))
        return file.read() == end


def writer_of(path: Path) -> str:
    """Return a description of the process that writes a shard."""
    process = int(NAME.fullmatch(path.name)[2])  # pyright: ignore[reportOptionalSubscript] (shards are named so)
    try:
        with path.open(encoding="utf-8") as file:
            header = json.loads(file.readline())
        return f"process {process} (pid {header['pid']} on {header['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return f"process {process}"
