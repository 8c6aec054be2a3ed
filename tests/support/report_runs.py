"""Folders of finished runs for reports."""

import json
from dataclasses import asdict

import pytest

from vtcframe.data.old_rows import convert_row
from vtcframe.data.results import Prediction
from vtcframe.report import command as report
from vtcframe.report.runs import load_runs
from vtcframe.report.statistics import entries

pytest.importorskip("scipy", reason="the extra `report` is not installed")


pytest.importorskip("jinja2", reason="the extra `report` is not installed")


FACTS = {
    "model.backbone": {"path": "some/tiny", "dtype": "float32", "attn_implementation": None, "revision": "a"},
    "model.runs": ["unpruned", "VtcCls(last=3)"],
    "model.generation": {"max_new_tokens": 4},
    "version of torch": "2.9",
    "data.path": "toys.jsonl",
    "data.benchmark": None,
    "data.frames": None,
    "data.transforms": [],
    "digest of the questions": "a",
    "trainer.precision": "32-true",
}


def rows(method, right, budget=None, seconds=0.1, **more):
    """Rows of questions q0, q1, ... answered as the signs of `right` say."""
    tokens = 144 if budget is None else round(144 * budget["ratio"])
    fields = {"method": convert_row({"method": method})["method"]} | more
    return [
        Prediction(
            f"q{n}", "shape", "what ?", "yes", method, budget, "yes" if sign == "1" else "no", tokens, 144, 0,
            [tokens, tokens], 1024 * tokens, seconds, 0.0, n // 4, **fields,
        )
        for n, sign in enumerate(right)
    ]  # fmt: skip


def folder(path, *answers, merged="now", attempts=1, **facts):
    """A run folder as `vtcframe predict` leaves it."""
    path.mkdir(parents=True)
    lines = [json.dumps(asdict(row)) + "\n" for own in answers for row in own]
    (path / "predictions.jsonl").write_text("".join(lines))
    tried = [{"attempt": n + 1, "started": "then", "processes": 1, "answered earlier": 0} for n in range(attempts)]
    told = {"run": FACTS | facts, "hash": "a", "first": 1, "merged": merged, "attempts": tried}
    (path / "run.json").write_text(json.dumps(told))
    return path


def made(*folders):
    return {(one.model, one.data, one.method, one.budget): one for one in entries(load_runs(folders).runs)}


QUARTER, TIED = {"ratio": 0.25}, "not shown to differ"


def pages(folders):
    report.main([str(folders)])
    return (folders / "report.html").read_text(), (folders / "report.md").read_text()
