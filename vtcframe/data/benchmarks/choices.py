"""Multiple-choice benchmarks, answered by the letter of an option: ScienceQA, MMBench, SEED-Bench."""

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

ROTATION_STEP = 10**6  # MMBench: difference of index between two rotations of a question's options
SCIENCE_LETTERS = LETTERS[:5]
SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
EMPTY_CELLS = ("", "nan", "none")  # lower-case content of empty cells


def format_question(question: str, options: Sequence[str], prompt: str) -> str:
    """Return a question followed by its lettered options, one per line, and the prompt."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines]) + prompt


def parse_choice(text: str, options: Sequence[str]) -> str | None:
    """Return the letter of an answer, by the rules of MMBench (VLMEvalKit); None if the rules find no letter.

    If exactly one option letter is among the words, without punctuation, it is returned, unless A is among more than
    three words, where it may be an article. Otherwise, if the text of exactly one option is part of the answer, in any
    case, its letter is returned. VLMEvalKit asks a language model about the remaining answers; here they are wrong.
    """
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    letters = LETTERS[: len(options)]
    letter_matches = [letter for letter in letters if letter in words]
    if len(letter_matches) == 1 and not ("A" in words and len(words) > 3):
        return letter_matches[0]
    text_matches = [letter for letter, option in zip(letters, options, strict=True) if option.lower() in text.lower()]
    return text_matches[0] if len(text_matches) == 1 else None


class _Choices(Benchmark):
    """Base class of multiple-choice benchmarks: `meta` holds the options; column "unread" counts unparsable answers."""

    def parse_letter(self, row: Prediction) -> str | None:
        """Return the letter of an answer; None if no rule finds one."""
        return parse_choice(row.prediction or "", row.meta["options"])

    def grade(self, row: Prediction) -> float | None:
        return None if row.answer is None else self.parse_letter(row) == row.answer

    def score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        split = columns(rows)
        all_rows = split.pop("all")
        return mean_scores(split, self.grade) | self.unread_score(rows) | mean_scores({"all": all_rows}, self.grade)

    def unread_score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        """Return the column "unread": the fraction of answers without a letter."""
        return {"unread": mean_score([self.parse_letter(row) is None for row in rows])}


@dataclass(frozen=True)
class ScienceQa(_Choices):
    """ScienceQA (Lu et al., NeurIPS 2022): the questions with a picture, as reported by LLaVA and later work.

    `path` is the folder of problems.json and pid_splits.json; pictures are in its subfolders images/SPLIT/ID. A hint
    precedes the question. Answers are parsed as in LLaVA's eval_science_qa.py: a letter alone, a letter followed by a
    full stop and a space, or "The answer is" and a letter. Any other answer is wrong.

    Columns: accuracy by subject (NAT, SOC, LAN), with a hint (TXT), by grade (G1-6, G7-12), unread, all (IMG).
    """

    prompt: str = LETTER
    split: Literal["test", "val", "train"] = "test"

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        problems = dict(problem for _, problem in by_id(path / "problems.json"))
        splits_file = path / "pid_splits.json"
        splits = read_json(splits_file)
        with add_place(splits_file):
            names = field(splits, self.split, list)
        folder = images or path / "images" / self.split
        pictured = [name for name in names if not isinstance(problems.get(name), dict) or problems[name].get("image")]
        records = ((f"{splits_file}, question {name}", (name, problems.get(name))) for name in pictured)
        return collect(path, records, lambda record: self._sample(record[0], record[1], folder))

    def _sample(self, identity: str, record: Any, folder: Path) -> Sample:
        question = field(record, "question", str)
        hint = field(record, "hint", str)
        options = field(record, "choices", list)
        answer = field(record, "answer", int)
        subject = field(record, "subject", str)
        grade = field(record, "grade", str)
        if not 0 <= answer < len(options) <= len(SCIENCE_LETTERS):
            raise UsageError(f"the answer must be the index of one of up to five choices, got {answer} and {options!r}")
        if subject not in SUBJECTS or not re.fullmatch(r"grade\d+", grade):
            raise UsageError(f"not a subject and grade of ScienceQA: {subject!r}, {grade!r}")
        text = format_question(f"Context: {hint}\n{question}" if hint else question, options, self.prompt)
        meta = {"options": options, "hint": bool(hint), "grade": int(grade.removeprefix("grade"))}
        picture = folder / identity / field(record, "image", str)
        return Sample(identity, text, (picture,), LETTERS[answer], SUBJECTS[subject], meta=meta)

    def parse_letter(self, row: Prediction) -> str | None:
        text = (row.prediction or "").replace("\n", ". ")
        patterns = r"\s*([A-E])\s*", r"([A-E])\. .*", r".*?The answer is ([A-E])\..*", r".*?The answer is ([A-E]).*"
        matches = (re.fullmatch(pattern, text, re.DOTALL) for pattern in patterns)
        letter = next((match[1] for match in matches if match), None)
        return letter if letter and letter in SCIENCE_LETTERS[: len(row.meta["options"])] else None

    def score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        subjects = parts(rows, lambda row: row.type)
        split = {name: subjects.get(name, []) for name in SUBJECTS.values()}
        split["TXT"] = [row for row in rows if row.meta["hint"]]
        split["G1-6"] = [row for row in rows if row.meta["grade"] <= 6]
        split["G7-12"] = [row for row in rows if row.meta["grade"] > 6]
        return mean_scores(split, self.grade) | self.unread_score(rows) | mean_scores({"IMG": rows}, self.grade)


@dataclass(frozen=True)
class SeedBench(_Choices):
    """SEED-Bench (Li et al., CVPR 2024): its questions about images; those about videos are left out.

    `path` is SEED-Bench.json; pictures are in the folder SEED-Bench-image next to it. The letter is generated, as in
    LLaVA's evaluation (the authors compare likelihoods), and parsed by `parse_choice`.

    Columns: accuracy by type of question, unread, all.
    """

    prompt: str = LETTER

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        content = read_json(path)
        with add_place(path):
            questions = field(content, "questions", list)
            types = field(content, "question_type", dict)
        kinds = {number: name for name, number in types.items()}
        records = numbered(path, questions)
        records = (
            (place, record)
            for place, record in records
            if not isinstance(record, dict) or record.get("data_type") == "image"
        )
        folder = images or path.parent / "SEED-Bench-image"
        return collect(path, records, lambda record: self._sample(record, kinds, folder))

    def _sample(self, record: Any, kinds: dict[int, str], folder: Path) -> Sample:
        options = [str(field(record, f"choice_{letter}", str | int | float)) for letter in "abcd"]
        answer = field(record, "answer", str)
        kind = field(record, "question_type_id", int)
        if answer not in "ABCD" or len(answer) != 1 or kind not in kinds:
            raise UsageError(f"not an answer and type of SEED-Bench: {answer!r}, {kind!r}")
        question = field(record, "question", str)
        picture = field(record, "data_id", str)
        identity = str(field(record, "question_id", str | int))
        text = format_question(question, options, self.prompt)
        return Sample(identity, text, (folder / picture,), answer, kinds[kind], meta={"options": options})


@dataclass(frozen=True)
class MmBench(_Choices):
    """MMBench (Liu et al., ECCV 2024), English or Chinese, with CircularEval.

    `path` is a TSV as downloaded (mmbench_dev_20230712.tsv, MMBench_DEV_EN.tsv), which contains the pictures. A
    question counts as right only if it is answered correctly in every rotation of its options; a failed rotation is
    wrong. If the file has no rotations, they are generated, with the index of the question plus multiples of 10^6.
    Answers are parsed by `parse_choice`.

    Columns: accuracy of questions over all rotations by category, by l2-category and of all; unread, of single answers.
    Exports mmbench.tsv; the server requires it converted to .xlsx.
    """

    prompt: str = LETTER

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        rows = read_table(path)
        pictures = {cells.get("index", ""): (cells.get("image", ""), place) for place, cells in rows}
        indices = [_index(place, cells) for place, cells in rows]
        rotations = Counter(index % ROTATION_STEP for index in indices)
        has_rotations = len(rotations) < len(indices)
        records = [
            (place, (index + rotation * ROTATION_STEP, rotation, cells))
            for index, (place, cells) in zip(indices, rows, strict=True)
            for rotation in range(1 if has_rotations else max(1, len(_choices(cells))))
        ]
        records.sort(
            key=lambda record: (record[1][0] % ROTATION_STEP, record[1][0])
        )  # puts the rotations of a question next to each other
        return collect(
            path, records, lambda record: self._sample(record, rotations if has_rotations else None, pictures)
        )

    def _sample(
        self,
        record: tuple[int, int, dict[str, str]],
        rotations: Counter[int] | None,
        pictures: dict[str, tuple[str, str]],
    ) -> Sample:
        index, rotation, cells = record
        question = field(cells, "question", str)
        hint = cells.get("hint", "")
        category = field(cells, "category", str)
        options = _choices(cells)
        answer = cells.get("answer", "")
        if len(options) < 2:
            raise UsageError(f"a question needs at least the options A and B, got {options!r}")
        letter = None
        if answer.lower() not in EMPTY_CELLS:
            if answer not in LETTERS[: len(options)]:
                raise UsageError(f"the answer must be one of {LETTERS[: len(options)]}, got {answer!r}")
            letter = LETTERS[(LETTERS.index(answer) - rotation) % len(options)]
        options = options[rotation:] + options[:rotation]
        source = field(cells, "image", str)
        source = source if source.isdecimal() else cells["index"]  # a number is the index of the row with the picture
        if source not in pictures:
            raise UsageError(f"the picture is in the row with the index {source}, which does not exist")
        picture, place = pictures[source]
        text = format_question(question if hint.lower() in EMPTY_CELLS else f"{hint}\n{question}", options, self.prompt)
        meta = {
            "group": index % ROTATION_STEP,
            "rounds": len(options) if rotations is None else rotations[index % ROTATION_STEP],
            "options": options,
            "question": question,
            "l2": cells.get("l2-category") or None,
        }
        return Sample(str(index), text, (InText(picture, f"{place}, column image"),), letter, category, meta=meta)

    def score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        groups = parts(rows, lambda row: row.meta["group"])
        verdicts = {group: self._grade_rotations(members) for group, members in groups.items()}
        firsts = [members[0] for members in groups.values()]
        split = parts(firsts, lambda row: row.type) | parts(firsts, lambda row: row.meta["l2"])

        def verdict(first: Prediction) -> float | None:
            return verdicts[first.meta["group"]]

        return mean_scores(split, verdict) | self.unread_score(rows) | mean_scores({"all": firsts}, verdict)

    def _grade_rotations(self, rotations: Sequence[Prediction]) -> float | None:
        """Return whether a question is right in all of its rotations; None without a reference answer."""
        grades = [self.grade(row) for row in rotations]
        return None if None in grades else len(rotations) == rotations[0].meta["rounds"] and all(grades)

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
    """Return the options of a row, up to the first empty cell."""
    return [cells[letter] for letter in takewhile(lambda name: cells.get(name, "").lower() not in EMPTY_CELLS, LETTERS)]


def _index(place: str, cells: dict[str, str]) -> int:
    index = cells.get("index", "")
    if not index.isdecimal():
        raise UsageError(f"{place}: the column index must hold the number of the question, got {index!r}")
    return int(index)
