"""`vtcframe sweep`: run the models, questions, methods and budgets of one file, then write the report."""

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
from vtcframe.sweep.config import read_sweep
from vtcframe.sweep.planning import PlannedRun, is_run_finished, plan_runs

LOGGER = logging.getLogger(__name__)
FAILED, UNUSABLE, INTERRUPTED = 1, 2, 3  # exit status, as of `vtcframe predict`


def main(
    arguments: list[str],
    before_runs: Callable[[], None] = lambda: None,
    after_runs: Callable[[Path], None] = lambda folder: None,
) -> int:
    """Run what is missing and return the exit status. UsageError for arguments or a file that cannot be used.

    `before_runs` is called before the first run and may raise UsageError. `after_runs` is called with the sweep's
    folder after the last run, if any run in it is finished.

    The other runs go on if a run fails. The status is 3 if a run was interrupted, else 2 if the configuration of one
    cannot be used, else 1 if samples failed.
    """
    options = argparse.ArgumentParser(
        prog="vtcframe sweep",
        description="Run the missing models, questions, methods and budgets of one file, then write the report.",
        epilog="--KEY=VALUE and --KEY.KEY=VALUE replace values of the file.",
        allow_abbrev=False,
    )
    options.add_argument("--config", required=True, metavar="FILE", help="YAML with models, data, pruners, budgets")
    options.add_argument("--dry_run", action="store_true", help="print the runs and do not start them")
    parsed, rest = options.parse_known_args(arguments)
    before_runs()  # its errors are raised before hours of running
    sweep = read_sweep(parsed.config, rest)
    runs = plan_runs(sweep)
    for run in runs:
        print(run, flush=True)
    if not runs:
        print("every run is finished")
    if parsed.dry_run:
        return 0
    statuses = {str(run.folder): start_run(run) for run in runs}
    for folder, status in statuses.items():
        if status:
            LOGGER.error("%s: %s", folder, _describe_status(status))
    folder = Path(sweep.folder)
    if any(is_run_finished(manifest.parent) for manifest in folder.rglob("run.json")):
        after_runs(folder)
    return max((status if status in (0, FAILED, UNUSABLE) else INTERRUPTED for status in statuses.values()), default=0)


def _describe_status(status: int) -> str:
    if status == FAILED:
        return "some samples failed, the report says why"
    if status == UNUSABLE:
        return "its configuration cannot be used, see above"
    return f"interrupted (exit status {status}): rerun the same command to resume"


def start_run(run: PlannedRun) -> int:
    """Write the configuration of a run to its folder, run predict with it, and return the exit status."""
    file = run.folder / CONFIGURATION
    if run.config is not None:
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(file, [yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True).encode()])
        except OSError as error:
            raise UsageError(f"cannot write {file}: {error.strerror or error}") from error
    _wait_for_other_process(run.folder)
    return 0 if is_run_finished(run.folder) else predict(file)


def predict(config: Path) -> int:
    """Run `vtcframe predict` in a new process and forward a SIGTERM to it; UnfinishedError once it has exited."""
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
        raise UnfinishedError("the sweep received SIGTERM")
    return status


def _wait_for_other_process(folder: Path) -> None:
    """Wait while a process of an earlier, killed sweep still runs in a folder."""
    lock = folder / "parts" / "lock"
    if lock.exists() and is_locked(lock):
        print(f"{folder} is being run by another process: waiting for it", flush=True)
        while lock.exists() and is_locked(lock):
            time.sleep(HEARTBEAT_S / 10)
