"""Benchmarks that are answered in words of one's own: VQAv2, TextVQA, GQA, MM-Vet."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vtcframe.data.benchmarks.base import SHORT, Benchmark
from vtcframe.data.files import add_place, by_id, collect, field, numbered, read_json, write_text
from vtcframe.data.results import Prediction, Score, columns, mean_scores
from vtcframe.data.sample import Sample
from vtcframe.errors import UsageError

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())}
NUMBERS["none"] = "0"
ARTICLES = {"a", "an", "the"}
CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll "
    "why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
).split()
REPAIRED = {  # what they are with an apostrophe left out -> as they should be
    word[:at] + word[at + 1 :]: word for word in CONTRACTIONS for at, letter in enumerate(word) if letter == "'"
}
REPAIRED["somebody'd"] = "somebodyd"  # sic, in the tables of both evaluations


@lru_cache(maxsize=2**16)
def vqa_words(text: str) -> str:
    """Normalise an answer as the evaluation of VQA does (Antol et al., ICCV 2015; vqaEval.py of VQAv2).

    A punctuation mark vanishes where it stands beside a space, or the text has a comma between digits; elsewhere it
    becomes a space. Then go full stops that no digit follows, and articles; numbers to ten become digits.
    """
    text = re.sub(r"[\n\t]", " ", text).strip()
    thousands, out = re.search(r"\d,\d", text), text
    for mark in PUNCTUATION:
        out = out.replace(mark, "" if thousands or f"{mark} " in text or f" {mark}" in text else " ")
    words = [NUMBERS.get(word, word) for word in re.sub(r"\.(?!\d)", "", out).lower().split()]
    return " ".join(REPAIRED.get(word, word) for word in words if word not in ARTICLES)


def evalai_words(text: str) -> str:
    """Normalise an answer as EvalAI does for TextVQA (the M4C evaluator of MMF, which LLaVA uses)."""
    return vqa_words(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def agreement(answer: str, references: Sequence[str]) -> float:
    """VQA accuracy: min(1, matches / 3), mean over the references each left out once; of ten, 0 .3 .6 .9 and 1."""
    count, matches = len(references), references.count(answer)
    return (matches * min(1, (matches - 1) / 3) + (count - matches) * min(1, matches / 3)) / count


@dataclass(frozen=True)
class VqaV2(Benchmark):
    """VQAv2 (Goyal et al., CVPR 2017): ten people's answers to each question.

    `path` is v2_OpenEnded_mscoco_val2014_questions.json; answers are in v2_mscoco_val2014_annotations.json beside it.
    The test sets have none: they are asked and exported. Pictures are COCO's.

    An answer is first brought into the form that LLaVA submits, EvalAI's, in which it is exported too. Then it is
    scored as in vqaEval.py, which normalises answer and references only where these differ among themselves.

    Columns: accuracy by type of answer (yes/no, number, other) and of all. Exports vqav2.json for the server.
    """

    prompt: str = SHORT

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        told = read_json(path)
        with add_place(path):
            records, split = field(told, "questions", list), field(told, "data_subtype", str)
        beside = path.with_name(path.name.replace("OpenEnded_", "").replace("questions", "annotations"))
        known: dict[int, Any] = {}
        if beside != path and beside.is_file():
            told = read_json(beside)
            with add_place(beside):
                known = {field(one, "question_id", int): one for one in field(told, "annotations", list)}
        name = f"COCO_{split.replace('-dev', '')}_{{:012d}}.jpg"  # test-dev asks about pictures of test
        folder = images or path.parent
        return collect(path, numbered(path, records), lambda record: self._sample(record, known, folder, name))

    def _sample(self, record: Any, known: dict[int, Any], folder: Path, name: str) -> Sample:
        number = field(record, "question_id", int)
        picture = folder / name.format(field(record, "image_id", int))
        question = field(record, "question", str) + self.prompt
        if not known:
            return Sample(str(number), question, (picture,))
        if number not in known:
            raise UsageError(f"question_id {number} is not in the annotations")
        told = known[number]
        answers = [field(one, "answer", str) for one in field(told, "answers", list)]
        first, kind = field(told, "multiple_choice_answer", str), field(told, "answer_type", str)
        return Sample(str(number), question, (picture,), first, kind, meta=_references(answers))

    def grade(self, row: Prediction) -> float | None:
        if (references := row.meta.get("answers")) is None:
            return None
        said = evalai_words(row.prediction or "")
        references = [re.sub(r"[\n\t]", " ", one).strip() for one in references]
        if len(set(references)) > 1:
            said, references = vqa_words(said), [vqa_words(one) for one in references]
        return agreement(said, references)

    def export(self, rows: Sequence[Prediction], folder: Path) -> list[Path]:
        answers = [{"question_id": int(row.id), "answer": evalai_words(row.prediction or "")} for row in rows]
        return [write_text(folder / "vqav2.json", json.dumps(answers))]


@dataclass(frozen=True)
class TextVqa(Benchmark):
    """TextVQA (Singh et al., CVPR 2019): reading the text in a picture; ten people's answers to each question.

    `path` is TextVQA_0.5.1_val.json (the test set has no answers: it is asked and exported); pictures are the folder
    train_images of its download. `ocr`, a file as TextVQA_Rosetta_OCR_v0.2_val.json, adds what an OCR reads in the
    picture to the question, as the figures that LLaVA reports have it.

    Columns: VQA accuracy over EvalAI's normal forms. Exports textvqa.json for the server.
    """

    prompt: str = SHORT
    ocr: str | None = None

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        told, tokens = read_json(path), None
        with add_place(path):
            records = field(told, "data", list)
        if self.ocr is not None:
            told = read_json(Path(self.ocr))
            with add_place(self.ocr):
                lines = field(told, "data", list)
                tokens = {field(one, "image_id", str): field(one, "ocr_tokens", list) for one in lines}
        folder = images or path.parent
        return collect(path, numbered(path, records), lambda record: self._sample(record, tokens, folder))

    def _sample(self, record: Any, tokens: dict[str, list[str]] | None, folder: Path) -> Sample:
        picture, question = field(record, "image_id", str), field(record, "question", str)
        if tokens is not None:
            if picture not in tokens:
                raise UsageError(f"{self.ocr} has nothing about the picture {picture!r}")
            question += f"\nReference OCR token: {', '.join(tokens[picture])}"
        answers = field(record, "answers", list) if "answers" in record else None
        identity = str(field(record, "question_id", int))
        return Sample(identity, question + self.prompt, (folder / f"{picture}.jpg",), meta=_references(answers))

    def grade(self, row: Prediction) -> float | None:
        if (references := row.meta.get("answers")) is None:
            return None
        return agreement(evalai_words(row.prediction or ""), [evalai_words(one) for one in references])

    def export(self, rows: Sequence[Prediction], folder: Path) -> list[Path]:
        answers = [{"question_id": int(row.id), "answer": row.prediction or ""} for row in rows]
        return [write_text(folder / "textvqa.json", json.dumps(answers))]


def _references(answers: list[str] | None) -> dict[str, Any]:
    """UsageError where they are not ten texts."""
    if answers is None:
        return {}
    if len(answers) != 10 or not all(isinstance(one, str) for one in answers):
        raise UsageError(f"a question has ten people's answers, this one {answers!r}")
    return {"answers": answers}


@dataclass(frozen=True)
class Gqa(Benchmark):
    """GQA (Hudson and Manning, CVPR 2019): compositional questions with one answer each.

    `path` is testdev_balanced_questions.json or val_balanced_questions.json; of a file that is not balanced only the
    balanced questions are asked, for accuracy is defined on them. Submission sets have no answers: they are asked and
    exported. An answer is read as LLaVA converts it, in lower case without final full stops, and has to be equal.

    Columns: accuracy by structural type, of binary questions and of open ones (type query), and of all. Exports
    gqa.json for the authors' eval.py and the server.
    """

    prompt: str = SHORT

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        records = ((place, one) for place, one in by_id(path) if _balanced(one[1]))
        folder = images or path.parent
        return collect(path, records, lambda one: self._sample(one[0], one[1], folder))

    def _sample(self, identity: str, record: Any, folder: Path) -> Sample:
        picture, question = field(record, "imageId", str), field(record, "question", str)
        answer = field({"answer": None} | record, "answer", str | None)
        kind = field(record["types"], "structural", str) if "types" in record else None
        return Sample(identity, question + self.prompt, (folder / f"{picture}.jpg",), answer, kind)

    def grade(self, row: Prediction) -> float | None:
        return None if row.answer is None else _converted(row) == row.answer

    def score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        split = columns(rows)
        every = split.pop("all")
        if split:
            split["binary"] = [row for row in every if row.type != "query"]
            split["open"] = [row for row in every if row.type == "query"]
        return mean_scores({**split, "all": every}, self.grade)

    def export(self, rows: Sequence[Prediction], folder: Path) -> list[Path]:
        answers = [{"questionId": row.id, "prediction": _converted(row)} for row in rows]
        return [write_text(folder / "gqa.json", json.dumps(answers))]


def _balanced(record: Any) -> bool:
    return not isinstance(record, dict) or record.get("isBalanced", True)


def _converted(row: Prediction) -> str:
    return (row.prediction or "").rstrip(".").lower()


@dataclass(frozen=True)
class MmVet(Benchmark):
    """MM-Vet (Yu et al., ICML 2024): open questions that take several abilities at once.

    `path` is mm-vet.json; pictures are in the folder images beside it. Answers are graded by a language model, so there
    is no score here: mm-vet.json is exported as the authors' evaluator reads it, {"v1_0": answer}.
    """

    prompt: str = ""

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        folder = images or path.parent / "images"
        return collect(path, by_id(path), lambda one: self._sample(one[0], one[1], folder))

    def _sample(self, identity: str, record: Any, folder: Path) -> Sample:
        picture, question = field(record, "imagename", str), field(record, "question", str)
        return Sample(identity, question + self.prompt, (folder / picture,), field(record, "answer", str))

    def score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        return {"all": Score(len(rows), None)}

    def export(self, rows: Sequence[Prediction], folder: Path) -> list[Path]:
        answers = {row.id: row.prediction or "" for row in rows}
        return [write_text(folder / "mm-vet.json", json.dumps(answers, ensure_ascii=False, indent=2))]
