"""The report as an HTML page and as Markdown: the same sections in two templates."""

import base64
import os
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from vtcframe.report.runs import LoadedRuns
from vtcframe.report.sections import make_sections

MAX_WIDTH = 1000  # pixels; wider sheets are scaled down


def render(loaded: LoadedRuns, folder: Path) -> dict[str, str]:
    """Return the report as {"html": page, "md": text}. `folder` is the folder of these files, for relative paths."""
    environment = Environment(
        loader=PackageLoader("vtcframe.report"),
        autoescape=lambda name: bool(name and ".html" in name),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "data_uri": data_uri,
        "line": escape_line,
        "block": indent_block,
        "relative": lambda path: Path(os.path.relpath(path, folder)).as_posix(),
    }
    sections = list(make_sections(loaded))
    return {form: environment.get_template(f"report.{form}.j2").render(sections=sections) for form in ("html", "md")}


def data_uri(path: Path) -> str:
    """Return a picture, at most 1000 pixels wide, as a data URI."""
    with Image.open(path) as sheet:
        picture = sheet.convert("RGB")
    if picture.width > MAX_WIDTH:
        picture = picture.resize(
            (MAX_WIDTH, round(picture.height * MAX_WIDTH / picture.width)), Image.Resampling.LANCZOS
        )
    out = BytesIO()
    picture.save(out, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def escape_line(text: str) -> str:
    """Return text as one line, escaped for a Markdown table cell or a line of prose."""
    line = " ".join(text.split())
    for sign in "\\|<*_":
        line = line.replace(sign, "\\" + sign)
    return line


def indent_block(text: str) -> str:
    """Return text as an indented Markdown code block, which no content can terminate."""
    return "\n".join(["    " + line for line in text.rstrip("\n").split("\n")])
