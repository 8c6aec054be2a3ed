"""The report as a page and as Markdown: wording, tables and plots."""

import json
import random
import re
import xml.etree.ElementTree as ET

import pytest

from support.report_runs import QUARTER, folder, pages, rows
from vtcframe.data.results import Prediction
from vtcframe.data.transforms import Downsample
from vtcframe.errors import UsageError
from vtcframe.report import command as report
from vtcframe.report.plots import SHAPES, Point, mark, plot

pytest.importorskip("scipy", reason="the extra `report` is not installed")


pytest.importorskip("jinja2", reason="the extra `report` is not installed")


def test_the_words_say_what_the_intervals_allow(sweep):
    _, text = pages(sweep)
    assert "tiny, toys: not run beside: Pool at 0.25, Downsample at 0.25." in text
    assert "tiny, toys: SLOWER than the untouched model, as measured here: VtcCls(last=3) at 0.25." in text
    assert "tiny, toys: not shown to differ from the untouched model: VtcCls(last=3) at 0.25." in text
    assert (
        "shown to be better than the better of random and uniform at the same budget: VtcCls(last=3) at 0.25." in text
    )
    assert (
        r"WORSE than the better of random and uniform at the same budget: \<script>alert(1)\</script>\| at 0.25."
        in text
    )
    assert "they are no benchmark" in text
    assert "fewer than three seeds" not in text


def test_random_with_few_seeds_and_runs_of_different_versions_are_told(tmp_path):
    folder(tmp_path / "x" / "a", rows("unpruned", "11"), rows("RandomPruner(seed=0)", "10", QUARTER))
    folder(tmp_path / "x" / "b", rows("unpruned", "11"), **{"version of torch": "2.10"})
    _, text = pages(tmp_path / "x")
    assert "drawn with fewer than three seeds, so that its spread says little: RandomPruner() at 0.25." in text
    assert "The runs differ in the version of torch: 2.10, 2.9." in text


def test_a_baseline_is_missed_at_each_budget_that_it_was_not_run_at(tmp_path):
    each = {"ratio": 0.25, "per": "image"}
    shrunk = {"model.runs": ["unpruned"], "data.transforms": [str(Downsample(ratio=0.25))]}
    folder(
        tmp_path / "x" / "a",
        rows("unpruned", "11"),
        *(rows(f"{name}()", "10", budget) for name in ("Pool", "UniformPruner") for budget in (each, {"ratio": 0.5})),
        *(rows(f"RandomPruner(seed={n})", "10", each) for n in range(3)),
    )
    folder(tmp_path / "x" / "b", rows("unpruned", "11"), **shrunk)
    assert "not run beside: RandomPruner at 0.5, Downsample at 0.5." in pages(tmp_path / "x")[1]


def test_what_makes_figures_doubtful_is_told(tmp_path):
    folder(tmp_path / "x" / "a", rows("Vtc()", "11", QUARTER), rows("Pool()", "1", QUARTER), attempts=2)
    path = tmp_path / "x" / "a" / "run.json"
    told = json.loads(path.read_text())
    told["attempts"][1]["mixed with"] = {}
    path.write_text(json.dumps(told))
    _, text = pages(tmp_path / "x")
    assert "the untouched model was not asked, so nothing is told in percent of it." in text
    assert "not all methods answered the same questions (1 to 2): see what failed." in text
    assert "Rows of different configurations stand among each other (writer.existing: mix): a." in text


def test_the_report_goes_where_it_is_told_to(tmp_path):
    folder(tmp_path / "a", rows("unpruned", "11"))
    report.main([str(tmp_path), f"--out={tmp_path}/deep/v1.5"])
    report.main([str(tmp_path), f"--out={tmp_path}/page.html"])
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.suffix in (".html", ".md")]
    assert sorted(written) == ["deep/v1.5.html", "deep/v1.5.md", "page.html", "page.md"]


def test_markdown_has_every_table_with_as_many_cells_as_heads(sweep):
    _, text = pages(sweep)
    tables = re.findall(r"(?m)(?:^\|.*\n)+", text)
    assert len(tables) == 1 + 2 * 4 + 2
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert "| RandomPruner() | 0.25 | 3 | 44 | 0.477 | 0.455 | 0.500 | 0.023 | 52.5 |" in text
    assert "![What was kept of q0](<more/pictures/q0.png>)" in text
    assert r"| toys | 7 | f0, f1, f2, f3, f4 and 2 more | the picture \<b>x\|y\</b> is missing |" in text


def test_a_run_without_an_answer_is_a_report_too_and_many_reasons_are_cut(tmp_path):
    folder(tmp_path / "a", [Prediction(f"q{n}", None, "?", None, error=f"reason {n}") for n in range(23)])
    _, text = pages(tmp_path)
    assert "a: 3 more reasons are in its predictions.jsonl." in text
    assert "| a | 1 | q19 | reason 19 |" in text
    assert "reason 20" not in text


def test_the_same_rows_give_the_same_bytes(sweep):
    assert pages(sweep) == pages(sweep)


def test_nothing_that_was_answered_becomes_markup(sweep):
    page, _ = pages(sweep)
    assert "alert(1)&lt;/script&gt;" in page
    assert page.count("<script>") == 1
    assert "<b>x" not in page


def test_the_page_asks_nobody(sweep):
    page, _ = pages(sweep)
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page


def test_a_folder_that_cannot_be_written_is_told(sweep, monkeypatch):
    monkeypatch.setattr(report, "write_atomic", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UsageError, match=r"cannot write .*report\.html: No space left"):
        report.main([str(sweep)])


def test_plots_are_whole_and_every_mark_lies_in_them():
    draw = random.Random(0)
    methods = [f"m{n} <&>" for n in range(9)]
    points = [Point(m, f"{m}: told", draw.uniform(0, 600), draw.random(), (0.0, 1.0)) for m in methods]
    drawn = ET.fromstring(plot(points, "tokens <", "score", methods))
    places = [re.match(r"translate\(([\d.]+) ([\d.]+)\)$", g.get("transform", "")) for g in drawn.iter("g")]
    at = [(float(m[1]), float(m[2])) for m in places if m]
    assert len(at) == len(methods)
    assert all(46 <= x <= 348 and 12 <= y <= 232 for x, y in at)
    order = [points.index(one) for one in sorted(points, key=lambda one: one.cost)]
    assert order == [at.index(one) for one in sorted(at)]
    assert [title.text for title in drawn.iter("title")][1:] == [point.told for point in points]


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0])
def test_plots_of_equal_values_can_be_drawn(value):
    assert ET.fromstring(plot([Point("m", "m", value, value)] * 2, "x", "y", ["m"])) is not None
    assert plot([Point("m", "m", value, value)], "x", "y", ["m"]) == ""


def test_marks_of_56_methods_differ():
    methods = [str(n) for n in range(56)]
    assert len({mark(method, methods) for method in methods}) == 56
    assert len(set(SHAPES)) == 7
