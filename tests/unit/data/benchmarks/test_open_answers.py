"""Scores of open answers: examples worked by hand, and references on random answers."""

import random

import pytest

from support.benchmark_answers import row, values
from vtcframe import Gqa, TextVqa, VqaV2
from vtcframe.data.benchmarks.open_answers import normalize_evalai, normalize_vqa, vqa_accuracy

# VQA accuracy


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (7, 1), (10, 1)])
def test_vqa_accuracy_depends_on_the_number_of_matching_references(matches, expected):
    assert vqa_accuracy("cat", ["cat"] * matches + ["dog"] * (10 - matches)) == pytest.approx(expected)


def test_vqa_accuracy_is_the_mean_over_subsets_without_a_reference():
    generator = random.Random(0)
    for _ in range(300):
        references = [generator.choice("abc") for _ in range(generator.randint(1, 12))]
        answer = generator.choice("abcd")
        total = 0.0
        for omitted in range(len(references)):
            others = references[:omitted] + references[omitted + 1 :]
            total += min(1.0, sum(other == answer for other in others) / 3)
        assert vqa_accuracy(answer, references) == pytest.approx(total / len(references))


WORDS = [  # text, normalised by VQA, normalised by EvalAI
    ("The cat", "cat", "cat"),
    ("Two dogs.", "2 dogs", "2 dogs"),
    ("none", "0", "0"),
    ("dont", "don't", "don't"),
    ("wouldnt've", "wouldn't've", "wouldn't've"),
    ("yall'll", "y'all'll", "y'all'll"),
    ("it's", "it's", "it 's"),  # the two differ
    ("somebody'd", "somebodyd", "somebodyd"),
    ("1,000", "1000", "1000"),
    ("3.5", "3.5", "3.5"),
    ("3. 5", "3 5", "3 5"),
    ("black/white", "black white", "black white"),
    ("black / white", "black white", "black white"),
    ("t-shirt", "t shirt", "t shirt"),
    ("t- shirt", "t shirt", "t shirt"),
    ("t-shirt -red", "tshirt red", "tshirt red"),  # a hyphen next to a space removes all hyphens
    ("t-shirt- red", "tshirt red", "tshirt red"),
    ("a-1,000", "a1000", "1000"),  # EvalAI removes the comma between digits first
    ("what?yes", "what yes", "whatyes"),
    ("red,blue", "red blue", "redblue"),
    (" yes\nsir\t", "yes sir", "yes sir"),
    ("", "", ""),
]


@pytest.mark.parametrize(("text", "vqa", "evalai"), WORDS)
def test_answers_are_normalised_as_vqa_and_evalai_do(text, vqa, evalai):
    assert (normalize_vqa(text), normalize_evalai(text)) == (vqa, evalai)


def reference_vqa(text):
    """Normalise one mark and one word at a time."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    out = text
    for mark in [
        ";",
        "/",
        "[",
        "]",
        '"',
        "{",
        "}",
        "(",
        ")",
        "=",
        "+",
        "\\",
        "_",
        "-",
        ">",
        "<",
        "@",
        "`",
        ",",
        "?",
        "!",
    ]:
        next_to_space = any(text[i] == mark and " " in (text[i - 1 : i], text[i + 1 : i + 2]) for i in range(len(text)))
        thousands = any(
            a.isdigit() and b == "," and c.isdigit() for a, b, c in zip(text, text[1:], text[2:], strict=False)
        )
        out = "".join(("" if next_to_space or thousands else " ") if letter == mark else letter for letter in out)
    out = "".join(
        letter for i, letter in enumerate(out) if letter != "." or (i + 1 < len(out) and out[i + 1].isdigit())
    )
    numbers = dict(zip("none zero one two three four".split(), "001234", strict=True))
    return " ".join(numbers.get(w, w) for w in out.lower().split() if w not in ("a", "an", "the"))


def test_normalisation_matches_a_reference_on_random_texts():
    generator = random.Random(1)
    pieces = [*';/[]"{}()=+\\_-><@`,?!.,.', " ", " ", "\n", "\t", "1", "23", "A", "the", "two", "None", "cat", "é"]
    for _ in range(3000):
        text = "".join(generator.choice(pieces) for _ in range(generator.randint(0, 8)))
        assert normalize_vqa(text) == reference_vqa(text)


def test_vqa_v2_normalises_references_only_if_they_differ():
    grade = VqaV2().grade
    assert grade(row("Two dogs.", answers=["two dogs"] * 9 + ["2 dogs"])) == 1
    assert grade(row("Two dogs.", answers=["two dogs"] * 10)) == 0  # the submitted form is "2 dogs"
    assert grade(row("Yes.", answers=["yes"] * 10)) == 1
    assert grade(row("yes", answers=[" yes\n"] * 10)) == 1
    assert grade(row("cat", answers=["cat", "cat", "a cat", *["dog"] * 7])) == pytest.approx(0.9)
    assert grade(row("cat")) is None


def test_vqa_v2_scores_by_type_of_answer():
    rows = [
        row("yes", "yes", "yes/no", answers=["yes"] * 10),
        row("no", "yes", "yes/no", answers=["yes"] * 10),
        row("3", "3", "number", answers=["3"] * 2 + ["4"] * 8),
        row("cat", "cat", "other", answers=["cat"] * 3 + ["dog"] * 7),
    ]
    scores = VqaV2().score(rows)
    assert list(scores) == ["yes/no", "number", "other", "all"]
    assert values(scores) == pytest.approx({"yes/no": 0.5, "number": 0.6, "other": 0.9, "all": 0.625})
    assert [score.questions for score in scores.values()] == [2, 1, 1, 4]
    assert values(VqaV2().score([row("cat")])) == {"all": None}


def test_text_vqa_compares_evalais_normal_forms():
    answers = ["Levi's", "levi's.", "LEVI'S", *["jeans"] * 7]
    assert TextVqa().grade(row("levi's", answers=answers)) == pytest.approx(0.9)
    assert TextVqa().grade(row("Jeans.", answers=answers)) == 1
    assert TextVqa().grade(row("Two", answers=["2"] * 10)) == 1  # also if all references agree
    assert TextVqa().grade(row("levi")) is None
    assert values(TextVqa().score([row("Two", answers=["2"] * 10), row("2", answers=["3"] * 10)])) == {"all": 0.5}


# GQA


def test_gqa_separates_binary_and_open_questions_by_structural_type():
    rows = [
        row("Yes.", "yes", "verify"),
        row("no", "yes", "logical"),
        row("left", "right", "choose"),
        row("a cat", "cat", "query"),
        row("Cat", "cat", "query"),
        row("cat..", "cat", "query"),
    ]
    scores = Gqa().score(rows)
    assert list(scores) == ["verify", "logical", "choose", "query", "binary", "open", "all"]
    assert values(scores) == pytest.approx(
        {"verify": 1, "logical": 0, "choose": 0, "query": 2 / 3, "binary": 1 / 3, "open": 2 / 3, "all": 1 / 2}
    )
    assert scores["binary"].questions == 3
    assert values(Gqa().score([row("cat")])) == {"all": None}


def test_gqa_matches_a_reference_on_random_answers():
    generator = random.Random(2)
    kinds = ("verify", "query", "choose", "logical", "compare")
    words = ("yes", "no", "cat")
    rows = [
        row(generator.choice(["Yes", "no.", "CAT", "dog"]), generator.choice(words), generator.choice(kinds))
        for _ in range(400)
    ]
    right = [(question.type, question.prediction.lower().rstrip(".") == question.answer) for question in rows]
    expected = {kind: [hit for other, hit in right if other == kind] for kind in kinds}
    expected["binary"] = [hit for kind, hit in right if kind != "query"]
    expected["open"] = expected["query"]
    expected["all"] = [hit for _, hit in right]
    assert values(Gqa().score(rows)) == pytest.approx({name: sum(hits) / len(hits) for name, hits in expected.items()})
