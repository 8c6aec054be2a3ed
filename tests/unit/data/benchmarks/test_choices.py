"""Scores of multiple-choice questions: examples worked by hand, and references on random answers."""

import random

import pytest

from support.benchmark_answers import rotation, row, values
from vtcframe import MmBench, ScienceQa, SeedBench
from vtcframe.data.benchmarks.choices import parse_choice

# Letters


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("B. a blue ring", "B"),
        ("The answer is B", "B"),
        ("A", "A"),
        ("A: a cat", "A"),
        ("A ring of gold, B", None),  # two letters, or an article and a letter, and no option text
        ("A thing that is green", "C"),  # A is an article
        ("B or C", None),
        ("b", None),
        ("Green", "C"),
        ("it is green, not blue", None),
        ("E", None),
        ("", None),
    ],
)
def test_letters_are_parsed_by_the_rules_of_mmbench(text, letter):
    assert parse_choice(text, ["red", "blue", "green", "black"]) == letter


def test_seed_bench_counts_answers_without_a_letter():
    options = ["One", "Two", "Three", "Four"]
    rows = [
        row("C", "C", "Instances Counting", options=options),
        row("three", "C", "Instances Counting", options=options),
        row("A", "B", "Scene Understanding", options=options),
        row("I cannot see it", "B", "Scene Understanding", options=options),
    ]
    assert values(SeedBench().score(rows)) == {
        "Instances Counting": 1,
        "Scene Understanding": 0,
        "unread": 0.25,
        "all": 0.5,
    }
    assert list(SeedBench().score(rows))[-2:] == ["unread", "all"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" B\t", "B"),
        ("B. blue", "B"),
        ("B\nblue", "B"),
        ("The answer is B.", "B"),
        ("Because. The answer is B", "B"),
        ("The answer is A or not. The answer is B. The answer is A.", "B"),
        ("B.", None),  # as in LLaVA's code
        ("blue", None),
        ("C", None),  # only two choices exist
        ("b", None),
        ("", None),
    ],
)
def test_letters_are_parsed_as_in_llavas_science_qa_code(text, letter):
    assert ScienceQa().parse_letter(row(text, options=["red", "blue"])) == letter


def test_science_qa_scores_by_subject_context_and_grade():
    options = ["red", "blue"]
    rows = [
        row("A", "A", "NAT", options=options, hint=True, grade=2),
        row("B", "A", "NAT", options=options, hint=False, grade=6),
        row("B", "B", "SOC", options=options, hint=False, grade=7),
        row("blue", "B", "SOC", options=options, hint=True, grade=12),
    ]
    scores = ScienceQa().score(rows)
    expected = {"NAT": 0.5, "SOC": 0.5, "LAN": None, "TXT": 0.5, "G1-6": 0.5, "G7-12": 0.5, "unread": 0.25, "IMG": 0.5}
    assert values(scores) == expected
    assert list(scores) == list(expected)
    assert scores["LAN"].questions == 0


def test_mmbench_counts_a_question_only_if_it_is_right_in_every_rotation():
    """CircularEval by hand: if w is right, its letter moves from A to C to B as the options rotate."""
    right = [rotation("A", "w", 1, 0), rotation("C.", "w", 1, 1), rotation("w", "w", 1, 2)]
    always_a = [rotation("A", "w", 2, turn, "logic", l2="coarse") for turn in range(3)]  # right in one rotation
    incomplete = [rotation("A", "w", 3, 0, "logic"), rotation("C", "w", 3, 1, "logic")]  # its last rotation failed
    scores = MmBench().score([*right, *always_a, *incomplete])
    assert values(scores) == pytest.approx(
        {"ocr": 1, "logic": 0, "fine": 1 / 2, "coarse": 0, "unread": 0, "all": 1 / 3}
    )
    assert [score.questions for score in scores.values()] == [1, 2, 2, 1, 8, 3]
    assert list(scores)[-1] == "all"


def test_mmbench_matches_a_reference_on_random_answers():
    generator = random.Random(5)
    rows, hits = [], []
    for group in range(300):
        rounds = generator.randint(2, 4)
        all_right = True
        for turn in range(rounds):
            options = "wxyz"[:rounds][turn:] + "wxyz"[:rounds][:turn]
            answer = generator.choice(
                [options.index("w"), options.index("w"), options.index("w"), generator.randrange(rounds)]
            )
            all_right = all_right and options[answer] == "w"
            rows.append(rotation("ABCD"[answer], "w", group, turn, rounds=rounds))
        hits.append(all_right)
    assert 0 < sum(hits) < 300
    generator.shuffle(rows)
    assert MmBench().score(rows)["all"] == (300, pytest.approx(sum(hits) / 300))
