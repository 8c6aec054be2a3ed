"""The figures of the report beside plain twins."""

import math
import random
from dataclasses import asdict
from statistics import NormalDist, fmean, stdev

import pytest

from support.report_runs import QUARTER, TIED, folder, made, rows
from vtcframe import Mme, Pope
from vtcframe.data.results import Prediction
from vtcframe.report.runs import load_runs
from vtcframe.report.statistics import averages, difference, entries, front

pytest.importorskip("scipy", reason="the extra `report` is not installed")


pytest.importorskip("jinja2", reason="the extra `report` is not installed")


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
    names = {(one.method, len(one.values)) for one in entries(load_runs([folder(tmp_path / "a", *answers)]).runs)}
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
    answers = [Prediction(**asdict(row) | {"id": f"{n}"}) for n, row in enumerate(answers)]
    path = folder(tmp_path / "a", answers, **{"data.benchmark": {"name": "Mme"}})
    assert len(set(made(path)["tiny", "Mme", "unpruned", "-"].units.values())) == 3
    assert made(path)["tiny", "Mme", "unpruned", "-"].value == Mme().score(answers)["perception"].value


def test_means_leave_out_each_set_in_turn(tmp_path):
    right = {"a": ("1111", "1110"), "b": ("1100", "1000"), "c": ("1111", "1111")}
    paths = [
        folder(tmp_path / name, rows("unpruned", whole), rows("Vtc()", part, QUARTER), **{"data.path": f"{name}.jsonl"})
        for name, (whole, part) in right.items()
    ]
    _, one = averages(entries(load_runs(paths).runs))
    assert one.percent == {"a": 75, "b": 50, "c": 100}
    assert one.mean == 75
    assert one.without == {"a": 75, "b": 87.5, "c": 62.5}
    assert one.least == 62.5
    assert averages(entries(load_runs(paths[:1]).runs)) == []


def test_a_mean_without_one_of_its_sets_is_none(tmp_path):
    paths = [
        folder(tmp_path / "a", rows("unpruned", "11"), rows("Vtc()", "10", QUARTER)),
        folder(tmp_path / "b", rows("unpruned", "11"), **{"data.path": "b.jsonl"}),
    ]
    one = averages(entries(load_runs(paths).runs))[1]
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
    warm[:4] = [Prediction(**asdict(row) | {"seconds": 9.0}) for row in warm[:4]]
    first = folder(tmp_path / "1", rows("unpruned", "1" * 8, seconds=0.1), warm)
    late = rows("Pool()", "1" * 8, QUARTER, seconds=0.1)
    second = folder(tmp_path / "2", rows("unpruned", "0" * 8, seconds=0.4), late)
    told = made(first, second)
    assert told["tiny", "toys", "Vtc()", "0.25"].pace == pytest.approx(0.5)
    assert told["tiny", "toys", "Pool()", "0.25"].pace == pytest.approx(0.25)
    assert told["tiny", "toys", "unpruned", "-"].value == 1  # of the first run, as its seconds
    assert told["tiny", "toys", "unpruned", "-"].seconds == pytest.approx(0.1)
