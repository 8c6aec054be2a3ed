"""The folder of a run: run.json describes it, parts/ has the rows until predictions.jsonl is written."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

from vtcframe.atomic import write_atomic
from vtcframe.errors import UnfinishedError, UsageError
from vtcframe.runs.shards import (
    HEARTBEAT_S,
    NAME,
    STALE_BEATS,
    HeartbeatMonitor,
    Lock,
    RowLocation,
    is_finished,
    is_locked,
    report_write_errors,
    row_locations,
    shard_path,
    writer_of,
)

Existing = Literal["resume", "replace", "mix"]
RunIdentity = Mapping[str, Any]  # key of the configuration, or of another value that rows depend on -> value
LISTED, WIDTH = 5, 100  # differences that an error lists, and characters of a value
START_OVER = "give another folder, or writer.existing: replace to start again"


class RunFolder:
    """A folder, with one run in it at a time.

    Args:
        path: The folder; created if it is missing.
        existing: What to do with an earlier run in it. "resume": resume the same run and refuse another; "mix": resume
            another run as well, so that rows of both are mixed; "replace": start again, and keep the old files until
            the new rows replace them.
    """

    def __init__(self, path: Path, existing: Existing = "resume") -> None:
        if existing not in Existing.__args__:
            raise ValueError(f"existing must be one of {', '.join(Existing.__args__)}, got {existing!r}")
        self.path, self.existing = path, existing
        self.predictions, self.manifest, self.parts = path / "predictions.jsonl", path / "run.json", path / "parts"
        self._lock = Lock(self.parts / "lock")
        self._has_lock = False

    # Called by the first process before any process answers

    def begin(self, facts: RunIdentity, processes: int, machine: str = "") -> tuple[int, set[str]]:
        """Lock the folder; return the number of the attempt and the ids that earlier attempts have answered.

        `machine` is recorded in run.json; no answer depends on it.

        UsageError if another process uses the folder, if it holds another run, or if its files cannot be read.
        """
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            self._has_lock = self._lock.acquire()
        except OSError as error:
            raise UsageError(f"cannot write into the folder {self.path}: {error.strerror or error}") from error
        if not self._has_lock:
            raise UsageError(f"another run uses {self.path}: give this run another folder, or wait")
        try:
            return self._begin(facts, processes, machine)
        except BaseException:
            self.leave()
            raise

    def _begin(self, facts: RunIdentity, processes: int, machine: str) -> tuple[int, set[str]]:
        self._await_orphans()
        manifest = self._read_manifest()
        numbers = [entry["attempt"] for entry in manifest["attempts"]] + [number for number, _ in self._shards()]
        attempt = max(numbers, default=0) + 1
        if self.existing != "replace" and not manifest["attempts"] and self.predictions.exists():
            raise UsageError(f"{self.path} has predictions.jsonl, but no run.json that describes the run: {START_OVER}")
        locations = {} if self.existing == "replace" else self._row_locations(manifest)
        if not locations:  # earlier attempts, if any, wrote no rows
            manifest |= {"first": attempt, "merged": None}
        elif self.existing == "resume":
            self._check_same_run(manifest, facts)
        answered = {identity for identity, location in locations.items() if not location.failed}
        entry = {"attempt": attempt, "started": _now(), "processes": processes, "answered earlier": len(answered)}
        entry |= {"machine": machine} if machine else {}
        if self.existing == "mix" and manifest["run"] not in ({}, facts):
            entry["mixed with"] = manifest["run"]
        manifest |= {"run": dict(facts), "hash": _hash(facts), "attempts": [*manifest["attempts"], entry]}
        self._write_manifest(manifest)
        return attempt, answered

    def _read_manifest(self) -> dict[str, Any]:
        """Read run.json. UsageError if it does not describe a run."""
        if not self.manifest.exists():
            return {"run": {}, "hash": None, "first": 1, "merged": None, "attempts": []}
        try:
            manifest = json.loads(self.manifest.read_text(encoding="utf-8"))
            _ = manifest["run"].items(), manifest["first"], manifest["merged"]
            _ = [entry["attempt"] for entry in manifest["attempts"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if self.existing == "replace":
                return {"run": {}, "hash": None, "first": 1, "merged": None, "attempts": []}
            raise UsageError(f"{self.manifest} does not describe a run ({error}): {START_OVER}") from error
        return manifest

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        with report_write_errors(self.manifest):
            write_atomic(self.manifest, [json.dumps(manifest, ensure_ascii=False, indent=1).encode() + b"\n"])

    def _check_same_run(self, manifest: Mapping[str, Any], facts: RunIdentity) -> None:
        """Raise UsageError, listing the differences, if run.json describes another run."""
        before = manifest["run"]
        now = json.loads(json.dumps(facts))
        keys = [key for key in dict.fromkeys((*before, *now)) if before.get(key) != now.get(key)]
        if keys:
            lines = [f"  {key}: {_brief(before.get(key))} there, {_brief(now.get(key))} here" for key in keys[:LISTED]]
            rest = [f"  and {len(keys) - LISTED} more"] if len(keys) > LISTED else []
            cure = f"{START_OVER}, or writer.existing: mix to resume all the same"
            raise UsageError("\n".join([f"{self.path} holds another run:", *lines, *rest, cure]))

    def _shards(self) -> list[tuple[int, Path]]:
        """Return attempt and path of every shard, in the order of the attempts."""
        shards = [(match, path) for path in self.parts.iterdir() if (match := NAME.fullmatch(path.name))]
        return sorted((int(match[1]), path) for match, path in shards)

    def _await_orphans(self) -> None:
        """Wait for processes of an attempt whose first process has ended: they notice it, and exit."""
        until = time.monotonic() + 4 * STALE_BEATS * HEARTBEAT_S
        for _, path in self._shards():
            lock = path.with_suffix(".lock")
            while lock.exists() and is_locked(lock):
                if time.monotonic() > until:
                    raise UsageError(f"{writer_of(path)} of an earlier attempt still runs in {self.path}: end it")
                time.sleep(HEARTBEAT_S / 10)

    # Rows

    def _row_locations(self, manifest: Mapping[str, Any]) -> dict[str, RowLocation]:
        """Return id -> location of the rows of each sample: the latest with an answer, else the latest."""
        sources = [self.predictions] if manifest["merged"] and self.predictions.exists() else []
        sources += [path for attempt, path in self._shards() if attempt >= manifest["first"]]
        locations: dict[str, RowLocation] = {}
        for source in sources:
            for identity, location in row_locations(source):
                if identity not in locations or locations[identity].failed or not location.failed:
                    locations[identity] = location
        return locations

    # Called by the first process after it has answered its samples

    def await_others(self, attempt: int, processes: int, stopped: Callable[[], bool]) -> None:
        """Wait until every process has answered its samples. UnfinishedError if one has ended, or if `stopped`."""
        running = {path: HeartbeatMonitor(path.with_suffix(".lock")) for path in self._attempt(attempt, processes)}
        while True:
            running = {path: monitor for path, monitor in running.items() if not is_finished(path)}
            if not running:
                return
            dead = [path for path, monitor in running.items() if monitor.is_dead() and not is_finished(path)]
            if dead:
                raise UnfinishedError(f"{', '.join(map(writer_of, dead))} of this run has ended")
            if stopped():
                raise UnfinishedError("the run received SIGTERM")
            time.sleep(HEARTBEAT_S / 20)

    def _attempt(self, attempt: int, processes: int) -> list[Path]:
        return [shard_path(self.parts, attempt, process) for process in range(processes)]

    def merge(self, order: Sequence[str]) -> None:
        """Write predictions.jsonl in the order of these ids. UnfinishedError if one of them has no rows."""
        manifest = self._read_manifest()
        locations = self._row_locations(manifest)
        missing = [identity for identity in order if identity not in locations]
        if missing:
            raise UnfinishedError(
                f"{len(missing)} of {len(order)} samples were not answered, {missing[0]!r} first: if trainer."
                "limit_predict_batches left them out, give data.limit instead"
            )
        with report_write_errors(self.predictions):
            write_atomic(self.predictions, (_line(row) for identity in order for row in locations[identity].rows()))
        manifest["merged"] = _now()
        self._write_manifest(manifest)
        for _, path in self._shards():
            path.unlink()
            path.with_suffix(".lock").unlink(missing_ok=True)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of predictions.jsonl."""
        with self.predictions.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)

    def leave(self) -> None:
        """Release the folder if it is locked, and remove parts/ if it is empty."""
        if not self._has_lock:
            return
        self._has_lock = False
        self._lock.path.unlink(missing_ok=True)
        self._lock.release()
        if self.parts.is_dir() and not any(self.parts.iterdir()):
            self.parts.rmdir()


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _hash(value: Any) -> str:
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def _brief(value: Any) -> str:
    return shorten(repr(value), WIDTH, placeholder=" ...")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
