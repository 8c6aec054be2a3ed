import pytest

from vtcframe.metrics import Row, accuracy, normalised, seconds, table


def row(kind="color", answer="red", prediction="red", method="unpruned", budget=None, **more):
    return Row("a", kind, "?", answer, method, budget, prediction, 36, 144, 0, **more)


@pytest.mark.parametrize("text", ["Red", " red\n", "red.", "RED. "])
def test_answers_match_whatever_their_case_space_and_final_full_stop(text):
    assert normalised(text) == "red"


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
        Row("b", "color", "?", "red", error="cannot read the image"),
    ]
    assert table(rows).splitlines() == [
        "method                    budget  tokens  seconds  color  count  attributes    all",
        "questions                                              1      1           1      2",
        "unpruned                       -    36.0        -  1.000  1.000       1.000  1.000",
        "VtcCls(last=3)              0.25    36.0        -  0.000  1.000       0.000  0.500",
        "VtcCls(last=3)  9 tokens a image    36.0        -  1.000  0.000       1.000  0.500",
    ]


def test_without_types_and_answers_the_table_still_tells_how_many_tokens_were_read():
    assert table([row(None, None)]).splitlines() == [
        "method     budget  tokens  seconds  all",
        "questions                             1",
        "unpruned        -    36.0        -    -",
    ]


def test_where_every_sample_failed_there_is_no_table():
    assert table([Row("b", "color", "?", "red", error="cannot read the image")]) == ""


def test_seconds_include_the_encoding_and_leave_the_first_batch_out_where_there_are_more():
    first = row(seconds=9.0, encode_seconds=1.0, batch=0)
    later = [row(seconds=s, encode_seconds=0.5, batch=n) for n, s in ((1, 1.0), (2, 2.0))]
    assert seconds([first, *later]) == 2.0
    assert seconds([first]) == 10.0
    assert seconds([row()]) is None
    assert table([first, *later]).splitlines()[-1].split()[3] == "2.0000"
