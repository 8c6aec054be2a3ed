"""The commands of a page: run as they are typed, and where that cannot be, their arguments checked."""

import argparse
import atexit
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

from packaging.requirements import InvalidRequirement, Requirement
from torch.distributed.run import get_args_parser as torchrun

import vtcframe_lightning
from support.page_folder import ROOT, Page
from vtcframe import cli
from vtcframe.config.short_names import expand_text
from vtcframe.config.type_hints import Kind
from vtcframe.runs import command as predict_command

assert predict_command  # imported here, because Lightning keeps the standard error that it finds then
NOT_RUN = {  # how a command begins -> why it is not run; what it asks of vtcframe is checked all the same
    "python3 dev.py test": "it is what runs this",
    "python3 dev.py docs": "serves until it is stopped; test_site builds the pages",
    "python3 dev.py bench": "measures for minutes",
    "vtcframe bench": "measures for minutes",
    "vtcframe explore": "serves until it is stopped",
    "source .venv/bin/activate": "this is that environment",
    "torchrun": "starts a process for each of many GPUs",
    "srun": "there is no SLURM here",
    "sbatch": "there is no SLURM here",
    "python ray_predict.py": "asks for GPUs; test_ray runs the script",
    "uv pip compile": "asks the package index",
    "ffmpeg": "is not needed for anything else",
}
SHELL = set("|&;<>")  # of whose signs a word of an unquoted operator is made
ANSWERED_ONCE = re.compile(r"(predict|sweep) --config configs/[\w-]+\.yaml")  # with nothing behind: it takes a minute


class WrongError(Exception):
    """An example that is not as the page says."""


def run(page: Page, command: str) -> tuple[int, str] | None:
    """Return exit status and output of a command; None for one of `NOT_RUN`, whose arguments were checked."""
    words = shlex.split(command, comments=True)
    if not_run(words):
        check(page, words)
        return None
    if words[:1] == ["cd"]:
        page.here = (page.here / words[1]).resolve()
        return (0, "") if page.here.is_dir() else (1, f"there is no folder {words[1]}")
    operators = shlex.shlex(command, posix=True, punctuation_chars=True)
    operators.whitespace_split = True
    if any(set(word) <= SHELL for word in operators):
        return shell(page, command)
    match words:
        case ["vtcframe" | "lightning", "predict" | "sweep", *_] if ANSWERED_ONCE.fullmatch(" ".join(words[1:])):
            status, out, runs = answered(*words[1:])
            shutil.copytree(runs, page.here / "runs", dirs_exist_ok=True)
            return status, out
        case ["vtcframe", *arguments]:
            return inside(page, lambda: cli.main(arguments))
        case ["python" | "python3", "-m", "vtcframe", *arguments]:
            return inside(page, lambda: cli.main(arguments), page.here)
        case ["lightning", *_]:
            return inside(page, lambda: typed(words, vtcframe_lightning.main))
        case ["python" | "python3", "dev.py", *arguments]:
            return developed(page, arguments)
        case ["pip", "install", *wanted] | ["python" | "python3", "-m", "pip", "install", *wanted]:
            return inside(page, lambda: install(page, wanted))
        case ["python" | "python3", script, *_] if script.endswith(".py"):
            file = page.here / script
            return inside(page, lambda: typed(words[1:], lambda: script_of(file)), file.parent)
        case _:
            return shell(page, command)


def inside(page: Page, function: Callable[[], Any], *path: Path) -> tuple[int, str]:
    """Run a command in this process: one of its own takes seconds to import what it needs."""
    out = io.StringIO()
    with page.entered(*path), redirect_stdout(out), redirect_stderr(out):
        try:
            status = function() or 0
        except SystemExit as left:
            status = left.code or 0
            if not isinstance(status, int):
                print(status)
                status = 1
    return status, out.getvalue()


def typed(words: list[str], function: Callable[[], Any]) -> Any:
    """Call what reads its arguments from sys.argv."""
    before, sys.argv = sys.argv, words
    try:
        return function()
    finally:
        sys.argv = before


def script_of(file: Path) -> None:
    runpy.run_path(str(file), run_name="__main__")


def shell(page: Page, command: str) -> tuple[int, str]:
    """Run what is no command of ours."""
    with page.entered():
        done = subprocess.run(
            ["bash", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=300,
        )  # fmt: skip
    return done.returncode, done.stdout


@cache
def answered(*arguments: str) -> tuple[int, str, Path]:
    """Run one of our configurations once for all pages; return exit status, output, and the folder of its runs."""
    page = Page("")
    atexit.register(page.close)
    return *inside(page, lambda: cli.main(list(arguments))), page.root / "runs"


def developed(page: Page, arguments: list[str]) -> tuple[int, str]:
    """Run what `python3 dev.py` runs, where that is vtcframe."""
    out, status = "", 0
    for command in commands_of_dev(arguments):
        if command[1:3] != ("-m", "vtcframe"):
            raise WrongError(f"dev.py {' '.join(arguments)} runs {' '.join(command)}: say in NOT_RUN why it is not run")
        ended = run(page, shlex.join(["vtcframe", *command[3:]]))
        assert ended is not None
        status, out = status or ended[0], out + ended[1]
    return status, out


def commands_of_dev(arguments: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the commands that dev.py would run once everything is installed."""
    dev = runpy.run_path(str(ROOT / "dev.py"), run_name="dev")
    main, recorded = dev["main"], []
    main.__globals__["setup"] = lambda *groups: None
    main.__globals__["run"] = lambda *command, **environment: recorded.append(tuple(map(str, command)))
    try:
        typed(["dev.py", *arguments], main)
    except SystemExit as left:
        raise WrongError(f"dev.py {' '.join(arguments)}: {left.code}") from left
    return recorded


# Installing


def install(page: Page, wanted: list[str]) -> None:
    """See that what is asked for exists, and put a reader's own distribution on the path."""
    options = argparse.ArgumentParser(prog="pip install")
    options.add_argument("-e", "--editable", action="append", default=[])
    options.add_argument("-U", "--upgrade", action="store_true")
    options.add_argument("-q", "--quiet", action="store_true")
    options.add_argument("requirements", nargs="*")
    given = options.parse_args(wanted)
    ours = {}
    for path in [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")]:
        project = tomllib.loads(path.read_text())["project"]
        ours[project["name"]] = set(project.get("optional-dependencies", {}))
    for one in [*given.editable, *given.requirements]:
        if (page.here / one / "pyproject.toml").is_file():
            page.install(page.here / one)
            continue
        try:
            asked = Requirement(one)
            extras = ours.get(asked.name)
            if extras is None:
                extras = set(distribution(asked.name).metadata.get_all("Provides-Extra") or ())
        except (InvalidRequirement, PackageNotFoundError) as error:
            raise WrongError(f"{one!r} is no folder of a distribution, and none that is installed: {error}") from error
        if unknown := asked.extras - extras:
            raise WrongError(f"{asked.name} has no extra {', '.join(unknown)}, only {', '.join(sorted(extras))}")


# What is not run


def not_run(words: list[str]) -> bool:
    return f"{' '.join(words)} ".startswith(tuple(f"{start} " for start in NOT_RUN))


def check(page: Page, words: list[str]) -> None:
    """Check a command without running it. WrongError for what could not be run anywhere."""
    match words:
        case ["python3", "dev.py", *arguments]:
            for command in commands_of_dev(arguments):
                if not (find_spec(command[2]) if command[1] == "-m" else (ROOT / command[1]).is_file()):
                    raise WrongError(f"{' '.join(words)} runs {' '.join(command)}, which is not there")
        case ["python", script, *options]:
            known = (ROOT / "docs" / "examples" / script).read_text()
            if unknown := [option for option in options if option.startswith("--") and f'"{option}"' not in known]:
                raise WrongError(f"{script} has no option {', '.join(unknown)}")
        case ["sbatch", script] if not (page.here / script).is_file():
            raise WrongError(f"there is no {script}")
        case ["torchrun", *arguments]:
            parsed(page, words, lambda: torchrun().parse_args(arguments) and 0)
    if "vtcframe" in words:
        arguments = words[words.index("vtcframe") + 1 :]
        parsed(page, words, lambda: parse_arguments(*arguments))


def parsed(page: Page, words: list[str], function: Callable[[], Any]) -> None:
    """Let something parse a command. WrongError where it refuses it."""
    status, said = inside(page, function)
    if status:
        raise WrongError(f"{' '.join(words)}: {said}")


def parse_arguments(command: str, *options: str) -> int:
    """Let vtcframe parse its arguments, do nothing else, and return the exit status."""
    if command == "predict":
        return cli.main([command, *options, "--print_config"])
    parse_args = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
        given = parse_args(parser, arguments)
        if command == "bench":
            for spec in given.pruner:
                expand_text(spec, Kind("pruner"), "pruner")
        raise SystemExit(0)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_only):
        cli.main([command, *options])
    return 2
