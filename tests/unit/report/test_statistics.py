"""The figures of the report, compared to plain reference implementations."""

import math
import random
from dataclasses import asdict
from statistics import NormalDist, fmean, stdev

import pytest

from support.report_runs import QUARTER, TIED, folder, results_of, rows
from vtcframe import Mme, Pope
from vtcframe.data.results import Prediction
from vtcframe.report.runs import load_runs
from vtcframe.report.statistics import average_over_data, collect_results, paired_difference, pareto_front

pytest.importorskip("scipy", reason="the extra `report` is not installed")


pytest.importorskip("jinja2", reason="the extra `report` is not installed")


def test_seeds_of_a_method_are_one_result_with_mean_and_spread(tmp_path):
    right_of_seed = {0: "11110000", 1: "11000000", 2: "11111100"}
    answers = [rows(f"RandomPruner(seed={seed})", right, QUARTER) for seed, right in right_of_seed.items()]
    result = results_of(folder(tmp_path / "a", rows("unpruned", "11111110"), *answers))[
        "tiny", "toys", "RandomPruner()", "0.25"
    ]
    assert result.values == (4 / 8, 2 / 8, 6 / 8)
    assert result.value == 0.5
    assert result.spread == (0.25, 0.75, pytest.approx(stdev([0.5, 0.25, 0.75])))
    assert result.grades["q2"] == pytest.approx(2 / 3)
    assert result.percent == pytest.approx(100 * 0.5 / (7 / 8))


def test_nested_seeds_are_separated_from_other_options(tmp_path):
    nested = "Pipeline(scorers=(Random(seed={}), ClsAttention(last=3)), across='view')"
    answers = [rows(nested.format(seed), "10", QUARTER) for seed in (0, 7)] + [rows("Draw(last=2, seed=3)", "11")]
    names = {
        (result.method, len(result.values))
        for result in collect_results(load_runs([folder(tmp_path / "a", *answers)]).runs)
    }
    assert names == {(nested.format(0).replace("seed=0", ""), 2), ("Draw(last=2)", 1)}


def test_mcnemars_test_is_exact():
    grades = {n: float(n < 3) for n in range(20)}
    others = {n: float(3 <= n < 14) for n in range(20)}  # 3 better, 11 worse
    expected = 2 * sum(math.comb(14, k) for k in range(4)) / 2**14
    assert paired_difference(grades, others, {n: n for n in range(20)}).mcnemar == pytest.approx(expected)
    assert paired_difference(grades, grades, {n: n for n in range(20)}).mcnemar == 1
    assert paired_difference({0: 0.3, 1: 1.0}, {0: 1.0, 1: 1.0}, {0: 0, 1: 1}).mcnemar is None


def test_the_bootstrap_is_that_of_paired_differences():
    generator = random.Random(0)
    grades = {n: float(generator.random() < 0.6) for n in range(400)}
    others = {n: float(generator.random() < 0.8) if generator.random() < 0.5 else grades[n] for n in range(400)}
    differences = [grades[n] - others[n] for n in range(400)]
    result = paired_difference(grades, others, {n: n for n in range(400)})
    half = NormalDist().inv_cdf(0.975) * stdev(differences) / math.sqrt(400)
    assert result.mean == pytest.approx(fmean(differences))
    assert result.interval == pytest.approx((fmean(differences) - half, fmean(differences) + half), abs=0.1 * half)
    assert result.units == 400


def test_questions_about_a_picture_are_resampled_together():
    generator = random.Random(0)
    alone = {n: generator.random() for n in range(50)}
    nothing = {n: 0.0 for n in range(200)}
    four = {4 * n + k: alone[n] for n in range(50) for k in range(4)}
    units = {n: n // 4 for n in range(200)}
    together = paired_difference(four, nothing, units).interval
    assert together == pytest.approx(paired_difference(alone, nothing, {n: n for n in range(50)}).interval)
    low, high = paired_difference(four, nothing, {n: n for n in range(200)}).interval
    assert high - low < 0.7 * (together[1] - together[0])


def test_pictures_are_weighted_by_their_numbers_of_questions():
    grades = {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.0}
    result = paired_difference(grades, dict.fromkeys(grades, 0.0), {0: "a", 1: "a", 2: "a", 3: "b"})
    assert result.mean == 0.75
    assert result.interval == (0.0, 1.0)
    many = {(n, k): float(n % 2) for n in range(100) for k in range(3 if n % 2 else 1)}
    low, high = paired_difference(many, dict.fromkeys(many, 0.0), {name: name[0] for name in many}).interval
    assert 0.6 < low < 0.75 < high < 0.9


@pytest.mark.parametrize(("right", "verdict"), [("1" * 20, TIED), ("0" * 20, "lower"), ("1" * 19 + "0", TIED)])
def test_an_interval_that_contains_zero_is_not_shown_to_differ(tmp_path, right, verdict):
    results = results_of(folder(tmp_path / "a", rows("unpruned", "1" * 20), rows("VtcCls(last=3)", right, QUARTER)))
    assert results["tiny", "toys", "VtcCls(last=3)", "0.25"].against_unpruned.verdict == verdict


def test_a_single_question_has_no_interval_and_disjoint_questions_no_difference():
    assert paired_difference({"a": 1.0}, {"a": 0.0}, {"a": "a"}).interval is None
    assert paired_difference({"a": 1.0}, {"a": 0.0}, {"a": "a"}).verdict == TIED
    assert paired_difference({"a": 1.0}, {"b": 0.0}, {"a": "a"}) is None


def test_methods_are_compared_to_the_better_of_random_and_uniform_at_their_budget(tmp_path):
    results = results_of(
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
    result = results["tiny", "toys", "VtcCls(last=3)", "0.25"]
    assert (result.baseline, result.against_baseline.mean) == ("UniformPruner", 0.25)
    assert results["tiny", "toys", "VtcCls(last=3)", "0.125"].baseline is None
    assert results["tiny", "toys", "UniformPruner()", "0.25"].baseline is None


def test_scores_are_those_of_the_benchmark_and_its_last_column_is_the_headline(tmp_path):
    right = rows("unpruned", "1101")
    path = folder(tmp_path / "a", right, **{"data.benchmark": {"name": "Pope"}})
    result = results_of(path)["tiny", "Pope", "unpruned", "-"]
    scores = Pope().score(right)
    assert result.value == pytest.approx(scores["F1"].value)
    assert list(result.scores) == list(scores)
    assert result.grades == {"q0": 1, "q1": 1, "q2": 0, "q3": 1}


def test_questions_of_mme_are_resampled_by_picture(tmp_path):
    answers = [row for n in range(3) for row in rows("unpruned", "11", meta={"picture": f"{n}.png", "question": "?"})]
    answers = [Prediction(**asdict(row) | {"id": f"{n}"}) for n, row in enumerate(answers)]
    path = folder(tmp_path / "a", answers, **{"data.benchmark": {"name": "Mme"}})
    assert len(set(results_of(path)["tiny", "Mme", "unpruned", "-"].units.values())) == 3
    assert results_of(path)["tiny", "Mme", "unpruned", "-"].value == Mme().score(answers)["perception"].value


def test_means_leave_out_each_set_in_turn(tmp_path):
    right = {"a": ("1111", "1110"), "b": ("1100", "1000"), "c": ("1111", "1111")}
    paths = [
        folder(
            tmp_path / name, rows("unpruned", full), rows("Vtc()", pruned, QUARTER), **{"data.path": f"{name}.jsonl"}
        )
        for name, (full, pruned) in right.items()
    ]
    _, result = average_over_data(collect_results(load_runs(paths).runs))
    assert result.percent == {"a": 75, "b": 50, "c": 100}
    assert result.mean == 75
    assert result.without == {"a": 75, "b": 87.5, "c": 62.5}
    assert result.least == 62.5
    assert average_over_data(collect_results(load_runs(paths[:1]).runs)) == []


def test_a_mean_without_one_of_its_sets_is_none(tmp_path):
    paths = [
        folder(tmp_path / "a", rows("unpruned", "11"), rows("Vtc()", "10", QUARTER)),
        folder(tmp_path / "b", rows("unpruned", "11"), **{"data.path": "b.jsonl"}),
    ]
    result = average_over_data(collect_results(load_runs(paths).runs))[1]
    assert (result.method, result.mean, result.least, result.seconds) == ("Vtc()", None, None, None)
    assert result.percent == {"toys": 50, "b": None}


def test_the_front_holds_the_points_that_are_not_dominated():
    generator = random.Random(0)
    for _ in range(50):
        points = [(generator.randrange(6), generator.randrange(6)) for _ in range(12)]
        expected = {
            point
            for point in points
            if not any(other != point and other[0] <= point[0] and other[1] >= point[1] for other in points)
        }
        assert pareto_front(points) == sorted(expected)


def test_seconds_are_compared_within_a_run_and_the_first_batch_is_left_out(tmp_path):
    warm = rows("Vtc()", "11111111", QUARTER, seconds=0.05)
    warm[:4] = [Prediction(**asdict(row) | {"seconds": 9.0}) for row in warm[:4]]
    first = folder(tmp_path / "1", rows("unpruned", "1" * 8, seconds=0.1), warm)
    late = rows("Pool()", "1" * 8, QUARTER, seconds=0.1)
    second = folder(tmp_path / "2", rows("unpruned", "0" * 8, seconds=0.4), late)
    results = results_of(first, second)
    assert results["tiny", "toys", "Vtc()", "0.25"].time_ratio == pytest.approx(0.5)
    assert results["tiny", "toys", "Pool()", "0.25"].time_ratio == pytest.approx(0.25)
    assert results["tiny", "toys", "unpruned", "-"].value == 1  # of the first run, like the seconds
    assert results["tiny", "toys", "unpruned", "-"].seconds == pytest.approx(0.1)
