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


def test_the_summary_states_what_the_intervals_support(sweep):
    _, text = pages(sweep)
    assert "tiny, toys: missing baselines: Pool at 0.25, Downsample at 0.25." in text
    assert "tiny, toys: SLOWER than the unpruned model, as measured in these runs: VtcCls(last=3) at 0.25." in text
    assert "tiny, toys: not shown to differ from the unpruned model: VtcCls(last=3) at 0.25." in text
    assert (
        "shown to be better than the better of random and uniform at the same budget: VtcCls(last=3) at 0.25." in text
    )
    assert (
        r"WORSE than the better of random and uniform at the same budget: \<script>alert(1)\</script>\| at 0.25."
        in text
    )
    assert "they are no benchmark" in text
    assert "fewer than three seeds" not in text


def test_random_with_few_seeds_and_runs_of_different_versions_are_reported(tmp_path):
    folder(tmp_path / "x" / "a", rows("unpruned", "11"), rows("RandomPruner(seed=0)", "10", QUARTER))
    folder(tmp_path / "x" / "b", rows("unpruned", "11"), **{"version of torch": "2.10"})
    _, text = pages(tmp_path / "x")
    assert "run with fewer than three seeds, so the spread is unreliable: RandomPruner() at 0.25." in text
    assert "The runs differ in the version of torch: 2.10, 2.9." in text


def test_missing_baselines_are_reported_for_each_budget(tmp_path):
    each = {"ratio": 0.25, "per": "image"}
    shrunk = {"model.runs": ["unpruned"], "data.transforms": [str(Downsample(ratio=0.25))]}
    folder(
        tmp_path / "x" / "a",
        rows("unpruned", "11"),
        *(rows(f"{name}()", "10", budget) for name in ("Pool", "UniformPruner") for budget in (each, {"ratio": 0.5})),
        *(rows(f"RandomPruner(seed={n})", "10", each) for n in range(3)),
    )
    folder(tmp_path / "x" / "b", rows("unpruned", "11"), **shrunk)
    assert "missing baselines: RandomPruner at 0.5, Downsample at 0.5." in pages(tmp_path / "x")[1]


def test_caveats_are_reported(tmp_path):
    folder(tmp_path / "x" / "a", rows("Vtc()", "11", QUARTER), rows("Pool()", "1", QUARTER), attempts=2)
    path = tmp_path / "x" / "a" / "run.json"
    manifest = json.loads(path.read_text())
    manifest["attempts"][1]["mixed with"] = {}
    path.write_text(json.dumps(manifest))
    _, text = pages(tmp_path / "x")
    assert "the unpruned model was not run, so no figure is given in percent of it." in text
    assert "methods answered different numbers of questions (1 to 2): see the failed samples." in text
    assert "Rows of different configurations are mixed (writer.existing: mix): a." in text


def test_out_sets_the_path_of_the_report(tmp_path):
    folder(tmp_path / "a", rows("unpruned", "11"))
    report.main([str(tmp_path), f"--out={tmp_path}/deep/v1.5"])
    report.main([str(tmp_path), f"--out={tmp_path}/page.html"])
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.suffix in (".html", ".md")]
    assert sorted(written) == ["deep/v1.5.html", "deep/v1.5.md", "page.html", "page.md"]


def test_markdown_has_every_table_with_complete_rows(sweep):
    _, text = pages(sweep)
    tables = re.findall(r"(?m)(?:^\|.*\n)+", text)
    assert len(tables) == 1 + 2 * 4 + 2
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert "| RandomPruner() | 0.25 | 3 | 44 | 0.477 | 0.455 | 0.500 | 0.023 | 52.5 |" in text
    assert "![Kept tokens of q0](<more/pictures/q0.png>)" in text
    assert r"| toys | 7 | f0, f1, f2, f3, f4 and 2 more | the picture \<b>x\|y\</b> is missing |" in text


def test_a_run_without_answers_has_a_report_and_long_lists_of_reasons_are_cut(tmp_path):
    folder(tmp_path / "a", [Prediction(f"q{n}", None, "?", None, error=f"reason {n}") for n in range(23)])
    _, text = pages(tmp_path)
    assert "a: 3 more reasons are in its predictions.jsonl." in text
    assert "| a | 1 | q19 | reason 19 |" in text
    assert "reason 20" not in text


def test_the_same_rows_give_the_same_bytes(sweep):
    assert pages(sweep) == pages(sweep)


def test_answers_are_escaped(sweep):
    page, _ = pages(sweep)
    assert "alert(1)&lt;/script&gt;" in page
    assert page.count("<script>") == 1
    assert "<b>x" not in page


def test_the_page_makes_no_requests(sweep):
    page, _ = pages(sweep)
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page


def test_a_folder_that_cannot_be_written_is_reported(sweep, monkeypatch):
    monkeypatch.setattr(report, "write_atomic", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UsageError, match=r"cannot write .*report\.html: No space left"):
        report.main([str(sweep)])


def test_plots_are_valid_svg_and_contain_every_mark():
    generator = random.Random(0)
    methods = [f"m{n} <&>" for n in range(9)]
    points = [Point(m, f"{m}: tooltip", generator.uniform(0, 600), generator.random(), (0.0, 1.0)) for m in methods]
    svg = ET.fromstring(plot(points, "tokens <", "score", methods))
    places = [re.match(r"translate\(([\d.]+) ([\d.]+)\)$", g.get("transform", "")) for g in svg.iter("g")]
    positions = [(float(m[1]), float(m[2])) for m in places if m]
    assert len(positions) == len(methods)
    assert all(46 <= x <= 348 and 12 <= y <= 232 for x, y in positions)
    order = [points.index(point) for point in sorted(points, key=lambda point: point.cost)]
    assert order == [positions.index(position) for position in sorted(positions)]
    assert [title.text for title in svg.iter("title")][1:] == [point.description for point in points]


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0])
def test_plots_of_equal_values_can_be_drawn(value):
    assert ET.fromstring(plot([Point("m", "m", value, value)] * 2, "x", "y", ["m"])) is not None
    assert plot([Point("m", "m", value, value)], "x", "y", ["m"]) == ""


def test_marks_of_56_methods_differ():
    methods = [str(n) for n in range(56)]
    assert len({mark(method, methods) for method in methods}) == 56
    assert len(set(SHAPES)) == 7
