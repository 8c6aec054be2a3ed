"""The command `vtcframe`: finds the function of a command, and prints what goes wrong.

Modules are imported once their command is called, so that `--help`, `list` and a misspelled command answer at once.
"""

import difflib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vtcframe.errors import UnfinishedError, UsageError
from vtcframe.registry import Failure, entries, failures

HELP = """\
usage: vtcframe predict --config FILE [--KEY=VALUE ...]       answer questions with fewer visual tokens
       vtcframe explain --image FILE --question TEXT --tokens N
                                                              draw which tokens of a picture a pruner keeps
       vtcframe explore [--model PATH]                        compare two methods side by side in a browser
       vtcframe check MODEL [--image FILE ...] [--tokens N]   check every law on a checkpoint
       vtcframe sweep --config FILE [--KEY=VALUE ...]         run the missing models, questions, methods and budgets
       vtcframe report FOLDER [FOLDER ...] [--out NAME]       compare finished runs on a page and in Markdown
       vtcframe bench [--shape NAME | --model PATH]           measure what pruning costs and saves on this machine
       vtcframe list                                          list every installed component and its status
       vtcframe COMMAND --help                                list the options of a command

exit status: 0 success, 1 some samples failed or a law is broken, 2 invalid arguments or configuration,
             3 interrupted: rerun the same command to resume
"""
SUCCESS, UNUSABLE, INTERRUPTED = 0, 2, 3  # a command itself may return 1: samples failed, or a law is broken
COMMANDS = {  # command -> its function, which takes the arguments and returns the exit status
    "predict": "vtcframe.runs.command:main",
    "sweep": "vtcframe.cli:sweep",
    "report": "vtcframe.report.command:main",
    "bench": "vtcframe.profiling.command:main",
    "explain": "vtcframe.explore.explain_command:main",
    "explore": "vtcframe.explore.command:main",
    "list": "vtcframe.cli:list_components",
    "check": "vtcframe.testing.laws.checkpoint:main",
}
COMMANDS_WITH_PLUGINS = "predict", "sweep", "explore"  # these warn of plug-ins that are left out
LOGGER = logging.getLogger("vtcframe")


def main(argv: list[str] | None = None) -> int:
    """Run a command line, by default `sys.argv`, and return the exit status."""
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    with log_to_stderr():
        try:
            if command in ("-h", "--help"):
                print(HELP, end="")
                return SUCCESS
            if command not in COMMANDS:
                near = difflib.get_close_matches(command, COMMANDS, 1)
                raise UsageError(f"no command is called {command!r}." + (f" Did you mean {near[0]}?" if near else ""))
            if command in COMMANDS_WITH_PLUGINS:
                for failure in _failures():
                    LOGGER.warning("%s", failure)
            module, _, function = COMMANDS[command].partition(":")
            status = getattr(importlib.import_module(module), function)(arguments)
            sys.stdout.flush()
            return status
        except BrokenPipeError:  # the reader of a pipe ended, as in `vtcframe list | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return SUCCESS
        except UsageError as error:
            LOGGER.error("%s", error)
            return UNUSABLE
        except UnfinishedError as error:
            LOGGER.error("%s. Finished answers are kept: rerun the same command to resume", error)
            return INTERRUPTED


class StderrHandler(logging.Handler):
    """Prints records as `vtcframe: LEVEL: TEXT` to the present `sys.stderr`; those of level INFO without the level."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        print(f"vtcframe: {level}{record.getMessage()}", file=sys.stderr)


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Print records of the loggers `vtcframe...`, from INFO on, to standard error within the `with`."""
    handler, level = StderrHandler(), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
        LOGGER.removeHandler(handler)


def list_components(arguments: list[str]) -> int:
    """Print kind, name, distribution, version and status of every component, then of plug-ins that are left out."""
    if arguments:
        raise UsageError(f"list takes no arguments, got {' '.join(arguments)}")
    broken = _failures()
    lines = [("kind", "name", "distribution", "version", "status")]
    lines += sorted((entry.kind, entry.name, entry.distribution, entry.version, "ok") for entry in entries())
    lines += [
        ("plugin", failure.plugin, failure.distribution, failure.version, f"left out: {failure.cause}")
        for failure in broken
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip())
    return SUCCESS


def _failures() -> tuple[Failure, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the commands print failures in their own form
        return failures()


def sweep(arguments: list[str]) -> int:
    """Run the missing models, questions, methods and budgets of a sweep, then write its report."""
    from vtcframe.report.command import check_extra, write
    from vtcframe.sweep.command import main

    def write_report(folder: Path) -> None:
        print(f"written to {', '.join(map(str, write([folder], folder / 'report')))}")

    return main(arguments, before_runs=check_extra, after_runs=write_report)
