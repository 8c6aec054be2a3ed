"""Scores of benchmarks: published figures or examples worked by hand, and twins in plain Python on random answers."""

import csv
import json
import random
import time

import pytest

from vtcframe.benchmarks import Gqa, MmBench, Mme, MmVet, Pope, ScienceQa, SeedBench, TextVqa, VqaV2
from vtcframe.benchmarks.choices import chosen
from vtcframe.benchmarks.open_answers import agreement, evalai_words, vqa_words
from vtcframe.benchmarks.yes_or_no import says_yes
from vtcframe.metrics import Row


def row(prediction, answer=None, kind=None, name="1", **meta):
    return Row(name, kind, "?", answer, "unpruned", prediction=prediction, meta=meta)


def values(scores):
    return {name: one.value for name, one in scores.items()}


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


# MME


def mme(prediction, answer, kind="count", picture="1.jpg"):
    return row(prediction, answer, kind, picture=picture, question="Is it?")


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
        ("A ring of gold, B", None),  # two letters, or an article and one, and no text of an option
        ("A thing that is green", "C"),  # its A is an article
        ("B or C", None),
        ("b", None),
        ("Green", "C"),
        ("it is green, not blue", None),
        ("E", None),
        ("", None),
    ],
)
def test_a_letter_is_read_by_the_rules_of_mmbench(text, letter):
    assert chosen(text, ["red", "blue", "green", "black"]) == letter


def test_seed_bench_tells_how_many_answers_have_no_letter():
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
        ("B.", None),  # as LLaVA's code has it
        ("blue", None),
        ("C", None),  # there are two choices
        ("b", None),
        ("", None),
    ],
)
def test_a_letter_is_read_as_llava_does_for_science_qa(text, letter):
    assert ScienceQa().chosen(row(text, options=["red", "blue"])) == letter


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


def rotation(said, right, group, turn, kind="ocr", rounds=3, l2="fine"):
    """A row of the question `group`, whose options w, x, y, ... are turned by so many places; the right one is w."""
    options = list("wxyz"[:rounds])
    options = options[turn:] + options[:turn]
    letter = None if right is None else "ABCD"[options.index(right)]
    meta = {"group": group, "rounds": rounds, "options": options, "question": "Which?", "l2": l2}
    return row(said, letter, kind, str(group + turn * 10**6), **meta)


def test_mmbench_counts_a_question_only_if_it_is_right_in_every_rotation():
    """CircularEval by hand: with w right, the letter moves from A to C to B as the options turn by one."""
    right = [rotation("A", "w", 1, 0), rotation("C.", "w", 1, 1), rotation("w", "w", 1, 2)]
    lucky = [rotation("A", "w", 2, turn, "logic", l2="coarse") for turn in range(3)]  # always A
    torn = [rotation("A", "w", 3, 0, "logic"), rotation("C", "w", 3, 1, "logic")]  # its last rotation failed
    scores = MmBench().score([*right, *lucky, *torn])
    assert values(scores) == pytest.approx(
        {"ocr": 1, "logic": 0, "fine": 1 / 2, "coarse": 0, "unread": 0, "all": 1 / 3}
    )
    assert [one.questions for one in scores.values()] == [1, 2, 2, 1, 8, 3]
    assert list(scores)[-1] == "all"


def test_mmbench_is_the_twins_on_random_answers():
    draw = random.Random(5)
    rows, hits = [], []
    for group in range(300):
        rounds, all_right = draw.randint(2, 4), True
        for turn in range(rounds):
            options = "wxyz"[:rounds][turn:] + "wxyz"[:rounds][:turn]
            said = draw.choice([options.index("w"), options.index("w"), options.index("w"), draw.randrange(rounds)])
            all_right = all_right and options[said] == "w"
            rows.append(rotation("ABCD"[said], "w", group, turn, rounds=rounds))
        hits.append(all_right)
    assert 0 < sum(hits) < 300
    draw.shuffle(rows)
    assert MmBench().score(rows)["all"] == (300, pytest.approx(sum(hits) / 300))


def test_without_answers_nothing_is_scored_but_what_could_be_read():
    rows = [rotation(said, None, 1, turn) for turn, said in enumerate(["A", "?", "B"])]
    assert values(MmBench().score(rows)) == pytest.approx({"ocr": None, "fine": None, "unread": 1 / 3, "all": None})
    assert values(SeedBench().score([row("A", options=["x", "y"])])) == {"unread": 0, "all": None}
    assert MmVet().score([row("cat", "cat")]) == {"all": (1, None)}  # a language model grades it


# What is exported


def test_files_are_written_as_the_official_tools_read_them(tmp_path):
    def exported(benchmark, rows):
        (path,) = benchmark.export(rows, tmp_path / "unpruned")
        return path.name, json.loads(path.read_text(encoding="utf-8"))

    rows = [row("Two.", name="42000"), row(None, name="42001")]
    answers = [{"question_id": 42000, "answer": "2"}, {"question_id": 42001, "answer": ""}]
    assert exported(VqaV2(), rows) == ("vqav2.json", answers)
    answers[0]["answer"] = "Two."
    assert exported(TextVqa(), rows) == ("textvqa.json", answers)
    answers = [{"questionId": "42000", "prediction": "two"}, {"questionId": "42001", "prediction": ""}]
    assert exported(Gqa(), rows) == ("gqa.json", answers)
    rows = [row("grün", name="v1_0"), row(None, name="v1_1")]
    assert exported(MmVet(), rows) == ("mm-vet.json", {"v1_0": "grün", "v1_1": ""})
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


def test_scores_of_many_questions_are_there_in_a_moment():
    names = ["cat", "two dogs", "it's", "yes"]
    answers = [[f"{name} {n % 97}"] * 4 + names + ["no"] * 2 for n, name in enumerate(names * 25)]
    rows = [row(f"{names[n % 4]} {n % 97}", "cat", "other", answers=answers[n % 100]) for n in range(20_000)]
    begin = time.perf_counter()
    VqaV2().score(rows)
    letters = [rotation("A", "w", n // 3, n % 3) for n in range(20_000)]
    MmBench().score(letters)
    assert time.perf_counter() - begin < 20  # about one here; minutes if anything were quadratic
