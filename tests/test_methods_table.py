import re
import runpy
from pathlib import Path

from vtcframe.pipeline import Method
from vtcframe.registry import entries

DOCS = Path(__file__).parent.parent / "docs"


def test_the_table_of_methods_is_current_and_has_every_method():
    made = runpy.run_path(str(DOCS / "make_methods.py"))["page"]()
    assert (DOCS / "methods.md").read_text() == made, "run python docs/make_methods.py --write"
    pruners = [entry for entry in entries() if (entry.kind, entry.distribution) == ("pruner", "vtcframe")]
    methods = [entry.name for entry in pruners if issubclass(entry.load(), Method)]
    table = [line for line in made.splitlines() if line.startswith("| `")]
    assert sorted(re.match(r"\| `(\w+)`", line)[1] for line in table) == sorted(methods)
    cells = {line.count(" | ") for line in table}
    assert cells == {8}
    assert all("(https://arxiv.org/abs/" in line or "no public code" in line or "ours" in line for line in table)
