"""The folder of a run: predictions.jsonl once it is whole, parts/ while it is not, run.json that says what it is of."""

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
RunIdentity = Mapping[str, Any]  # what a run is: a key of the configuration, or of what it stands on, -> its value
LISTED, WIDTH = 5, 100  # differences that an error tells, and characters of a value
START_OVER = "give another folder, or writer.existing: replace to begin anew"


class RunFolder:
    """One folder, and one run in it at a time.

    Args:
        path: Where it is; made if it is not there.
        existing: What becomes of an earlier run in it. "resume": the same run goes on, another one is refused; "mix":
            another one goes on, too, and its rows stand among those that are there; "replace": it begins anew, and
            what is there stays until the new rows take its place.
    """

    def __init__(self, path: Path, existing: Existing = "resume") -> None:
        if existing not in Existing.__args__:
            raise ValueError(f"existing must be one of {', '.join(Existing.__args__)}, got {existing!r}")
        self.path, self.existing = path, existing
        self.predictions, self.manifest, self.parts = path / "predictions.jsonl", path / "run.json", path / "parts"
        self._lock, self._mine = Lock(self.parts / "lock"), False

    # What the first of the processes does, before any of them answers

    def begin(self, facts: RunIdentity, processes: int, machine: str = "") -> tuple[int, set[str]]:
        """Lock it, and return the attempt's number and the ids that have their answers from earlier ones.

        `machine` is told in run.json; no answer depends on it.

        UsageError where another run has it, where it is of another run, or where its files cannot be read.
        """
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            self._mine = self._lock.take()
        except OSError as error:
            raise UsageError(f"cannot write into the folder {self.path}: {error.strerror or error}") from error
        if not self._mine:
            raise UsageError(f"another run is at work in {self.path}: give this one a folder of its own, or wait")
        try:
            return self._begin(facts, processes, machine)
        except BaseException:
            self.leave()
            raise

    def _begin(self, facts: RunIdentity, processes: int, machine: str) -> tuple[int, set[str]]:
        self._await_orphans()
        told, shards = self._told(), self._shards()
        attempt = max([0, *(one["attempt"] for one in told["attempts"]), *(number for number, _ in shards)]) + 1
        if self.existing != "replace" and not told["attempts"] and self.predictions.exists():
            raise UsageError(f"{self.path} holds predictions, but no run.json that says of what: {START_OVER}")
        known = {} if self.existing == "replace" else self._answered(told)
        if not known:  # earlier attempts, if there were some, came to nothing
            told |= {"first": attempt, "merged": None}
        elif self.existing == "resume":
            self._refuse_another(told, facts)
        answered = {identity for identity, place in known.items() if not place.failed}
        entry = {"attempt": attempt, "started": _now(), "processes": processes, "answered earlier": len(answered)}
        entry |= {"machine": machine} if machine else {}
        if self.existing == "mix" and told["run"] not in ({}, facts):
            entry["mixed with"] = told["run"]
        told |= {"run": dict(facts), "hash": _hash(facts), "attempts": [*told["attempts"], entry]}
        self._tell(told)
        return attempt, answered

    def _told(self) -> dict[str, Any]:
        """Read run.json. UsageError for one that is none."""
        if not self.manifest.exists():
            return {"run": {}, "hash": None, "first": 1, "merged": None, "attempts": []}
        try:
            told = json.loads(self.manifest.read_text(encoding="utf-8"))
            _ = told["run"].items(), told["first"], told["merged"], [one["attempt"] for one in told["attempts"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if self.existing == "replace":
                return {"run": {}, "hash": None, "first": 1, "merged": None, "attempts": []}
            raise UsageError(f"{self.manifest} does not say what run it is of ({error}): {START_OVER}") from error
        return told

    def _tell(self, told: Mapping[str, Any]) -> None:
        with report_write_errors(self.manifest):
            write_atomic(self.manifest, [json.dumps(told, ensure_ascii=False, indent=1).encode() + b"\n"])

    def _refuse_another(self, told: Mapping[str, Any], facts: RunIdentity) -> None:
        there, here = told["run"], json.loads(json.dumps(facts))
        keys = [key for key in dict.fromkeys((*there, *here)) if there.get(key) != here.get(key)]
        if keys:
            lines = [f"  {key}: {_brief(there.get(key))} there, {_brief(here.get(key))} here" for key in keys[:LISTED]]
            more = [f"  and {len(keys) - LISTED} more"] if len(keys) > LISTED else []
            cure = f"{START_OVER}, or writer.existing: mix to go on all the same"
            raise UsageError("\n".join([f"{self.path} holds another run:", *lines, *more, cure]))

    def _shards(self) -> list[tuple[int, Path]]:
        """Return attempt and path of every shard, in the order in which they were begun."""
        found = [(match, path) for path in self.parts.iterdir() if (match := NAME.fullmatch(path.name))]
        return sorted((int(match[1]), path) for match, path in found)

    def _await_orphans(self) -> None:
        """Wait for processes of an attempt whose first process is gone: they notice it, and leave."""
        until = time.monotonic() + 4 * STALE_BEATS * HEARTBEAT_S
        for _, path in self._shards():
            lock = path.with_suffix(".lock")
            while lock.exists() and is_locked(lock):
                if time.monotonic() > until:
                    raise UsageError(f"{writer_of(path)} of an earlier attempt is still at work in {self.path}: end it")
                time.sleep(HEARTBEAT_S / 10)

    # What is there

    def _answered(self, told: Mapping[str, Any]) -> dict[str, RowLocation]:
        """Return where the rows of each sample stand: those with an answer before others, then the latest."""
        sources = [self.predictions] if told["merged"] and self.predictions.exists() else []
        sources += [path for attempt, path in self._shards() if attempt >= told["first"]]
        found: dict[str, RowLocation] = {}
        for source in sources:
            for identity, place in row_locations(source):
                if identity not in found or found[identity].failed or not place.failed:
                    found[identity] = place
        return found

    # What the first of the processes does once it has answered its own

    def await_others(self, attempt: int, processes: int, stopped: Callable[[], bool]) -> None:
        """Wait until every process has answered its samples. UnfinishedError if one is gone, or if `stopped`."""
        left = {path: HeartbeatMonitor(path.with_suffix(".lock")) for path in self._attempt(attempt, processes)}
        while True:
            left = {path: watch for path, watch in left.items() if not is_finished(path)}
            if not left:
                return
            lost = [path for path, watch in left.items() if watch.gone() and not is_finished(path)]
            if lost:
                raise UnfinishedError(f"{', '.join(map(writer_of, lost))} of this run is gone")
            if stopped():
                raise UnfinishedError("it was asked to stop")
            time.sleep(HEARTBEAT_S / 20)

    def _attempt(self, attempt: int, processes: int) -> list[Path]:
        return [shard_path(self.parts, attempt, process) for process in range(processes)]

    def merge(self, order: Sequence[str]) -> None:
        """Write predictions.jsonl in the order of these ids. UnfinishedError where one has no rows."""
        told = self._told()
        found = self._answered(told)
        missing = [identity for identity in order if identity not in found]
        if missing:
            raise UnfinishedError(
                f"{len(missing)} of {len(order)} samples were not asked, {missing[0]!r} first: if trainer."
                "limit_predict_batches left them out, give data.limit instead"
            )
        with report_write_errors(self.predictions):
            write_atomic(self.predictions, (_line(row) for identity in order for row in found[identity].rows()))
        told["merged"] = _now()
        self._tell(told)
        for _, path in self._shards():
            path.unlink()
            path.with_suffix(".lock").unlink(missing_ok=True)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of predictions.jsonl."""
        with self.predictions.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)

    def leave(self) -> None:
        """Let go of the folder, if it was taken, and of parts/ if nothing is left in it."""
        if not self._mine:
            return
        self._mine = False
        self._lock.path.unlink(missing_ok=True)
        self._lock.give()
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
