"""The command `vtcframe`: dispatch, and messages on standard error."""

import importlib
import logging
import subprocess
import sys

import pytest

from vtcframe import cli
from vtcframe.errors import UnfinishedError, UsageError


def command(monkeypatch, function):
    """Let the command `report` be a function of this test."""
    monkeypatch.setattr("vtcframe.report.command.main", function)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_a_function_that_help_names(name):
    module, _, function = cli.COMMANDS[name].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert f"vtcframe {name} " in cli.HELP


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UsageError("cannot read x"), 2, "vtcframe: error: cannot read x\n"),
        (
            UnfinishedError("the disk is full"),
            3,
            "vtcframe: error: the disk is full. Finished answers are kept: rerun the same command to resume\n",
        ),
    ],
)
def test_errors_are_a_line_and_an_exit_status(monkeypatch, capsys, error, status, message):
    def fail(arguments):
        raise error

    command(monkeypatch, fail)
    assert cli.main(["report", "a"]) == status
    assert capsys.readouterr().err == message


def test_a_misspelled_command_is_answered_with_the_nearest(capsys):
    assert cli.main(["lits"]) == 2
    assert capsys.readouterr().err == "vtcframe: error: no command is called 'lits'. Did you mean list?\n"


def test_log_records_are_lines_on_standard_error_while_a_command_runs_and_plain_logging_otherwise(monkeypatch, capsys):
    logger = logging.getLogger("vtcframe.anything")

    def log(arguments):
        logger.debug("detail")
        logger.info("progress")
        logger.warning("odd: %s", "x")
        logger.error("wrong")
        return 0

    package = logging.getLogger("vtcframe")
    before = package.level, list(package.handlers)
    command(monkeypatch, log)
    assert cli.main(["report"]) == 0
    lines = "vtcframe: progress\nvtcframe: warning: odd: x\nvtcframe: error: wrong\n"
    assert capsys.readouterr().err == lines
    assert (package.level, package.handlers) == before
    log([])
    assert capsys.readouterr().err == ""


def test_help_and_a_misspelled_command_import_nothing_heavy():
    code = (
        "import sys\nfrom vtcframe.cli import main\nmain(['--help']), main(['lits'])\n"
        "print(sorted({'torch', 'lightning', 'transformers', 'jsonargparse'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("[]\n")
