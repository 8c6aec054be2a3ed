"""The command `vtcframe`. torch is imported only once there is something to compute."""

import argparse
import difflib
import os
import sys
import warnings
from pathlib import Path

import yaml

from vtcframe.config.short_names import resolve
from vtcframe.errors import UnfinishedError, UsageError
from vtcframe.profiling import command as bench
from vtcframe.registry import Failure, entries, failures

HELP = """\
usage: vtcframe predict --config FILE [--KEY=VALUE ...]       answer questions with fewer visual tokens
       vtcframe explain --image FILE --question TEXT --tokens N
                                                              what a pruner keeps of your picture, drawn and in numbers
       vtcframe explore [--model PATH]                        two methods side by side, in a browser
       vtcframe check MODEL [--image FILE ...] [--tokens N]   the laws, one by one, on a checkpoint of yours
       vtcframe sweep --config FILE [--KEY=VALUE ...]         models, questions, methods, budgets: what is missing
       vtcframe report FOLDER [FOLDER ...] [--out NAME]       finished runs side by side, as a page and as Markdown
       vtcframe bench [--shape NAME | --model PATH]           what pruning costs and saves on this machine
       vtcframe list                                          every installed component and its status
       vtcframe COMMAND --help                                every option of predict, explain or check

exit status: 0 done, 1 some samples failed or a law is broken, 2 what was given cannot be used,
             3 the run broke off: the same command goes on with it
"""
DONE, SAMPLES_FAILED, LAW_BROKEN, UNUSABLE, BROKEN_OFF = 0, 1, 1, 2, 3


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
        status = COMMANDS[command](arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `vtcframe list | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except UsageError as error:
        print(f"vtcframe: error: {error}", file=sys.stderr)
        return UNUSABLE
    except UnfinishedError as error:
        print(
            f"vtcframe: error: {error}. What was answered is kept: the same command goes on with the rest",
            file=sys.stderr,
        )
        return BROKEN_OFF


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


def _warn_of_failures() -> None:
    for failure in _left_out():
        print(f"vtcframe: warning: {failure}", file=sys.stderr)


def predict(arguments: list[str]) -> int:
    """Run the predict loop as the configuration says."""
    _warn_of_failures()
    resolved = resolve(arguments)
    from vtcframe.runs.command import run  # not before a typo could be answered: it imports torch

    failed = run(resolved)
    if not failed:
        return DONE
    names = ", ".join(failed[:10]) + (f" and {len(failed) - 10} more" if len(failed) > 10 else "")
    print(f"vtcframe: {len(failed)} samples failed, their rows say why: {names}", file=sys.stderr)
    return SAMPLES_FAILED


def explain_one(arguments: list[str]) -> int:
    """Draw what a pruner keeps of a picture or video, and write the numbers beside it."""
    options = argparse.ArgumentParser(
        prog="vtcframe explain",
        description="What a pruner keeps of pictures or of a video: a PNG, and a JSON of the same name.",
    )
    options.add_argument("--model", default="vtcframe:tiny", help="folder or name on the Hugging Face Hub; bundled one")
    options.add_argument(
        "--image", nargs="+", action="extend", default=[], metavar="FILE", help="pictures to ask about"
    )
    options.add_argument(
        "--video", nargs="+", default=[], metavar="FRAME", help="frames in their order, a folder of them, a GIF or WebP"
    )
    options.add_argument("--question", required=True)
    options.add_argument(
        "--pruner", default="{name: VtcCls, last: 3}", metavar="SPEC", help='name, YAML or YAML file; "%(default)s"'
    )
    options.add_argument("--tokens", type=int, help="visual tokens that stay")
    options.add_argument("--ratio", type=float, help="or the fraction of them that stays")
    options.add_argument("--out", type=Path, default=Path("explain.png"), help="where to; %(default)s when not given")
    options.add_argument("--attn", help="attention kernel, for example sdpa or eager")
    _add_placement(options)
    given = options.parse_args(arguments)
    if not (given.image or given.video):
        raise UsageError("there is nothing to explain: give --image or --video")
    if given.out.suffix.lower() != ".png":
        raise UsageError(
            f"--out {given.out} is no .png: the picture is written there, the numbers to a .json beside it"
        )
    (option,) = resolve([f"--pruner={_spec(given.pruner)}"])  # a typo is answered before torch is imported
    from vtcframe.config.parser import pruner_of
    from vtcframe.core.budget import Budget
    from vtcframe.explore.explain import explain

    try:
        budget = Budget(given.tokens, given.ratio)
    except ValueError as error:
        raise UsageError(f"--tokens and --ratio: {error}") from error
    placement = given.dtype, given.device, given.attn
    found = explain(given.model, given.question, pruner_of(option), budget, given.image, given.video, *placement)
    numbers = found.save(given.out)
    for name in ("unpruned", "pruned"):
        told = found.numbers[name]
        print(f"{name:9} {told['visual_tokens']:6} visual tokens  {told['answer']}")
    print(f"written to {given.out} and {numbers}")
    return DONE


def _spec(text: str) -> str:
    """Return the text of a YAML file, or the name or YAML that was given itself."""
    path = Path(text)
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        return text
    try:
        text = path.read_text(encoding="utf-8")
        yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the pruner {path}: {' '.join(str(error).split())}") from error
    return text


def _add_placement(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights"
    )
    options.add_argument("--device", default="cpu", help="where to run, for example cuda")


def check_model(arguments: list[str]) -> int:
    """Print which laws hold on a checkpoint."""
    options = argparse.ArgumentParser(prog="vtcframe check", description="The laws, one by one, on a checkpoint.")
    options.add_argument("model", help="folder, name on the Hugging Face Hub, or vtcframe:tiny")
    options.add_argument(
        "--image", nargs="+", action="extend", default=[], help="pictures to ask about, not the bundled ones"
    )
    options.add_argument("--tokens", type=int, help="visual tokens kept in each sample; a quarter when not given")
    _add_placement(options)
    given = options.parse_args(arguments)
    from vtcframe.testing.laws.checkpoint import check  # lazily: it imports torch

    outcomes = []
    for law, pruner, outcome in check(given.model, given.image, given.tokens, given.dtype, given.device):
        outcomes.append(outcome.partition(":")[0])
        print(f"{law:34}  {pruner:20}  {outcome}", flush=True)
    print(", ".join(f"{outcomes.count(kind)} {kind}" for kind in ("holds", "broken", "not served")))
    return LAW_BROKEN if "broken" in outcomes else DONE


def sweep(arguments: list[str]) -> int:
    """Run what is missing of models, questions, methods and budgets, then write the report."""
    _warn_of_failures()
    from vtcframe.sweep.command import main  # lazily, like all that follows a typo

    return main(arguments)


def report(arguments: list[str]) -> int:
    """Write a page about finished runs."""
    from vtcframe.report.command import main  # lazily

    return main(arguments)


def explore(arguments: list[str]) -> int:
    """Serve a page on which methods can be tried."""
    _warn_of_failures()
    from vtcframe.explore.command import main  # lazily

    return main(arguments)


COMMANDS = {
    "predict": predict,
    "sweep": sweep,
    "report": report,
    "bench": bench.main,
    "explain": explain_one,
    "explore": explore,
    "list": list_components,
    "check": check_model,
}
