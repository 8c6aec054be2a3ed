"""The report as a page and as Markdown: the same sections, two templates."""

import base64
import os
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from vtcframe.report.runs import LoadedRuns
from vtcframe.report.sections import told

WIDEST = 1000  # pixels that sheets are shrunk to


def render(found: LoadedRuns, beside: Path) -> dict[str, str]:
    """Return the report by the ending of its file, html and md. `beside` is the folder of these files."""
    pages = Environment(
        loader=PackageLoader("vtcframe.report"),
        autoescape=lambda name: bool(name and ".html" in name),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters |= {
        "embedded": embedded,
        "line": in_a_line,
        "fenced": fenced,
        "near": lambda path: Path(os.path.relpath(path, beside)).as_posix(),
    }
    sections = list(told(found))
    return {form: pages.get_template(f"report.{form}.j2").render(sections=sections) for form in ("html", "md")}


def embedded(path: Path) -> str:
    """Return a picture, at most 1000 pixels wide, as a data URI."""
    with Image.open(path) as sheet:
        shown = sheet.convert("RGB")
    if shown.width > WIDEST:
        shown = shown.resize((WIDEST, round(shown.height * WIDEST / shown.width)), Image.Resampling.LANCZOS)
    out = BytesIO()
    shown.save(out, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def in_a_line(text: str) -> str:
    """Return text as a cell of a Markdown table, or a line of its prose, can hold it."""
    kept = " ".join(text.split())
    for sign in "\\|<*_":
        kept = kept.replace(sign, "\\" + sign)
    return kept


def fenced(text: str) -> str:
    """Return text as a block of Markdown that nothing in it can end."""
    return "\n".join(["    " + line for line in text.rstrip("\n").split("\n")])
