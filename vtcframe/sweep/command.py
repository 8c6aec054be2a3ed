"""`vtcframe sweep`: models, questions, methods and budgets of one file as ordinary runs; then the report."""

import argparse
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from vtcframe.atomic import write_atomic
from vtcframe.errors import UnfinishedError, UsageError
from vtcframe.runs.baselines import CONFIGURATION
from vtcframe.runs.shards import HEARTBEAT_S, is_locked
from vtcframe.sweep.config import asked
from vtcframe.sweep.plan import Planned, finished, plan

LOGGER = logging.getLogger(__name__)
FAILED, UNUSABLE, BROKEN_OFF = 1, 2, 3  # exit status, as of `vtcframe predict`


def main(
    arguments: list[str],
    before_runs: Callable[[], None] = lambda: None,
    after_runs: Callable[[Path], None] = lambda folder: None,
) -> int:
    """Run what is missing and return the exit status. UsageError for arguments or a file that cannot be used.

    `before_runs` is called before the first run and may raise UsageError. `after_runs` is called with the sweep's
    folder after the last run, if any run in it is finished.

    A run that fails does not keep the others from running: 3 if one of them broke off, else 2 if one could not be
    used, else 1 if samples failed.
    """
    options = argparse.ArgumentParser(
        prog="vtcframe sweep",
        description="Models, questions, methods and budgets of one file: runs what is missing, then writes the report.",
        epilog="--KEY=VALUE and --KEY.KEY=VALUE stand for what the file says.",
        allow_abbrev=False,
    )
    options.add_argument("--config", required=True, metavar="FILE", help="YAML with models, data, pruners, budgets")
    options.add_argument("--dry_run", action="store_true", help="only tell what would be run")
    given, rest = options.parse_known_args(arguments)
    before_runs()  # errors are raised now, and not after hours of running
    sweep = asked(given.config, rest)
    runs = plan(sweep)
    for planned in runs:
        print(planned, flush=True)
    if not runs:
        print("all of it is there")
    if given.dry_run:
        return 0
    statuses = {str(planned.folder): run(planned) for planned in runs}
    for folder, status in statuses.items():
        if status:
            LOGGER.error("%s: %s", folder, _told(status))
    folder = Path(sweep.folder)
    if any(finished(manifest.parent) for manifest in folder.rglob("run.json")):
        after_runs(folder)
    return max((status if status in (0, FAILED, UNUSABLE) else BROKEN_OFF for status in statuses.values()), default=0)


def _told(status: int) -> str:
    if status == FAILED:
        return "some samples failed, the report says why"
    if status == UNUSABLE:
        return "cannot be run as it is, see above"
    return f"broke off (exit status {status}): the same command goes on with it"


def run(planned: Planned) -> int:
    """Run predict with a configuration, which is put into its folder, and return the exit status."""
    file = planned.folder / CONFIGURATION
    if planned.config is not None:
        try:
            planned.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(file, [yaml.safe_dump(planned.config, sort_keys=False, allow_unicode=True).encode()])
        except OSError as error:
            raise UsageError(f"cannot write {file}: {error.strerror or error}") from error
    _await(planned.folder)
    return 0 if finished(planned.folder) else predict(file)


def predict(config: Path) -> int:
    """Run `vtcframe predict` as a process of its own, and hand a SIGTERM on to it: UnfinishedError once it left."""
    stopped: list[int] = []
    with subprocess.Popen([sys.executable, "-m", "vtcframe", "predict", "--config", str(config)]) as process:

        def stop(number: int, frame: object) -> None:
            stopped.append(number)
            process.terminate()

        before = signal.signal(signal.SIGTERM, stop)
        try:
            status = process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    if stopped:
        raise UnfinishedError("it was asked to stop")
    return status


def _await(folder: Path) -> None:
    """Wait while a process of a sweep that was killed is still at work there."""
    lock = folder / "parts" / "lock"
    if lock.exists() and is_locked(lock):
        print(f"{folder} is being run by another process: waiting for it", flush=True)
        while lock.exists() and is_locked(lock):
            time.sleep(HEARTBEAT_S / 10)
