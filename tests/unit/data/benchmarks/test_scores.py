"""Scores of all benchmarks: without reference answers, in official formats, with linear work."""

import csv
import itertools
import json
import sys

import pytest

from support.benchmark_answers import mme, rotation, row, values
from vtcframe import Gqa, MmBench, Mme, MmVet, Pope, SeedBench, TextVqa, VqaV2


def test_without_reference_answers_only_the_unread_column_has_a_score():
    rows = [rotation(answer, None, 1, turn) for turn, answer in enumerate(["A", "?", "B"])]
    assert values(MmBench().score(rows)) == pytest.approx({"ocr": None, "fine": None, "unread": 1 / 3, "all": None})
    assert values(SeedBench().score([row("A", options=["x", "y"])])) == {"unread": 0, "all": None}
    assert MmVet().score([row("cat", "cat")]) == {"all": (1, None)}  # graded by a language model


# Exports


def test_files_are_exported_in_the_official_formats(tmp_path):
    def export(benchmark, rows):
        (path,) = benchmark.export(rows, tmp_path / "unpruned")
        return path.name, json.loads(path.read_text(encoding="utf-8"))

    rows = [row("Two.", name="42000"), row(None, name="42001")]
    answers = [{"question_id": 42000, "answer": "2"}, {"question_id": 42001, "answer": ""}]
    assert export(VqaV2(), rows) == ("vqav2.json", answers)
    answers[0]["answer"] = "Two."
    assert export(TextVqa(), rows) == ("textvqa.json", answers)
    answers = [{"questionId": "42000", "prediction": "two"}, {"questionId": "42001", "prediction": ""}]
    assert export(Gqa(), rows) == ("gqa.json", answers)
    rows = [row("grün", name="v1_0"), row(None, name="v1_1")]
    assert export(MmVet(), rows) == ("mm-vet.json", {"v1_0": "grün", "v1_1": ""})
    assert Pope().export(rows, tmp_path) == SeedBench().export(rows, tmp_path) == []
    assert not list(tmp_path.rglob("*.part"))


def test_mme_writes_a_file_for_each_category_with_four_columns(tmp_path):
    rows = [mme("Yes,\nit\tis", "Yes"), mme(None, "No"), mme("no", "No", "OCR")]
    count, ocr = Mme().export(rows, tmp_path)
    assert (count.name, ocr.name) == ("count.txt", "OCR.txt")
    assert count.read_text() == "1.jpg\tIs it?\tYes\tYes, it is\n1.jpg\tIs it?\tNo\t\n"


def test_mmbench_writes_a_table_with_a_row_for_each_rotation(tmp_path):
    rows = [rotation("A", "w", 1, 0, rounds=2), rotation(None, None, 2, 1)]
    (path,) = MmBench().export(rows, tmp_path)
    with path.open(newline="") as file:
        table = list(csv.reader(file, delimiter="\t"))
    assert table == [
        ["index", "question", "A", "B", "C", "answer", "prediction"],
        ["1", "Which?", "w", "x", "", "A", "A"],
        ["1000002", "Which?", "x", "y", "w", "", ""],
    ]


def count_calls(function, *arguments):
    """Return the number of calls of Python and C functions that a call makes."""
    calls = itertools.count()
    sys.setprofile(lambda frame, event, _: next(calls) if event in ("call", "c_call") else None)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return next(calls)


def test_the_work_of_scoring_is_linear_in_the_number_of_questions():
    names = ["cat", "two dogs", "it's", "yes"]
    answers = [[f"{name} {n % 97}"] * 4 + names + ["no"] * 2 for n, name in enumerate(names * 25)]
    rows = [row(f"{names[n % 4]} {n % 97}", "cat", "other", answers=answers[n % 100]) for n in range(2000)]
    letters = [rotation("A", "w", n // 3, n % 3) for n in range(2100)]
    for benchmark, questions in ((VqaV2(), rows), (MmBench(), letters)):
        few, many = (count_calls(benchmark.score, questions[:count]) for count in (len(questions) // 7, len(questions)))
        assert many < 10 * few, "quadratic work would make 49 times as many calls"
