"""Every fenced block of a page is run, or given to what reads it, or compared with what was printed."""

import json
import re
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import markdown
import yaml
from sybil import Document, Example, Region
from sybil.evaluators.python import PythonEvaluator
from sybil.example import SybilFailure
from sybil.parsers.abstract.lexers import LexerCollection
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, FencedCodeBlockLexer
from sybil.region import Lexeme

from support.page_commands import WrongError, check, inside, not_run, run
from support.page_folder import ROOT, Page
from vtcframe import cli
from vtcframe.sweep.config import Sweep, read_pruner

LEXERS = LexerCollection(
    [
        FencedCodeBlockLexer(".*", {"language": "info", "source": "source"}),
        DirectiveInHTMLCommentLexer("invisible-code(-block)?", ".+", {"arguments": "info", "source": "source"}),
    ]
)
SNIPPETS = markdown.Markdown(
    extensions=["pymdownx.snippets"],
    extension_configs={
        "pymdownx.snippets": {"base_path": [str(ROOT)], "check_paths": True, "dedent_subsections": True}
    },
)
PREDICT = {"model": {"backbone": {"path": "vtcframe:tiny"}}, "data": {"path": "vtcframe:questions"}}
SECTIONS = "model", "data", "trainer", "writer"  # of predict's configuration
SWEEP = {
    "models": {"tiny": {"path": "vtcframe:tiny"}},
    "data": {"toys": {"path": "vtcframe:questions"}},
    "budgets": [{"ratio": 0.5}],
}
HERE = "accelerator=cpu", "devices=1", "num_nodes=1", "strategy=auto"  # of the trainer, whatever a page has
STATUS_TOLD = re.compile("error|failed|broken")  # output that says why an exit status is not 0


def parse(document: Document) -> Iterator[Region]:
    """Yield every block, whatever its language."""
    for region in LEXERS(document):
        region.parsed, region.evaluator = region.lexemes["source"], evaluate
        yield region


def evaluate(example: Example) -> None:
    """Check one block; `title="NAME"` beside its language gives the reader a file of that name, before."""
    __tracebackhide__ = True
    page = example.namespace.get("_page")
    if page is None:
        page = example.namespace["_page"] = Page(example.document.text)
    info = example.region.lexemes["info"].strip()
    language, title = re.split(r"[^\w-]", info)[0], re.search(r'title="([^"]+)"', info)
    text = "\n".join(SNIPPETS.preprocessors["snippet"].run(example.parsed.split("\n"))).rstrip("\n") + "\n"
    try:
        if title:
            page.write(title[1], text)
        if language in BLOCKS:
            BLOCKS[language](page, text)
        elif language != "python":
            raise WrongError(f"{language!r} is no language of: python, {', '.join(BLOCKS)}")
    except (WrongError, ValueError, yaml.YAMLError) as error:
        raise SybilFailure(example, str(error)) from error
    if language == "python":
        example.parsed = Lexeme(text, example.parsed.offset, example.parsed.line_offset)
        status, printed = inside(page, lambda: PythonEvaluator()(example), page.here)
        page.printed.append(printed)
        if status:
            raise SybilFailure(example, f"it left with exit status {status}: {printed}")


def close(namespace: dict[str, Any]) -> None:
    """Remove the folder of a page behind its last example."""
    if page := namespace.pop("_page", None):
        page.close()


def listing(page: Page, text: str) -> None:
    """A script that is shown whole: that of docs/examples, which has tests of its own."""
    if text.strip() not in [path.read_text().strip() for path in ROOT.glob("docs/examples/**/*.py")]:
        raise WrongError("no file of docs/examples has this text")


# Commands and what they print


def console(page: Page, text: str) -> None:
    """Run the lines that begin with "$ ", and compare what is shown below them."""
    for command, shown in commands(text):
        ended = run(page, command)
        if ended is None:
            if shown:
                raise WrongError(f"$ {command}\nis not run here (NOT_RUN), so nothing can be shown below it")
            continue
        status, printed = ended
        page.printed.append(printed)
        told = f"$ {command}\n{printed}\nexit status {status}"
        if "Traceback (most recent call last)" in printed or (status and not STATUS_TOLD.search(shown)):
            raise WrongError(told)
        if shown and not pattern(shown).fullmatch(steady(printed).strip("\n")):
            raise WrongError(f"{told}\n\nbut the page shows\n{shown}")


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command, its continued lines joined, and what is shown below it."""
    lines = text.splitlines()
    if lines and not lines[0].startswith("$ "):
        raise WrongError(f'{lines[0]!r} is no command: lines of a console that are begin with "$ "')
    while lines:
        command = lines.pop(0).removeprefix("$ ")
        while command.endswith("\\") and lines:
            command = command.removesuffix("\\") + lines.pop(0).strip()
        shown = []
        while lines and not lines[0].startswith("$ "):
            shown.append(lines.pop(0))
        yield command, "\n".join(shown).strip("\n")


def pattern(shown: str) -> re.Pattern[str]:
    """Return what matches printed text as a page shows it, where `...` stands for anything."""
    return re.compile(re.escape(steady(shown)).replace(re.escape("..."), ".*?"), re.DOTALL)


def steady(printed: str) -> str:
    """Return text without what differs from run to run: a table's seconds, and how wide its columns are."""
    lines, end = [], None
    for line in printed.splitlines():
        if head := re.search(r"  seconds(?=  |$)", line):
            end = head.end()
        elif end and (figure := re.search(r" [\d.]+$", line[:end])):
            line = f"{line[: figure.start()]} seconds{line[end:]}"
        lines.append(re.sub(r" {2,}", "  ", line).rstrip())
    return "\n".join(lines)


def text_block(page: Page, text: str) -> None:
    """Part of what was printed before, or a tree of files that exist."""
    first, *rest = text.splitlines()
    if re.fullmatch(r"[\w./-]+/", first):
        tree(page, page.here / first, rest)
    elif not any(re.search(rf"(?m)^{pattern(text.strip()).pattern}$", steady(own)) for own in page.printed):
        raise WrongError("nothing on this page has printed this")


def tree(page: Page, top: Path, lines: Iterable[str]) -> None:
    """See that each name exists; what it is stands behind three spaces or more. The top may be the checkout itself."""
    inner = {path.name for path in top.rglob("*")} if top.is_dir() else set()
    names = inner | {path.name for path in ROOT.iterdir()}
    for line in lines:
        for name in re.findall(r"[\w*.-]+\.\w+(?= |$)|[\w-]+(?=/)", re.split(r" {3,}", line.strip())[0]):
            if not any(Path(one).match(name) for one in names):
                raise WrongError(f"there is no {name} in {top.relative_to(page.here)}")


# Files


def yaml_block(page: Page, text: str) -> None:
    """Load a configuration as its command does, or what stands below one of its keys; run one question of predict."""
    told = yaml.safe_load(text)
    if not isinstance(told, dict):
        raise WrongError(f"a {type(told).__name__} is no configuration")
    if "models" in told or (set(told) <= {field.name for field in fields(Sweep)} and not set(told) & set(SECTIONS)):
        loaded(page, "sweep", SWEEP | told, "--dry_run")
    elif set(told) & set(SECTIONS):
        config = PREDICT | told | {key: PREDICT[key] | told[key] for key in PREDICT if key in told}
        loaded(page, "predict", config, "--print_config")
        ask(page, config)
    elif {"name", "class_path"} & set(told):
        read_pruner(told)
    elif "task" in told:  # of lmms-eval, whose command loads the file
        if text not in [path.read_text() for path in page.here.glob("*.yaml")]:
            raise WrongError(
                'a task of lmms-eval is a file: give the block a title="NAME.yaml", and a command that asks it'
            )
    else:
        below(page, told)


def below(page: Page, told: dict[str, Any]) -> None:
    """Load what stands below one of predict's keys, which the page leaves out."""
    reasons = []
    for section in SECTIONS:
        try:
            loaded(page, "predict", PREDICT | {section: PREDICT.get(section, {}) | told}, "--print_config")
        except WrongError as error:
            reasons.append(str(error))
        else:
            return
    raise WrongError("no configuration has this, whole or below one of its keys\n" + "\n".join(reasons))


def loaded(page: Page, command: str, config: dict[str, Any], *options: str) -> None:
    """Give a configuration to a command. WrongError, with what it says, unless that goes well."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file, sort_keys=False)
        file.flush()
        status, printed = inside(page, lambda: cli.main([command, "--config", file.name, *options]))
    if status:
        raise WrongError(f"vtcframe {command}: {printed}")


def ask(page: Page, config: dict[str, Any]) -> None:
    """Ask the first question, where the reader has the file."""
    path = str(config["data"]["path"])
    if path.startswith("vtcframe:") or (page.here / path).exists():
        with tempfile.TemporaryDirectory() as folder:
            here = [f"--trainer.{option}" for option in HERE]
            try:
                loaded(page, "predict", config, "--data.limit=1", f"--writer.folder={folder}", *here)
            except WrongError as error:
                rows = [path.read_text() for path in Path(folder).glob("predictions.jsonl")]
                raise WrongError("\n".join([str(error), *rows])) from error


def bash(page: Page, text: str) -> None:
    """See that it is a script, and check the arguments of what is not run in it."""
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    if checked.returncode:
        raise WrongError(checked.stderr)
    for line in text.replace("\\\n", " ").splitlines():
        words = line.split()
        if not_run(words):
            check(page, words)


def jsonl(page: Page, text: str) -> None:
    for line in text.splitlines():
        json.loads(line)


BLOCKS: dict[str, Callable[[Page, str], Any]] = {
    "py": listing,
    "console": console,
    "text": text_block,
    "yaml": yaml_block,
    "toml": lambda page, text: tomllib.loads(text),
    "json": lambda page, text: json.loads(text),
    "jsonl": jsonl,
    "bash": bash,
}
