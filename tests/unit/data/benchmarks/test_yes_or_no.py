"""Scores of yes-or-no questions: published figures, examples worked by hand, references on random answers."""

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
        ("NO", True),  # as in the authors' code
        ("No, there is not.", False),
        ("There is not.", False),
        ("Yes. There is no doubt.", True),
        ("No, it is a dog", False),
        ("Certainly, no", False),
        ("nothing", True),
        ("", True),
    ],
)
def test_answers_are_parsed_by_the_rules_of_popes_authors(text, yes):
    assert says_yes(text) is yes


def test_pope_has_the_published_figures_of_minigpt_4_on_random_objects():
    """3000 questions, half with the answer yes: 1233 right and 343 wrong yes (Li et al., table 3, in percent)."""
    rows = [row("yes", "yes", "random")] * 1233 + [row("no", "yes", "random")] * 267
    rows += [row("yes", "no", "random")] * 343 + [row("no", "no", "random")] * 1157
    scores = Pope().score(rows)
    published = {"accuracy": 0.7967, "precision": 0.7824, "recall": 0.8220, "F1": 0.8017, "yes": 0.5253}
    assert values(scores) == pytest.approx(
        {f"random {name}": value for name, value in published.items()} | {"F1": 0.8017}, abs=5e-5
    )
    assert list(scores)[-1] == "F1"
    assert {score.questions for score in scores.values()} == {3000}


def test_pope_matches_a_reference_on_random_answers_and_ends_with_the_mean_f1():
    generator = random.Random(3)
    strategies = ("random", "popular", "adversarial")
    rows = [
        row(generator.choice(["Yes", "No", "It is not"]), generator.choice(["yes", "no"]), generator.choice(strategies))
        for _ in range(500)
    ]
    expected, all_f1 = {}, []
    for strategy in strategies:
        tp = fp = tn = fn = 0
        for question in rows:
            if question.type == strategy:
                predicted = question.prediction == "Yes"
                expected_yes = question.answer == "yes"
                tp, fp, tn, fn = (
                    tp + (predicted and expected_yes),
                    fp + (predicted and not expected_yes),
                    tn + (not predicted and not expected_yes),
                    fn + (not predicted and expected_yes),
                )
        precision = tp / (tp + fp)
        recall = tp / (tp + fn)
        count = tp + fp + tn + fn
        all_f1.append(2 * precision * recall / (precision + recall))
        figures = (tp + tn) / count, precision, recall, all_f1[-1], (tp + fp) / count
        names = ("accuracy", "precision", "recall", "F1", "yes")
        expected |= {f"{strategy} {name}": figure for name, figure in zip(names, figures, strict=True)}
    assert values(Pope().score(rows)) == pytest.approx(expected | {"F1": sum(all_f1) / 3})


def test_pope_has_scores_without_any_yes():
    scores = values(Pope().score([row("no", "yes", "random"), row("no", "no", "random")]))
    assert (scores["random precision"], scores["random accuracy"], scores["F1"]) == (0, 0.5, 0)


@pytest.mark.parametrize(
    ("text", "parsed"),
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
def test_answers_are_parsed_by_the_rules_of_mmes_authors(text, parsed):
    assert [Mme().grade(mme(text, answer)) for answer in ("Yes", "No")] == [parsed == "yes", parsed == "no"]


def test_mme_adds_accuracy_and_accuracy_plus_in_percent():
    """Three pictures with both, one, and one answer right: accuracy 4 of 6, accuracy+ 1 of 3."""
    rows = [mme("Yes", "Yes", picture="a"), mme("No", "No", picture="a"), mme("Yes", "Yes", picture="b")]
    rows += [mme("Yes", "No", picture="b"), mme("Yes", "Yes", picture="c"), mme("perhaps", "No", picture="c")]
    rows += [mme("yes", "Yes", "code_reasoning"), mme("no", "No", "code_reasoning")]
    scores = Mme().score(rows)
    assert list(scores) == ["count", "code_reasoning", "cognition", "perception"]
    assert values(scores) == pytest.approx({"count": 100, "code_reasoning": 200, "cognition": 200, "perception": 100})
    assert [score.questions for score in scores.values()] == [6, 2, 2, 6]
    assert values(Mme().score(rows[:6]))["cognition"] is None
    assert values(Mme().score(rows[:1])) == pytest.approx({"count": 100, "cognition": None, "perception": 100})


def test_mme_matches_a_reference_on_random_answers():
    generator = random.Random(4)
    kinds = {"existence": "perception", "OCR": "perception", "text_translation": "cognition"}
    rows, expected = [], dict.fromkeys(["cognition", "perception"], 0.0)
    for kind, group in kinds.items():
        hits = []
        for picture in range(40):
            pair = [(generator.choice(["Yes", "no", "?"]), answer) for answer in ("Yes", "No")]
            rows += [mme(prediction, answer, kind, str(picture)) for prediction, answer in pair]
            hits.append([prediction.lower() == answer.lower() for prediction, answer in pair])
        accuracy = sum(map(sum, hits)) / 80
        plus = sum(map(all, hits)) / 40
        expected[kind] = 100 * (accuracy + plus)
        expected[group] += expected[kind]
    assert values(Mme().score(rows)) == pytest.approx(expected)
