"""`vtcframe report`: compare finished runs in a self-contained HTML page and in Markdown.

A summary can be written as a section of a Hugging Face model card.
"""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from vtcframe.atomic import write_atomic
from vtcframe.errors import UsageError

FORMS = ".html", ".md"
REQUIRED_PACKAGES = "scipy", "jinja2"  # the extra `report`


def main(arguments: list[str]) -> int:
    """Write report.html and report.md for the runs below the given folders, and return the exit status.

    Raises UsageError if there are no finished runs.
    """
    parser = argparse.ArgumentParser(
        prog="vtcframe report",
        description="Compare finished runs in a self-contained HTML page and in Markdown.",
    )
    parser.add_argument("folder", nargs="+", type=Path, help="run folders, or folders of them")
    parser.add_argument("--out", type=Path, help="path of OUT.html and OUT.md (default: report in the first folder)")
    parser.add_argument(
        "--card", action="store_true", help="also write OUT-card.md, a section for the README.md of a model on the Hub"
    )
    options = parser.parse_args(arguments)
    out = options.out or options.folder[0] / "report"
    written = write(options.folder, out.with_suffix("") if out.suffix in FORMS else out, options.card)
    print(f"written to {', '.join(map(str, written))}")
    return 0


def write(folders: Sequence[Path], out: Path, with_card: bool = False) -> list[Path]:
    """Write OUT.html and OUT.md, and OUT-card.md if `with_card`, each atomically, and return their paths.

    Raises UsageError if there are no finished runs or a file cannot be written.
    """
    check_extra()
    from vtcframe.report.page import render  # imported late: scipy is slow to import
    from vtcframe.report.runs import load_runs

    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"there is no folder {folder}: give a folder with runs of vtcframe predict or sweep")
    runs = load_runs(folders)
    pages = {f".{form}": page for form, page in render(runs, out.parent).items()}
    if with_card:
        from vtcframe.report.model_card import card  # imported late: it imports torch

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
    """Raise UsageError if packages that a report needs are not installed."""
    if missing := [name for name in REQUIRED_PACKAGES if find_spec(name) is None]:
        raise UsageError(f"a report needs {' and '.join(missing)}: run pip install 'vtcframe[report]'")
