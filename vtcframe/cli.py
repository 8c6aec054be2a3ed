"""The command `vtcframe`. torch is imported only once there is something to compute."""

import difflib
import sys
import warnings

from vtcframe.config import UsageError, resolve
from vtcframe.registry import Failure, entries, failures

HELP = """\
usage: vtcframe predict --config FILE [--KEY=VALUE ...]   answer questions with fewer visual tokens
       vtcframe list                                      every installed component and its status
       vtcframe predict --help                            every option of predict

exit status: 0 done, 1 some samples failed, 2 the configuration cannot be used
"""
DONE, SAMPLES_FAILED, UNUSABLE = 0, 1, 2


def main(argv: list[str] | None = None) -> int:
    """Run the command line, `sys.argv` unless given, and return the exit status."""
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        if command in ("-h", "--help"):
            print(HELP, end="")
            return DONE
        if command not in COMMANDS:
            near = difflib.get_close_matches(command, COMMANDS, 1)
            raise UsageError(f"no command is called {command!r}." + (f" Did you mean {near[0]}?" if near else ""))
        return COMMANDS[command](arguments)
    except UsageError as error:
        print(f"vtcframe: error: {error}", file=sys.stderr)
        return UNUSABLE


def list_components(arguments: list[str]) -> int:
    """Print kind, name, distribution, version and status of every component, then the plugins that were left out."""
    if arguments:
        raise UsageError(f"list takes no arguments, got {' '.join(arguments)}")
    lost = _left_out()
    lines = [("kind", "name", "distribution", "version", "status")]
    lines += sorted((entry.kind, entry.name, entry.distribution, entry.version, "ok") for entry in entries())
    lines += [("plugin", one.plugin, one.distribution, one.version, f"left out: {one.cause}") for one in lost]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip())
    return DONE


def _left_out() -> tuple[Failure, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # commands tell it in their own words
        return failures()


def predict(arguments: list[str]) -> int:
    """Run the predict loop as the configuration says."""
    for failure in _left_out():
        print(f"vtcframe: warning: {failure}", file=sys.stderr)
    resolved = resolve(arguments)
    from vtcframe.predict_command import run  # not before a typo could be answered: it imports torch

    failed = run(resolved)
    if not failed:
        return DONE
    names = ", ".join(failed[:10]) + (f" and {len(failed) - 10} more" if len(failed) > 10 else "")
    print(f"vtcframe: {len(failed)} samples failed, their rows say why: {names}", file=sys.stderr)
    return SAMPLES_FAILED


COMMANDS = {"predict": predict, "list": list_components}
