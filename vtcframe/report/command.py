"""`vtcframe report`: one page about finished runs, that asks nobody else for anything, and the same as Markdown.

The short of it can be had as a model card of the Hugging Face Hub.
"""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from vtcframe.atomic import write_atomic
from vtcframe.errors import UsageError

FORMS = ".html", ".md"
NEEDED = "scipy", "jinja2"  # the extra `report`


def main(arguments: list[str]) -> int:
    """Write report.html and report.md about the runs below some folders, and return the exit status.

    UsageError where there are none.
    """
    options = argparse.ArgumentParser(
        prog="vtcframe report",
        description="Finished runs side by side: a page that stands alone, and the same as Markdown.",
    )
    options.add_argument("folder", nargs="+", type=Path, help="run folders, or folders of them")
    options.add_argument(
        "--out", type=Path, help="where to: OUT.html and OUT.md; report in the first folder when not given"
    )
    options.add_argument(
        "--card", action="store_true", help="write OUT-card.md, too: a section for the README.md of a model on the Hub"
    )
    given = options.parse_args(arguments)
    out = given.out or given.folder[0] / "report"
    written = write(given.folder, out.with_suffix("") if out.suffix in FORMS else out, given.card)
    print(f"written to {', '.join(map(str, written))}")
    return 0


def write(folders: Sequence[Path], out: Path, with_card: bool = False) -> list[Path]:
    """Write OUT.html and OUT.md, and OUT-card.md if asked for, each at once, and return them.

    UsageError where there is nothing to write about.
    """
    check_extra()
    from vtcframe.report.page import render  # lazily: scipy takes its time, too
    from vtcframe.report.runs import load_runs

    for folder in folders:
        if not folder.is_dir():
            raise UsageError(
                f"there is no folder {folder}: give one with the runs of vtcframe predict or sweep below it"
            )
    runs = load_runs(folders)
    pages = {f".{form}": page for form, page in render(runs, out.parent).items()}
    if with_card:
        from vtcframe.report.model_card import card  # lazily: it imports torch

        pages["-card.md"] = card(runs)
    written = []
    for ending, page in pages.items():
        path = out.with_name(out.name + ending)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, [page.encode()])
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
        written.append(path)
    return written


def check_extra() -> None:
    """UsageError where what a report is made with is not installed."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UsageError(f"a report needs {' and '.join(missing)}: pip install 'vtcframe[report]'")
