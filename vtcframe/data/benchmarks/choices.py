"""Benchmarks that are answered by the letter of an option: ScienceQA, MMBench, SEED-Bench."""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import Any, Literal

from vtcframe.data.benchmarks.base import LETTER, Benchmark
from vtcframe.data.files import add_place, by_id, collect, field, numbered, read_json, read_table, write_text
from vtcframe.data.formats import InText
from vtcframe.data.results import Prediction, Score, columns, mean_score, mean_scores, parts
from vtcframe.data.sample import Sample
from vtcframe.errors import UsageError

ROUND = 10**6  # MMBench: what the index of a question grows by with each rotation of its options
SCIENCE_LETTERS = LETTERS[:5]
SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
NOTHING = ("", "nan", "none")  # cells that hold nothing, in any case


def asked(question: str, options: Sequence[str], prompt: str) -> str:
    """Write a question with its lettered options, a line each."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines]) + prompt


def chosen(text: str, options: Sequence[str]) -> str | None:
    """Return the letter that an answer gives, by the rules of MMBench (VLMEvalKit); None for one that they do not tell.

    It is the one letter of an option among the words, punctuation aside, but no letter where one of more than three
    words is A, which may be an article; else of the one option whose text is part of the answer, whatever the case.
    There a language model is asked about what is left; here it is wrong.
    """
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    letters = LETTERS[: len(options)]
    named = [letter for letter in letters if letter in words]
    if len(named) == 1 and not ("A" in words and len(words) > 3):
        return named[0]
    said = [letter for letter, option in zip(letters, options, strict=True) if option.lower() in text.lower()]
    return said[0] if len(said) == 1 else None


class _Choices(Benchmark):
    """What they share: `meta` has the options, and a column tells how many answers could not be read."""

    def chosen(self, row: Prediction) -> str | None:
        return chosen(row.prediction or "", row.meta["options"])

    def grade(self, row: Prediction) -> float | None:
        return None if row.answer is None else self.chosen(row) == row.answer

    def score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        split = columns(rows)
        every = split.pop("all")
        return mean_scores(split, self.grade) | self.unread(rows) | mean_scores({"all": every}, self.grade)

    def unread(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        """Return the column of answers that give no letter, as a fraction."""
        return {"unread": mean_score([self.chosen(row) is None for row in rows])}


@dataclass(frozen=True)
class ScienceQa(_Choices):
    """ScienceQA (Lu et al., NeurIPS 2022): the questions with a picture, as LLaVA and its followers report them.

    `path` is the folder of problems.json and pid_splits.json; pictures are in images/SPLIT/ID there. A hint precedes
    the question. An answer is read as LLaVA's eval_science_qa.py does: a letter alone, or followed by a full stop and a
    space, or "The answer is" and a letter. One that cannot be read is wrong.

    Columns: accuracy by subject (NAT, SOC, LAN), of those with a hint (TXT), by grade (G1-6, G7-12), unread, all (IMG).
    """

    prompt: str = LETTER
    split: Literal["test", "val", "train"] = "test"

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        problems, names = dict(one for _, one in by_id(path / "problems.json")), path / "pid_splits.json"
        splits = read_json(names)
        with add_place(names):
            wanted = field(splits, self.split, list)
        folder = images or path / "images" / self.split
        pictured = [name for name in wanted if not isinstance(problems.get(name), dict) or problems[name].get("image")]
        records = ((f"{names}, question {name}", (name, problems.get(name))) for name in pictured)
        return collect(path, records, lambda one: self._sample(one[0], one[1], folder))

    def _sample(self, identity: str, record: Any, folder: Path) -> Sample:
        question, hint = field(record, "question", str), field(record, "hint", str)
        options, right = field(record, "choices", list), field(record, "answer", int)
        subject, grade = field(record, "subject", str), field(record, "grade", str)
        if not 0 <= right < len(options) <= len(SCIENCE_LETTERS):
            raise UsageError(f"the answer must be the number of one of up to five choices, got {right} and {options!r}")
        if subject not in SUBJECTS or not re.fullmatch(r"grade\d+", grade):
            raise UsageError(f"no subject and grade of ScienceQA: {subject!r}, {grade!r}")
        text = asked(f"Context: {hint}\n{question}" if hint else question, options, self.prompt)
        meta = {"options": options, "hint": bool(hint), "grade": int(grade.removeprefix("grade"))}
        picture = folder / identity / field(record, "image", str)
        return Sample(identity, text, (picture,), LETTERS[right], SUBJECTS[subject], meta=meta)

    def chosen(self, row: Prediction) -> str | None:
        text = (row.prediction or "").replace("\n", ". ")
        forms = r"\s*([A-E])\s*", r"([A-E])\. .*", r".*?The answer is ([A-E])\..*", r".*?The answer is ([A-E]).*"
        found = next((match for form in forms if (match := re.fullmatch(form, text, re.DOTALL))), None)
        return found[1] if found and found[1] in SCIENCE_LETTERS[: len(row.meta["options"])] else None

    def score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        subjects = parts(rows, lambda row: row.type)
        split = {name: subjects.get(name, []) for name in SUBJECTS.values()}
        split["TXT"] = [row for row in rows if row.meta["hint"]]
        split["G1-6"] = [row for row in rows if row.meta["grade"] <= 6]
        split["G7-12"] = [row for row in rows if row.meta["grade"] > 6]
        return mean_scores(split, self.grade) | self.unread(rows) | mean_scores({"IMG": rows}, self.grade)


@dataclass(frozen=True)
class SeedBench(_Choices):
    """SEED-Bench (Li et al., CVPR 2024): its questions about images; those about videos are left out.

    `path` is SEED-Bench.json; pictures are in the folder SEED-Bench-image beside it. The letter is generated, as LLaVA
    has it (the authors compare likelihoods), and read by `chosen`.

    Columns: accuracy by type of question, unread, all.
    """

    prompt: str = LETTER

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        told = read_json(path)
        with add_place(path):
            questions, types = field(told, "questions", list), field(told, "question_type", dict)
        kinds = {number: name for name, number in types.items()}
        records = numbered(path, questions)
        records = (
            (place, one) for place, one in records if not isinstance(one, dict) or one.get("data_type") == "image"
        )
        folder = images or path.parent / "SEED-Bench-image"
        return collect(path, records, lambda one: self._sample(one, kinds, folder))

    def _sample(self, record: Any, kinds: dict[int, str], folder: Path) -> Sample:
        options = [str(field(record, f"choice_{letter}", str | int | float)) for letter in "abcd"]
        answer, kind = field(record, "answer", str), field(record, "question_type_id", int)
        if answer not in "ABCD" or len(answer) != 1 or kind not in kinds:
            raise UsageError(f"no answer and type of SEED-Bench: {answer!r}, {kind!r}")
        question, picture = field(record, "question", str), field(record, "data_id", str)
        identity = str(field(record, "question_id", str | int))
        text = asked(question, options, self.prompt)
        return Sample(identity, text, (folder / picture,), answer, kinds[kind], meta={"options": options})


@dataclass(frozen=True)
class MmBench(_Choices):
    """MMBench (Liu et al., ECCV 2024), English or Chinese, with CircularEval.

    `path` is a TSV as it is downloaded (mmbench_dev_20230712.tsv, MMBench_DEV_EN.tsv); pictures are in it. A question
    is right only if it is with its options rotated to every place; one that failed is wrong. Where the file has no
    rotations, whose indices are the question's plus multiples of 10^6, they are made. Answers are read by `chosen`.

    Columns: of whole questions, accuracy by category, by l2-category and of all; of single answers, unread. Exports
    mmbench.tsv; the server takes it once a spreadsheet has saved it as .xlsx.
    """

    prompt: str = LETTER

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        rows = read_table(path)
        pictures = {cells.get("index", ""): (cells.get("image", ""), place) for place, cells in rows}
        indices = [_index(place, cells) for place, cells in rows]
        rounds = Counter(index % ROUND for index in indices)
        rotated = len(rounds) < len(indices)
        records = [
            (place, (index + turn * ROUND, turn, cells))
            for index, (place, cells) in zip(indices, rows, strict=True)
            for turn in range(1 if rotated else max(1, len(_choices(cells))))
        ]
        records.sort(key=lambda record: (record[1][0] % ROUND, record[1][0]))  # a question's rotations side by side
        return collect(path, records, lambda one: self._sample(one, rounds if rotated else None, pictures))

    def _sample(
        self,
        record: tuple[int, int, dict[str, str]],
        rounds: Counter[int] | None,
        pictures: dict[str, tuple[str, str]],
    ) -> Sample:
        index, turn, cells = record
        question, hint, category = field(cells, "question", str), cells.get("hint", ""), field(cells, "category", str)
        options, answer = _choices(cells), cells.get("answer", "")
        if len(options) < 2:
            raise UsageError(f"a question has at least the options A and B, this one {options!r}")
        right = None
        if answer.lower() not in NOTHING:
            if answer not in LETTERS[: len(options)]:
                raise UsageError(f"the answer must be one of {LETTERS[: len(options)]}, got {answer!r}")
            right = LETTERS[(LETTERS.index(answer) - turn) % len(options)]
        options = options[turn:] + options[:turn]
        source = field(cells, "image", str)
        source = source if source.isdecimal() else cells["index"]  # a number is the row that has the picture
        if source not in pictures:
            raise UsageError(f"the picture is that of the row with the index {source}, which is not there")
        picture, place = pictures[source]
        text = asked(question if hint.lower() in NOTHING else f"{hint}\n{question}", options, self.prompt)
        meta = {
            "group": index % ROUND,
            "rounds": len(options) if rounds is None else rounds[index % ROUND],
            "options": options,
            "question": question,
            "l2": cells.get("l2-category") or None,
        }
        return Sample(str(index), text, (InText(picture, f"{place}, column image"),), right, category, meta=meta)

    def score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        groups = parts(rows, lambda row: row.meta["group"])
        verdicts = {group: self._whole(own) for group, own in groups.items()}
        firsts = [own[0] for own in groups.values()]
        split = parts(firsts, lambda row: row.type) | parts(firsts, lambda row: row.meta["l2"])

        def verdict(first: Prediction) -> float | None:
            return verdicts[first.meta["group"]]

        return mean_scores(split, verdict) | self.unread(rows) | mean_scores({"all": firsts}, verdict)

    def _whole(self, own: Sequence[Prediction]) -> float | None:
        """Grade the rotations of one question."""
        grades = [self.grade(row) for row in own]
        return None if None in grades else len(own) == own[0].meta["rounds"] and all(grades)

    def export(self, rows: Sequence[Prediction], folder: Path) -> list[Path]:
        width = max(len(row.meta["options"]) for row in rows)
        out = io.StringIO()
        table = csv.writer(out, delimiter="\t", lineterminator="\n")
        table.writerow(["index", "question", *LETTERS[:width], "answer", "prediction"])
        for row in rows:
            options = [*row.meta["options"], *[""] * (width - len(row.meta["options"]))]
            table.writerow([row.id, row.meta["question"], *options, row.answer or "", row.prediction or ""])
        return [write_text(folder / "mmbench.tsv", out.getvalue())]


def _choices(cells: dict[str, str]) -> list[str]:
    """Return the options of a row, up to the first that holds nothing."""
    return [cells[letter] for letter in takewhile(lambda one: cells.get(one, "").lower() not in NOTHING, LETTERS)]


def _index(place: str, cells: dict[str, str]) -> int:
    index = cells.get("index", "")
    if not index.isdecimal():
        raise UsageError(f"{place}: a question has its number in the column index, got {index!r}")
    return int(index)
