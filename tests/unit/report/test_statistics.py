"""The report: its figures by plain twins, its words, and the page in a browser."""

import json
import math
import random
import re
import xml.etree.ElementTree as ET
from dataclasses import asdict
from statistics import NormalDist, fmean, stdev

import pytest
from PIL import Image

pytest.importorskip("scipy", reason="the extra `report` is not installed")
pytest.importorskip("jinja2", reason="the extra `report` is not installed")

from browser import NARROW, WIDE, started, watched
from vtcframe import report
from vtcframe.benchmarks import Mme, Pope
from vtcframe.config import UsageError
from vtcframe.metrics import Row
from vtcframe.report_numbers import averages, difference, entries, front, unit
from vtcframe.report_plot import SHAPES, Point, mark, plot
from vtcframe.report_runs import found
from vtcframe.transforms import Downsample

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
    return [
        Row(
            f"q{n}", "shape", "what ?", "yes", method, budget, "yes" if sign == "1" else "no", tokens, 144, 0,
            [tokens, tokens], 1024 * tokens, seconds, 0.0, n // 4, **more,
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
    return {(one.model, one.data, one.method, one.budget): one for one in entries(found(folders).runs)}


QUARTER, TIED = {"ratio": 0.25}, "not shown to differ"


# Figures


def test_seeds_of_one_method_are_one_entry_with_mean_and_spread(tmp_path):
    drawn = {0: "11110000", 1: "11000000", 2: "11111100"}
    answers = [rows(f"RandomPruner(seed={seed})", right, QUARTER) for seed, right in drawn.items()]
    one = made(folder(tmp_path / "a", rows("unpruned", "11111110"), *answers))["tiny", "toys", "RandomPruner()", "0.25"]
    assert one.values == (4 / 8, 2 / 8, 6 / 8)
    assert one.value == 0.5
    assert one.spread == (0.25, 0.75, pytest.approx(stdev([0.5, 0.25, 0.75])))
    assert one.grades["q2"] == pytest.approx(2 / 3)
    assert one.percent == pytest.approx(100 * 0.5 / (7 / 8))


def test_seeds_anywhere_in_a_method_are_told_apart_from_its_options(tmp_path):
    nested = "Pipeline(scorers=(Random(seed={}), ClsAttention(last=3)), across='view')"
    answers = [rows(nested.format(seed), "10", QUARTER) for seed in (0, 7)] + [rows("Draw(last=2, seed=3)", "11")]
    names = {(one.method, len(one.values)) for one in entries(found([folder(tmp_path / "a", *answers)]).runs)}
    assert names == {(nested.format(0).replace("seed=0", ""), 2), ("Draw(last=2)", 1)}


def test_mcnemars_test_is_exact():
    here = {n: float(n < 3) for n in range(20)}
    there = {n: float(3 <= n < 14) for n in range(20)}  # 3 gained, 11 lost
    twin = 2 * sum(math.comb(14, k) for k in range(4)) / 2**14
    assert difference(here, there, {n: n for n in range(20)}).mcnemar == pytest.approx(twin)
    assert difference(here, here, {n: n for n in range(20)}).mcnemar == 1
    assert difference({0: 0.3, 1: 1.0}, {0: 1.0, 1: 1.0}, {0: 0, 1: 1}).mcnemar is None


def test_the_bootstrap_is_that_of_paired_differences():
    draw = random.Random(0)
    here = {n: float(draw.random() < 0.6) for n in range(400)}
    there = {n: float(draw.random() < 0.8) if draw.random() < 0.5 else here[n] for n in range(400)}
    apart = [here[n] - there[n] for n in range(400)]
    found = difference(here, there, {n: n for n in range(400)})
    half = NormalDist().inv_cdf(0.975) * stdev(apart) / math.sqrt(400)
    assert found.mean == pytest.approx(fmean(apart))
    assert found.interval == pytest.approx((fmean(apart) - half, fmean(apart) + half), abs=0.1 * half)
    assert found.units == 400


def test_questions_about_one_picture_are_drawn_together():
    draw = random.Random(0)
    alone = {n: draw.random() for n in range(50)}
    nothing = {n: 0.0 for n in range(200)}
    four = {4 * n + k: alone[n] for n in range(50) for k in range(4)}
    units = {n: n // 4 for n in range(200)}
    together = difference(four, nothing, units).interval
    assert together == pytest.approx(difference(alone, nothing, {n: n for n in range(50)}).interval)
    low, high = difference(four, nothing, {n: n for n in range(200)}).interval
    assert high - low < 0.7 * (together[1] - together[0])


def test_pictures_of_unequal_numbers_of_questions_weigh_as_their_questions_do():
    grades = {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.0}
    found = difference(grades, dict.fromkeys(grades, 0.0), {0: "a", 1: "a", 2: "a", 3: "b"})
    assert found.mean == 0.75
    assert found.interval == (0.0, 1.0)
    many = {(n, k): float(n % 2) for n in range(100) for k in range(3 if n % 2 else 1)}
    low, high = difference(many, dict.fromkeys(many, 0.0), {name: name[0] for name in many}).interval
    assert 0.6 < low < 0.75 < high < 0.9


@pytest.mark.parametrize(("right", "verdict"), [("1" * 20, TIED), ("0" * 20, "lower"), ("1" * 19 + "0", TIED)])
def test_an_interval_with_zero_in_it_shows_nothing(tmp_path, right, verdict):
    told = made(folder(tmp_path / "a", rows("unpruned", "1" * 20), rows("VtcCls(last=3)", right, QUARTER)))
    assert told["tiny", "toys", "VtcCls(last=3)", "0.25"].against_unpruned.verdict == verdict


def test_one_question_has_no_interval_and_none_in_common_no_difference():
    assert difference({"a": 1.0}, {"a": 0.0}, {"a": "a"}).interval is None
    assert difference({"a": 1.0}, {"a": 0.0}, {"a": "a"}).verdict == TIED
    assert difference({"a": 1.0}, {"b": 0.0}, {"a": "a"}) is None


def test_methods_are_held_against_the_better_of_random_and_uniform_at_their_budget(tmp_path):
    told = made(
        folder(
            tmp_path / "a",
            rows("unpruned", "11111111"),
            rows("RandomPruner(seed=0)", "11110000", QUARTER),
            rows("UniformPruner()", "11111000", QUARTER),
            rows("UniformPruner()", "11111111", {"ratio": 0.5}),
            rows("VtcCls(last=3)", "11111110", QUARTER),
            rows("VtcCls(last=3)", "11111110", {"ratio": 0.125}),
        )
    )
    one = told["tiny", "toys", "VtcCls(last=3)", "0.25"]
    assert (one.baseline, one.against_baseline.mean) == ("UniformPruner", 0.25)
    assert told["tiny", "toys", "VtcCls(last=3)", "0.125"].baseline is None
    assert told["tiny", "toys", "UniformPruner()", "0.25"].baseline is None


def test_scores_are_those_of_the_benchmark_and_its_last_column_is_the_headline(tmp_path):
    right = rows("unpruned", "1101")
    told = made(folder(tmp_path / "a", right, **{"data.benchmark": {"name": "Pope"}}))["tiny", "Pope", "unpruned", "-"]
    scores = Pope().score(right)
    assert told.value == pytest.approx(scores["F1"].value)
    assert list(told.scores) == list(scores)
    assert told.grades == {"q0": 1, "q1": 1, "q2": 0, "q3": 1}


def test_questions_of_mme_are_drawn_by_their_pictures(tmp_path):
    answers = [row for n in range(3) for row in rows("unpruned", "11", meta={"picture": f"{n}.png", "question": "?"})]
    answers = [Row(**asdict(row) | {"id": f"{n}"}) for n, row in enumerate(answers)]
    path = folder(tmp_path / "a", answers, **{"data.benchmark": {"name": "Mme"}})
    assert len(set(made(path)["tiny", "Mme", "unpruned", "-"].units.values())) == 3
    assert made(path)["tiny", "Mme", "unpruned", "-"].value == Mme().score(answers)["perception"].value


def test_means_leave_out_each_set_in_turn(tmp_path):
    right = {"a": ("1111", "1110"), "b": ("1100", "1000"), "c": ("1111", "1111")}
    paths = [
        folder(tmp_path / name, rows("unpruned", whole), rows("Vtc()", part, QUARTER), **{"data.path": f"{name}.jsonl"})
        for name, (whole, part) in right.items()
    ]
    _, one = averages(entries(found(paths).runs))
    assert one.percent == {"a": 75, "b": 50, "c": 100}
    assert one.mean == 75
    assert one.without == {"a": 75, "b": 87.5, "c": 62.5}
    assert one.least == 62.5
    assert averages(entries(found(paths[:1]).runs)) == []


def test_a_mean_without_one_of_its_sets_is_none(tmp_path):
    paths = [
        folder(tmp_path / "a", rows("unpruned", "11"), rows("Vtc()", "10", QUARTER)),
        folder(tmp_path / "b", rows("unpruned", "11"), **{"data.path": "b.jsonl"}),
    ]
    one = averages(entries(found(paths).runs))[1]
    assert (one.method, one.mean, one.least, one.seconds) == ("Vtc()", None, None, None)
    assert one.percent == {"toys": 50, "b": None}


def test_the_front_is_what_nothing_beats():
    draw = random.Random(0)
    for _ in range(50):
        points = [(draw.randrange(6), draw.randrange(6)) for _ in range(12)]
        twin = {
            one
            for one in points
            if not any(other != one and other[0] <= one[0] and other[1] >= one[1] for other in points)
        }
        assert front(points) == sorted(twin)


def test_seconds_are_compared_within_a_run_and_the_first_batch_is_left_out(tmp_path):
    warm = rows("Vtc()", "11111111", QUARTER, seconds=0.05)
    warm[:4] = [Row(**asdict(row) | {"seconds": 9.0}) for row in warm[:4]]
    first = folder(tmp_path / "1", rows("unpruned", "1" * 8, seconds=0.1), warm)
    late = rows("Pool()", "1" * 8, QUARTER, seconds=0.1)
    second = folder(tmp_path / "2", rows("unpruned", "0" * 8, seconds=0.4), late)
    told = made(first, second)
    assert told["tiny", "toys", "Vtc()", "0.25"].pace == pytest.approx(0.5)
    assert told["tiny", "toys", "Pool()", "0.25"].pace == pytest.approx(0.25)
    assert told["tiny", "toys", "unpruned", "-"].value == 1  # of the first run, as its seconds
    assert told["tiny", "toys", "unpruned", "-"].seconds == pytest.approx(0.1)


def test_a_run_of_shrunk_pictures_is_downsampling_beside_the_others(tmp_path):
    whole = folder(tmp_path / "1", rows("unpruned", "1111"), rows("UniformPruner()", "1110", QUARTER))
    facts = {"model.runs": ["unpruned"], "data.transforms": [str(Downsample(ratio=0.25))]}
    shrunk = folder(tmp_path / "2", rows("unpruned", "1100", seconds=0.2), **facts)
    one = made(whole, shrunk)["tiny", "toys", "Downsample", "0.25"]
    assert (one.value, one.percent, one.against_unpruned.mean) == (0.5, 50, -0.5)
    assert (one.pace, one.same_run) == (pytest.approx(2), False)
    assert one.baseline == "UniformPruner"
    tokens = folder(tmp_path / "3", rows("unpruned", "1"), **facts | {"data.transforms": [str(Downsample(tokens=9))]})
    assert ("tiny", "toys", "Downsample", "9 tokens") in made(whole, tokens)


def test_what_differs_is_not_mixed(tmp_path):
    paths = [
        folder(tmp_path / "a", rows("unpruned", "11")),
        folder(tmp_path / "b", rows("unpruned", "11"), **{"trainer.precision": "bf16-true"}),
        folder(tmp_path / "c", rows("unpruned", "11"), **{"digest of the questions": "b"}),
    ]
    assert [(one.model, one.data) for one in entries(found(paths).runs)] == [
        ("tiny", "toys"),
        ("tiny (2)", "toys"),
        ("tiny", "toys (2)"),
    ]


# What is there


def test_runs_that_are_not_over_are_named_and_left_out(tmp_path):
    folder(tmp_path / "x" / "a", rows("unpruned", "11"))
    folder(tmp_path / "x" / "b", rows("unpruned", "00"), merged=None)
    assert [run.name for run in found([tmp_path / "x"]).runs] == ["a"]
    assert found([tmp_path / "x"]).unfinished == ["b"]
    report.write([tmp_path / "x"], tmp_path / "out")
    assert "Not finished, and not in here: b." in (tmp_path / "out.md").read_text()


def test_folders_that_lie_in_each_other_are_read_once(tmp_path):
    folder(tmp_path / "x" / "a", rows("unpruned", "11"))
    assert len(found([tmp_path, tmp_path / "x", tmp_path / "x" / "a"]).runs) == 1


def told_without(manifest, key):
    told = json.loads(manifest.read_text())
    del told["run"][key]
    manifest.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: (path / "run.json").write_text("{"), "does not say what run it is of"),
        (lambda path: (path / "run.json").write_text('{"merged": 1}'), "does not say what run it is of"),
        (lambda path: told_without(path / "run.json", "model.runs"), "does not say what run it is of"),
        (lambda path: (path / "predictions.jsonl").write_text('{"id": 1, "x": 2}\n'), "line 1, is no row"),
        (lambda path: (path / "run.json").unlink(), "there is no finished run below"),
        (lambda path: (path / "predictions.jsonl").unlink(), r"\(1 are not finished\)"),
    ],
)
def test_folders_that_cannot_be_read_are_refused(tmp_path, harm, words):
    harm(folder(tmp_path / "a", rows("unpruned", "11")))
    with pytest.raises(UsageError, match=words):
        report.main([str(tmp_path)])


def test_a_benchmark_that_is_not_installed_is_named(tmp_path):
    folder(tmp_path / "a", rows("unpruned", "11"), **{"data.benchmark": {"name": "Popé"}})
    with pytest.raises(UsageError, match=r"(?s)whose rules cannot be had: no benchmark is called 'Popé'"):
        report.main([str(tmp_path)])


def test_a_folder_that_is_not_there_and_an_extra_that_is_missing_are_told(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="there is no folder"):
        report.main([str(tmp_path / "no")])
    monkeypatch.setattr(report, "find_spec", lambda name: None if name == "scipy" else object())
    with pytest.raises(UsageError, match=r"a report needs scipy: pip install 'vtcframe\[report\]'"):
        report.main([str(tmp_path)])


# Words and pages


@pytest.fixture
def sweep(tmp_path):
    """Two sets of questions, methods better and worse than chance, slower and faster, some samples failed."""
    failed = [Row(f"f{n}", None, "what ?", None, error="the picture <b>x|y</b> is missing") for n in range(7)]
    for name in ("toys", "more"):
        path = folder(
            tmp_path / "runs" / name,
            failed,
            rows("unpruned", "1" * 40 + "0" * 4),
            *(rows(f"RandomPruner(seed={n})", "1" * (20 + n) + "0" * (24 - n), QUARTER, 0.05) for n in range(3)),
            rows("UniformPruner()", "1" * 25 + "0" * 19, QUARTER, 0.05),
            rows("VtcCls(last=3)", "1" * 39 + "0" * 5, QUARTER, 0.2),
            rows("<script>alert(1)</script>|", "0" * 44, QUARTER, 0.03),
            **{"data.path": f"{name}.jsonl"},
        )
        (path / "pictures").mkdir()
        Image.new("RGB", (1500, 300), "teal").save(path / "pictures" / "q0.png")
    return tmp_path / "runs"


def pages(folders):
    report.main([str(folders)])
    return (folders / "report.html").read_text(), (folders / "report.md").read_text()


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
    folder(tmp_path / "a", [Row(f"q{n}", None, "?", None, error=f"reason {n}") for n in range(23)])
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
    monkeypatch.setattr(report, "replace_whole", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
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


# In a browser


@pytest.fixture(scope="module")
def browser():
    with started() as chromium:
        yield chromium


@pytest.fixture
def opened(browser, sweep):
    """The page, and what it said and asked for."""
    pages(sweep)
    with watched(browser) as (page, said, asked):
        page.goto((sweep / "report.html").as_uri())
        yield page
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [(sweep / "report.html").as_uri()]


def column(table, at):
    return table.locator(f"tbody tr td:nth-child({at})").all_text_contents()


def test_tables_sort_by_click_by_number_and_by_keyboard(opened):
    table = opened.locator("table", has=opened.locator("caption", has_text=re.compile("^Scores$"))).first
    head = table.locator("thead th").nth(4)
    head.locator("button").click()
    up = [float(value) for value in column(table, 5)]
    assert up == sorted(up)
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").focus()
    opened.keyboard.press("Enter")
    assert [float(value) for value in column(table, 5)] == up[::-1]
    assert head.get_attribute("aria-sort") == "descending"
    table.locator("thead th button").first.click()
    names = column(table, 1)
    assert names == sorted(names, key=str.casefold) or names == sorted(names)
    assert head.get_attribute("aria-sort") is None


def test_negative_numbers_sort_as_numbers(opened):
    table = opened.locator("table", has=opened.locator("caption", has_text="Paired differences")).first
    table.locator("thead th button").nth(2).click()
    values = [float(value) for value in column(table, 3)]
    assert values == sorted(values)
    assert min(values) < -0.5 < -0.1 < max(values)


def test_cells_without_a_figure_stay_at_the_end(opened):
    table = opened.locator("table", has=opened.locator("caption", has_text=re.compile("^Scores$"))).first
    for _ in ("ascending", "descending"):
        table.locator("thead th button").nth(5).click()
        assert column(table, 6)[0] == "0.455"
        assert set(column(table, 6)[1:]) == {"\u2013"}


def test_plots_are_drawn_and_pictures_are_shown(opened):
    assert opened.locator("svg.plot").count() == 2 + 2 * 2
    for box in (svg.bounding_box() for svg in opened.locator("svg.plot").all()):
        assert box["width"] > 250
        assert box["height"] > 180
    assert opened.locator("svg.plot").first.locator(":scope > g").count() == 5
    assert opened.eval_on_selector_all("figure img", "all => all.map(one => one.naturalWidth)") == [1000, 1000]


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_the_page_is_no_wider_than_its_screen_and_tables_scroll_in_their_boxes(opened, width):
    opened.set_viewport_size({"width": width, "height": 780})
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    wide = opened.eval_on_selector_all(".scroll", "all => all.map(one => one.scrollWidth > one.clientWidth)")
    assert any(wide) == (width == NARROW)


def test_a_long_name_leaves_room_for_figures_on_a_phone(browser, tmp_path):
    name = f"Pipeline(scorers=({'ClsAttention(last=3), ' * 6}), across='view')"
    folder(tmp_path / "a", rows("unpruned", "11"), rows(name, "10", QUARTER))
    pages(tmp_path)
    with watched(browser) as (page, _, _):
        page.goto((tmp_path / "report.html").as_uri())
        assert max(page.eval_on_selector_all("tbody td:first-child", "all => all.map(one => one.offsetWidth)")) < 180


def test_it_follows_the_colours_asked_for_and_prints_on_white(opened):
    def paper():
        return opened.evaluate("getComputedStyle(document.body).backgroundColor")

    opened.emulate_media(color_scheme="dark")
    assert paper() == "rgb(20, 23, 27)"
    opened.emulate_media(color_scheme="dark", media="print")
    assert paper() == "rgb(255, 255, 255)"
    assert opened.evaluate("getComputedStyle(document.querySelector('.scroll')).overflow") == "visible"
    assert len(opened.pdf()) > 10_000


def test_questions_about_the_same_pictures_are_drawn_together():
    def row(name, images, **meta):
        return Row(name, "color", "what ?", "red", images=images, meta=meta)

    rows = [row("a", ["1.png"]), row("b", ["1.png"]), row("c", ["1.png", "2.png"]), row("d", [])]
    assert len({unit(one) for one in rows}) == 3
    assert unit(rows[0]) == unit(rows[1])
    assert unit(row("e", ["3.png"], group=1)) == unit(row("f", ["4.png"], group=1))
