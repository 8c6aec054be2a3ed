from dataclasses import dataclass

import pytest

from vtcframe.data.benchmarks.base import Benchmark
from vtcframe.data.results import (
    Prediction,
    Score,
    accuracy,
    mean_score,
    mean_scores,
    mean_seconds,
    normalise,
    parts,
    runs,
)
from vtcframe.runs.table import format_table


def row(kind="color", answer="red", prediction="red", method="unpruned", budget=None, **more):
    return Prediction("a", kind, "?", answer, method, budget, prediction, 36, 144, 0, **more)


@pytest.mark.parametrize("text", ["Red", " red\n", "red.", "RED. "])
def test_answers_match_whatever_their_case_space_and_final_full_stop(text):
    assert normalise(text) == "red"


def test_an_answer_with_more_words_is_another_answer():
    assert not row(prediction="red ring").correct


def test_accuracy_is_the_fraction_of_known_answers_that_are_met():
    rows = [row(), row(prediction="blue"), row(answer=None), row(prediction="Red."), row(prediction=None, error="lost")]
    assert accuracy(rows) == 2 / 3
    assert accuracy([row(answer=None)]) is None


def test_the_table_has_a_line_for_each_method_and_budget_and_a_column_for_each_type():
    rows = [
        row(),
        row("count", "two", "two"),
        row("color", "red", "blue", "VtcCls(last=3)", {"ratio": 0.25}),
        row("count", "two", "two", "VtcCls(last=3)", {"ratio": 0.25}),
        row("color", "red", "red", "VtcCls(last=3)", {"tokens": 9, "per": "image"}),
        row("count", "two", "one", "VtcCls(last=3)", {"tokens": 9, "per": "image"}),
        Prediction("b", "color", "?", "red", error="cannot read the image"),
    ]
    groups = {"attributes": ["color", "shape"], "everything": ["color", "count"], "nothing": ["letter"]}
    assert format_table(rows, groups=groups).splitlines() == [
        "method                    budget  tokens  seconds  color  count  attributes    all",
        "questions                                              1      1           1      2",
        "unpruned                       -    36.0        -  1.000  1.000       1.000  1.000",
        "VtcCls(last=3)              0.25    36.0        -  0.000  1.000       0.000  0.500",
        "VtcCls(last=3)  9 tokens a image    36.0        -  1.000  0.000       1.000  0.500",
    ]


def test_without_types_and_answers_the_table_still_tells_how_many_tokens_were_read():
    assert format_table([row(None, None)]).splitlines() == [
        "method     budget  tokens  seconds  all",
        "questions                             1",
        "unpruned        -    36.0        -    -",
    ]


def test_where_every_sample_failed_there_is_no_table():
    assert format_table([Prediction("b", "color", "?", "red", error="cannot read the image")]) == ""


def test_seconds_include_the_encoding_and_leave_the_first_batch_out_where_there_are_more():
    first = row(seconds=9.0, encode_seconds=1.0, batch=0)
    later = [row(seconds=s, encode_seconds=0.5, batch=n) for n, s in ((1, 1.0), (2, 2.0))]
    assert mean_seconds([first, *later]) == 2.0
    assert mean_seconds([first]) == 10.0
    assert mean_seconds([row()]) is None
    assert format_table([first, *later]).splitlines()[-1].split()[3] == "2.0000"


def test_rows_are_split_in_the_order_in_which_they_come_and_what_has_no_key_is_in_no_part():
    rows = [row("b"), row("a"), row(None), row("b", "blue")]
    assert parts(rows, lambda one: one.type) == {"b": [rows[0], rows[3]], "a": [rows[1]]}


def test_runs_are_told_by_method_and_budget_and_have_no_failures():
    rows = [row(), row(method="VtcCls()", budget={"tokens": 9}), row(), row(error="lost", method=None)]
    assert runs(rows) == {("unpruned", "-"): [rows[0], rows[2]], ("VtcCls()", "9 tokens"): [rows[1]]}


def test_a_mean_is_of_what_is_known():
    assert mean_score([1.0, None, 0.5]) == Score(3, 0.75)
    assert mean_score([None]) == Score(1, None)
    assert mean_score([]) == Score(0, None)
    assert mean_scores({"x": [row(), row(answer=None)]}, lambda one: one.correct) == {"x": Score(2, 1)}


@dataclass(frozen=True)
class Length(Benchmark):
    """Grades an answer by its letters; knows no answers of the type "secret"."""

    def read(self, path, images):
        return []

    def grade(self, row):
        return None if row.type == "secret" else len(row.prediction) / row.meta["letters"]


def test_the_scores_of_the_table_are_those_of_the_benchmark():
    rows = [
        row("word", prediction="ab", meta={"letters": 4}),
        row("secret"),
        row("word", prediction="a", method="VtcCls()", budget={"tokens": 9}, meta={"letters": 4}),
        row("secret", method="VtcCls()", budget={"tokens": 9}),
    ]
    assert format_table(rows, Length()).splitlines() == [
        "method       budget  tokens  seconds   word  secret    all",
        "questions                                 1       1      2",
        "unpruned          -    36.0        -  0.500       -  0.500",
        "VtcCls()   9 tokens    36.0        -  0.250       -  0.250",
    ]
    assert Length().export(rows, None) == []
