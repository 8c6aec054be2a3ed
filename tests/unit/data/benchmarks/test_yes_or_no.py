"""Scores of yes-or-no questions: published figures or examples worked by hand, and twins on random answers."""

import random

import pytest

from support.benchmark_answers import mme, row, values
from vtcframe import Mme, Pope
from vtcframe.data.benchmarks.yes_or_no import says_yes

# POPE


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True),
        ("no", False),
        ("No", False),
        ("NO", True),  # as the authors' code has it
        ("No, there is not.", False),
        ("There is not.", False),
        ("Yes. There is no doubt.", True),
        ("No, it is a dog", False),
        ("Certainly, no", False),
        ("nothing", True),
        ("", True),
    ],
)
def test_an_answer_is_read_as_popes_authors_do(text, yes):
    assert says_yes(text) is yes


def test_pope_has_the_published_figures_of_minigpt_4_on_random_objects():
    """Of 3000 questions, half of them yes: 1233 right and 343 wrong yes (Li et al., table 3; in percent there)."""
    rows = [row("yes", "yes", "random")] * 1233 + [row("no", "yes", "random")] * 267
    rows += [row("yes", "no", "random")] * 343 + [row("no", "no", "random")] * 1157
    scores = Pope().score(rows)
    published = {"accuracy": 0.7967, "precision": 0.7824, "recall": 0.8220, "F1": 0.8017, "yes": 0.5253}
    assert values(scores) == pytest.approx(
        {f"random {name}": value for name, value in published.items()} | {"F1": 0.8017}, abs=5e-5
    )
    assert list(scores)[-1] == "F1"
    assert {one.questions for one in scores.values()} == {3000}


def test_pope_is_the_twins_on_random_answers_and_the_last_figure_is_the_mean_over_the_ways():
    draw = random.Random(3)
    ways = ("random", "popular", "adversarial")
    rows = [
        row(draw.choice(["Yes", "No", "It is not"]), draw.choice(["yes", "no"]), draw.choice(ways)) for _ in range(500)
    ]
    expected, all_f1 = {}, []
    for way in ways:
        tp = fp = tn = fn = 0
        for one in rows:
            if one.type == way:
                said, right = one.prediction == "Yes", one.answer == "yes"
                tp, fp, tn, fn = (
                    tp + (said and right),
                    fp + (said and not right),
                    tn + (not said and not right),
                    fn + (not said and right),
                )
        precision, recall, count = tp / (tp + fp), tp / (tp + fn), tp + fp + tn + fn
        all_f1.append(2 * precision * recall / (precision + recall))
        figures = (tp + tn) / count, precision, recall, all_f1[-1], (tp + fp) / count
        names = ("accuracy", "precision", "recall", "F1", "yes")
        expected |= {f"{way} {name}": figure for name, figure in zip(names, figures, strict=True)}
    assert values(Pope().score(rows)) == pytest.approx(expected | {"F1": sum(all_f1) / 3})


def test_pope_has_figures_where_nothing_was_answered_with_yes():
    scores = values(Pope().score([row("no", "yes", "random"), row("no", "no", "random")]))
    assert (scores["random precision"], scores["random accuracy"], scores["F1"]) == (0, 0.5, 0)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("NO", "no"),
        (" yes", "yes"),
        ("Oh, yes", "other"),
        ("not", "no"),
        ("maybe", "other"),
    ],
)
def test_an_answer_is_read_as_mmes_authors_do(text, read):
    assert [Mme().grade(mme(text, answer)) for answer in ("Yes", "No")] == [read == "yes", read == "no"]


def test_mme_adds_accuracy_and_accuracy_plus_in_percent():
    """Three pictures: both right, one right, and one of two answers unreadable: 4 of 6, and 1 of 3."""
    rows = [mme("Yes", "Yes", picture="a"), mme("No", "No", picture="a"), mme("Yes", "Yes", picture="b")]
    rows += [mme("Yes", "No", picture="b"), mme("Yes", "Yes", picture="c"), mme("perhaps", "No", picture="c")]
    rows += [mme("yes", "Yes", "code_reasoning"), mme("no", "No", "code_reasoning")]
    scores = Mme().score(rows)
    assert list(scores) == ["count", "code_reasoning", "cognition", "perception"]
    assert values(scores) == pytest.approx({"count": 100, "code_reasoning": 200, "cognition": 200, "perception": 100})
    assert [one.questions for one in scores.values()] == [6, 2, 2, 6]
    assert values(Mme().score(rows[:6]))["cognition"] is None
    assert values(Mme().score(rows[:1])) == pytest.approx({"count": 100, "cognition": None, "perception": 100})


def test_mme_is_the_twins_on_random_answers():
    draw = random.Random(4)
    kinds = {"existence": "perception", "OCR": "perception", "text_translation": "cognition"}
    rows, expected = [], dict.fromkeys(["cognition", "perception"], 0.0)
    for kind, group in kinds.items():
        hits = []
        for picture in range(40):
            pair = [(draw.choice(["Yes", "no", "?"]), answer) for answer in ("Yes", "No")]
            rows += [mme(said, answer, kind, str(picture)) for said, answer in pair]
            hits.append([said.lower() == answer.lower() for said, answer in pair])
        accuracy, plus = sum(map(sum, hits)) / 80, sum(map(all, hits)) / 40
        expected[kind] = 100 * (accuracy + plus)
        expected[group] += expected[kind]
    assert values(Mme().score(rows)) == pytest.approx(expected)
