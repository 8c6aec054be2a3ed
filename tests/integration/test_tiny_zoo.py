import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from vtcframe.data.results import Prediction


@pytest.fixture
def zoo(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tiny"))
    import zoo

    yield zoo
    sys.modules.pop("zoo", None)


def row(picture, kind, method, right):
    """Return the row of a question, with a right or wrong answer."""
    budget = None if method == "unpruned" else {"ratio": 0.5}
    return Prediction(f"scene-{picture}-{kind}", kind, "?", "yes", method, budget, "yes" if right else "no")


def test_the_table_has_accuracies_spreads_and_paired_differences(zoo, tmp_path, capsys):
    path = tmp_path / "predictions.jsonl"
    kinds = ("color", "count")
    rights = {"unpruned": 4, "VtcCls(last=3)": 2, "RandomPruner(seed=0)": 0, "RandomPruner(seed=1)": 1}
    rows = [
        row(p, kind, method, p < right if kind == "color" else p < 1)
        for method, right in rights.items()
        for p in range(4)
        for kind in kinds
    ]
    failed = Prediction("scene-9-color", "color", "?", "yes", error="unreadable")
    path.write_text("".join(json.dumps(asdict(prediction)) + "\n" for prediction in [*rows, failed]))
    zoo.main([str(path)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    assert [c[0] for c in cells] == ["`VtcCls(last=3)`", "`RandomPruner(seeds)`"]
    assert cells[0][1:6] == ["0.500", "0.250", "0.500", "0.375", "0.250"]
    assert cells[0][7] == "+0.000 [+0.000, +0.000]"
    assert cells[1][3] == "0.125 [0.000, 0.250]"
    assert cells[0][6].startswith("-0.500 [-")
    assert cells[1][7].startswith("-0.375 [-")
