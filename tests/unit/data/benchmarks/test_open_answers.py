"""Scores of open answers: published figures or examples worked by hand, and twins on random answers."""

import random

import pytest

from support.benchmark_answers import row, values
from vtcframe import Gqa, TextVqa, VqaV2
from vtcframe.data.benchmarks.open_answers import agreement, evalai_words, vqa_words

# VQA accuracy


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (7, 1), (10, 1)])
def test_an_answer_that_some_of_ten_people_gave_is_as_right_as_the_evaluation_of_vqa_says(matches, expected):
    assert agreement("cat", ["cat"] * matches + ["dog"] * (10 - matches)) == pytest.approx(expected)


def test_agreement_is_the_mean_over_the_references_each_left_out_once():
    draw = random.Random(0)
    for _ in range(300):
        references = [draw.choice("abc") for _ in range(draw.randint(1, 12))]
        answer, total = draw.choice("abcd"), 0.0
        for left_out in range(len(references)):
            others = references[:left_out] + references[left_out + 1 :]
            total += min(1.0, sum(other == answer for other in others) / 3)
        assert agreement(answer, references) == pytest.approx(total / len(references))


WORDS = [  # text, as VQA has it, as EvalAI has it
    ("The cat", "cat", "cat"),
    ("Two dogs.", "2 dogs", "2 dogs"),
    ("none", "0", "0"),
    ("dont", "don't", "don't"),
    ("wouldnt've", "wouldn't've", "wouldn't've"),
    ("yall'll", "y'all'll", "y'all'll"),
    ("it's", "it's", "it 's"),  # where the two differ
    ("somebody'd", "somebodyd", "somebodyd"),
    ("1,000", "1000", "1000"),
    ("3.5", "3.5", "3.5"),
    ("3. 5", "3 5", "3 5"),
    ("black/white", "black white", "black white"),
    ("black / white", "black white", "black white"),
    ("t-shirt", "t shirt", "t shirt"),
    ("t- shirt", "t shirt", "t shirt"),
    ("t-shirt -red", "tshirt red", "tshirt red"),  # one beside a space takes the others along
    ("t-shirt- red", "tshirt red", "tshirt red"),
    ("a-1,000", "a1000", "1000"),  # the comma between digits is gone before EvalAI looks for one
    ("what?yes", "what yes", "whatyes"),
    ("red,blue", "red blue", "redblue"),
    (" yes\nsir\t", "yes sir", "yes sir"),
    ("", "", ""),
]


@pytest.mark.parametrize(("text", "vqa", "evalai"), WORDS)
def test_answers_are_normalised_as_vqa_and_evalai_do(text, vqa, evalai):
    assert (vqa_words(text), evalai_words(text)) == (vqa, evalai)


def vqa_twin(text):
    """Mark by mark, word by word."""
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
        beside = any(text[i] == mark and " " in (text[i - 1 : i], text[i + 1 : i + 2]) for i in range(len(text)))
        thousands = any(
            a.isdigit() and b == "," and c.isdigit() for a, b, c in zip(text, text[1:], text[2:], strict=False)
        )
        out = "".join(("" if beside or thousands else " ") if letter == mark else letter for letter in out)
    out = "".join(
        letter for i, letter in enumerate(out) if letter != "." or (i + 1 < len(out) and out[i + 1].isdigit())
    )
    numbers = dict(zip("none zero one two three four".split(), "001234", strict=True))
    return " ".join(numbers.get(w, w) for w in out.lower().split() if w not in ("a", "an", "the"))


def test_normal_forms_are_those_of_a_twin_on_random_texts():
    draw = random.Random(1)
    bits = [*';/[]"{}()=+\\_-><@`,?!.,.', " ", " ", "\n", "\t", "1", "23", "A", "the", "two", "None", "cat", "é"]
    for _ in range(3000):
        text = "".join(draw.choice(bits) for _ in range(draw.randint(0, 8)))
        assert vqa_words(text) == vqa_twin(text)


def test_vqa_v2_normalises_references_only_where_the_ten_differ():
    grade = VqaV2().grade
    assert grade(row("Two dogs.", answers=["two dogs"] * 9 + ["2 dogs"])) == 1
    assert grade(row("Two dogs.", answers=["two dogs"] * 10)) == 0  # the submission says "2 dogs"
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
    assert [one.questions for one in scores.values()] == [2, 1, 1, 4]
    assert values(VqaV2().score([row("cat")])) == {"all": None}


def test_text_vqa_compares_evalais_normal_forms():
    answers = ["Levi's", "levi's.", "LEVI'S", *["jeans"] * 7]
    assert TextVqa().grade(row("levi's", answers=answers)) == pytest.approx(0.9)
    assert TextVqa().grade(row("Jeans.", answers=answers)) == 1
    assert TextVqa().grade(row("Two", answers=["2"] * 10)) == 1  # also where the ten agree
    assert TextVqa().grade(row("levi")) is None
    assert values(TextVqa().score([row("Two", answers=["2"] * 10), row("2", answers=["3"] * 10)])) == {"all": 0.5}


# GQA


def test_gqa_tells_binary_questions_from_open_ones_by_their_structure():
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


def test_gqa_is_the_twins_on_random_answers():
    draw = random.Random(2)
    kinds, words = ("verify", "query", "choose", "logical", "compare"), ("yes", "no", "cat")
    rows = [row(draw.choice(["Yes", "no.", "CAT", "dog"]), draw.choice(words), draw.choice(kinds)) for _ in range(400)]
    right = [(one.type, one.prediction.lower().rstrip(".") == one.answer) for one in rows]
    expected = {kind: [hit for other, hit in right if other == kind] for kind in kinds}
    expected["binary"] = [hit for kind, hit in right if kind != "query"]
    expected["open"] = expected["query"]
    expected["all"] = [hit for _, hit in right]
    assert values(Gqa().score(rows)) == pytest.approx({name: sum(hits) / len(hits) for name, hits in expected.items()})
