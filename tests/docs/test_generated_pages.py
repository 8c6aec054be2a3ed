import re
import runpy
from pathlib import Path

import pytest

from vtcframe.registry import entries

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def made():
    """The script's names."""
    return runpy.run_path(str(DOCS / "make_tables.py"))


@pytest.mark.parametrize("name", ["methods.md", "components.md", "backbones.md"])
def test_every_table_is_current(made, name):
    assert made["page"](name) == (DOCS / name).read_text(), "run python docs/make_tables.py"


def test_every_component_of_ours_stands_in_one_table(made):
    lines = [line for name in made["PAGES"] for line in (DOCS / name).read_text().splitlines()]
    named = sorted(match[1] for line in lines if (match := re.match(r"\| `(\w+)`", line)))
    assert named == sorted(entry.name for entry in entries() if entry.distribution.startswith("vtcframe"))


def test_the_table_of_methods_is_whole():
    table = [line for line in (DOCS / "methods.md").read_text().splitlines() if line.startswith("| `")]
    assert {line.count(" | ") for line in table} == {8}
    assert all("(https://arxiv.org/abs/" in line or "no public code" in line or "ours" in line for line in table)


def test_every_picture_of_the_verbs_is_drawn_by_its_script(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["make_pictures.py", "--out", str(tmp_path)])
    runpy.run_path(str(DOCS / "make_pictures.py"), run_name="__main__")
    drawn = {file.name: file.read_text().count("<rect") for file in tmp_path.iterdir()}
    assert drawn == {file.name: file.read_text().count("<rect") for file in (DOCS / "images").glob("*.svg")}
