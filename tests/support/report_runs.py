"""Folders of finished runs for reports."""

import json
from dataclasses import asdict

import pytest

from vtcframe.data.old_rows import convert_row
from vtcframe.data.results import Prediction
from vtcframe.report import command as report
from vtcframe.report.runs import load_runs
from vtcframe.report.statistics import collect_results

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


def rows(method, right, budget=None, seconds=0.1, **fields):
    """Return rows of questions q0, q1, ...; `right` has "1" for each correct answer."""
    tokens = 144 if budget is None else round(144 * budget["ratio"])
    fields = {"method": convert_row({"method": method})["method"]} | fields
    return [
        Prediction(
            f"q{n}", "shape", "what ?", "yes", method, budget, "yes" if sign == "1" else "no", tokens, 144, 0,
            [tokens, tokens], 1024 * tokens, seconds, 0.0, n // 4, **fields,
        )
        for n, sign in enumerate(right)
    ]  # fmt: skip


def folder(path, *answers, merged="now", attempts=1, **facts):
    """Write a run folder like those of `vtcframe predict` and return its path."""
    path.mkdir(parents=True)
    lines = [json.dumps(asdict(row)) + "\n" for method_rows in answers for row in method_rows]
    (path / "predictions.jsonl").write_text("".join(lines))
    attempt_records = [
        {"attempt": n + 1, "started": "then", "processes": 1, "answered earlier": 0} for n in range(attempts)
    ]
    manifest = {"run": FACTS | facts, "hash": "a", "first": 1, "merged": merged, "attempts": attempt_records}
    (path / "run.json").write_text(json.dumps(manifest))
    return path


def results_of(*folders):
    """Return the results of run folders by model, data, method and budget."""
    results = collect_results(load_runs(folders).runs)
    return {(result.model, result.data, result.method, result.budget): result for result in results}


QUARTER = {"ratio": 0.25}
TIED = "not shown to differ"


def pages(folders):
    """Run the command and return the HTML page and the Markdown text."""
    report.main([str(folders)])
    return (folders / "report.html").read_text(), (folders / "report.md").read_text()
