"""Benchmarks with free-text answers: VQAv2, TextVQA, GQA, MM-Vet."""

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
REPAIRED = {  # contraction with one missing apostrophe -> correct contraction
    word[:at] + word[at + 1 :]: word for word in CONTRACTIONS for at, letter in enumerate(word) if letter == "'"
}
REPAIRED["somebody'd"] = "somebodyd"  # sic: an error in the tables of both evaluations


@lru_cache(maxsize=2**16)
def normalize_vqa(text: str) -> str:
    """Normalise an answer as in the VQA evaluation (Antol et al., ICCV 2015; vqaEval.py of VQAv2).

    All occurrences of a punctuation mark are removed if one of them is next to a space, or if the text has a comma
    between digits; otherwise they become spaces. Full stops without a following digit and articles are removed, and
    number words up to ten become digits.
    """
    text = re.sub(r"[\n\t]", " ", text).strip()
    thousands = re.search(r"\d,\d", text)
    out = text
    for mark in PUNCTUATION:
        out = out.replace(mark, "" if thousands or f"{mark} " in text or f" {mark}" in text else " ")
    words = [NUMBERS.get(word, word) for word in re.sub(r"\.(?!\d)", "", out).lower().split()]
    return " ".join(REPAIRED.get(word, word) for word in words if word not in ARTICLES)


def normalize_evalai(text: str) -> str:
    """Normalise an answer as EvalAI does for TextVQA (M4C evaluator of MMF, also used by LLaVA)."""
    return normalize_vqa(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Return the VQA accuracy: the mean of min(1, matches / 3) over all subsets that leave out one reference.

    With ten references and 0, 1, 2, 3 or at least 4 matches it is 0, 0.3, 0.6, 0.9 or 1.
    """
    count = len(references)
    matches = references.count(answer)
    return (matches * min(1, (matches - 1) / 3) + (count - matches) * min(1, matches / 3)) / count


@dataclass(frozen=True)
class VqaV2(Benchmark):
    """VQAv2 (Goyal et al., CVPR 2017): open questions with ten reference answers each.

    `path` is v2_OpenEnded_mscoco_val2014_questions.json; answers are in v2_mscoco_val2014_annotations.json next to it.
    The test sets have no answers, so their predictions are only exported. Pictures are COCO's.

    An answer is first normalised as EvalAI does, as in LLaVA's submissions; it is exported in this form. Then it is
    scored as in vqaEval.py, which normalises answer and references only if the references differ from each other.

    Columns: accuracy by type of answer (yes/no, number, other) and of all. Exports vqav2.json for the server.
    """

    prompt: str = SHORT

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        content = read_json(path)
        with add_place(path):
            records = field(content, "questions", list)
            split = field(content, "data_subtype", str)
        annotation_file = path.with_name(path.name.replace("OpenEnded_", "").replace("questions", "annotations"))
        annotations: dict[int, Any] = {}
        if annotation_file != path and annotation_file.is_file():
            content = read_json(annotation_file)
            with add_place(annotation_file):
                entries = field(content, "annotations", list)
                annotations = {field(entry, "question_id", int): entry for entry in entries}
        name = f"COCO_{split.replace('-dev', '')}_{{:012d}}.jpg"  # test-dev uses the pictures of test
        folder = images or path.parent
        return collect(path, numbered(path, records), lambda record: self._sample(record, annotations, folder, name))

    def _sample(self, record: Any, annotations: dict[int, Any], folder: Path, name: str) -> Sample:
        number = field(record, "question_id", int)
        picture = folder / name.format(field(record, "image_id", int))
        question = field(record, "question", str) + self.prompt
        if not annotations:
            return Sample(str(number), question, (picture,))
        if number not in annotations:
            raise UsageError(f"question_id {number} is not in the annotations")
        annotation = annotations[number]
        answers = [field(answer, "answer", str) for answer in field(annotation, "answers", list)]
        most_common = field(annotation, "multiple_choice_answer", str)
        kind = field(annotation, "answer_type", str)
        return Sample(str(number), question, (picture,), most_common, kind, meta=_references(answers))

    def grade(self, row: Prediction) -> float | None:
        if (references := row.meta.get("answers")) is None:
            return None
        answer = normalize_evalai(row.prediction or "")
        references = [re.sub(r"[\n\t]", " ", reference).strip() for reference in references]
        if len(set(references)) > 1:
            answer = normalize_vqa(answer)
            references = [normalize_vqa(reference) for reference in references]
        return vqa_accuracy(answer, references)

    def export(self, rows: Sequence[Prediction], folder: Path) -> list[Path]:
        answers = [{"question_id": int(row.id), "answer": normalize_evalai(row.prediction or "")} for row in rows]
        return [write_text(folder / "vqav2.json", json.dumps(answers))]


@dataclass(frozen=True)
class TextVqa(Benchmark):
    """TextVQA (Singh et al., CVPR 2019): questions about text in pictures, with ten reference answers each.

    `path` is TextVQA_0.5.1_val.json (the test set has no answers, so its predictions are only exported); pictures are
    in the folder train_images of the download. `ocr`, a file like TextVQA_Rosetta_OCR_v0.2_val.json, adds OCR tokens of
    the picture to the question, as in LLaVA's published figures.

    Columns: VQA accuracy over EvalAI's normal forms. Exports textvqa.json for the server.
    """

    prompt: str = SHORT
    ocr: str | None = None

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        content = read_json(path)
        tokens = None
        with add_place(path):
            records = field(content, "data", list)
        if self.ocr is not None:
            content = read_json(Path(self.ocr))
            with add_place(self.ocr):
                entries = field(content, "data", list)
                tokens = {field(entry, "image_id", str): field(entry, "ocr_tokens", list) for entry in entries}
        folder = images or path.parent
        return collect(path, numbered(path, records), lambda record: self._sample(record, tokens, folder))

    def _sample(self, record: Any, tokens: dict[str, list[str]] | None, folder: Path) -> Sample:
        picture = field(record, "image_id", str)
        question = field(record, "question", str)
        if tokens is not None:
            if picture not in tokens:
                raise UsageError(f"{self.ocr} has no entry for the picture {picture!r}")
            question += f"\nReference OCR token: {', '.join(tokens[picture])}"
        answers = field(record, "answers", list) if "answers" in record else None
        identity = str(field(record, "question_id", int))
        return Sample(identity, question + self.prompt, (folder / f"{picture}.jpg",), meta=_references(answers))

    def grade(self, row: Prediction) -> float | None:
        if (references := row.meta.get("answers")) is None:
            return None
        return vqa_accuracy(
            normalize_evalai(row.prediction or ""), [normalize_evalai(reference) for reference in references]
        )

    def export(self, rows: Sequence[Prediction], folder: Path) -> list[Path]:
        answers = [{"question_id": int(row.id), "answer": row.prediction or ""} for row in rows]
        return [write_text(folder / "textvqa.json", json.dumps(answers))]


def _references(answers: list[str] | None) -> dict[str, Any]:
    """Return the references as `meta`. Raises UsageError if they are not ten strings."""
    if answers is None:
        return {}
    if len(answers) != 10 or not all(isinstance(answer, str) for answer in answers):
        raise UsageError(f"a question needs ten reference answers, got {answers!r}")
    return {"answers": answers}


@dataclass(frozen=True)
class Gqa(Benchmark):
    """GQA (Hudson and Manning, CVPR 2019): compositional questions with one answer each.

    `path` is testdev_balanced_questions.json or val_balanced_questions.json; of an unbalanced file only the balanced
    questions are used, because accuracy is defined on them. Submission sets have no answers, so their predictions are
    only exported. An answer is converted as in LLaVA, to lower case without final full stops, and must match exactly.

    Columns: accuracy by structural type, of binary questions and of open ones (type query), and of all. Exports
    gqa.json for the authors' eval.py and the server.
    """

    prompt: str = SHORT

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        records = ((place, record) for place, record in by_id(path) if _balanced(record[1]))
        folder = images or path.parent
        return collect(path, records, lambda record: self._sample(record[0], record[1], folder))

    def _sample(self, identity: str, record: Any, folder: Path) -> Sample:
        picture = field(record, "imageId", str)
        question = field(record, "question", str)
        answer = field({"answer": None} | record, "answer", str | None)
        kind = field(record["types"], "structural", str) if "types" in record else None
        return Sample(identity, question + self.prompt, (folder / f"{picture}.jpg",), answer, kind)

    def grade(self, row: Prediction) -> float | None:
        return None if row.answer is None else _convert(row) == row.answer

    def score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        split = columns(rows)
        all_rows = split.pop("all")
        if split:
            split["binary"] = [row for row in all_rows if row.type != "query"]
            split["open"] = [row for row in all_rows if row.type == "query"]
        return mean_scores({**split, "all": all_rows}, self.grade)

    def export(self, rows: Sequence[Prediction], folder: Path) -> list[Path]:
        answers = [{"questionId": row.id, "prediction": _convert(row)} for row in rows]
        return [write_text(folder / "gqa.json", json.dumps(answers))]


def _balanced(record: Any) -> bool:
    return not isinstance(record, dict) or record.get("isBalanced", True)


def _convert(row: Prediction) -> str:
    return (row.prediction or "").rstrip(".").lower()


@dataclass(frozen=True)
class MmVet(Benchmark):
    """MM-Vet (Yu et al., ICML 2024): open questions that require several capabilities at once.

    `path` is mm-vet.json; pictures are in the folder images next to it. Answers are graded by a language model, so no
    score is computed here. mm-vet.json is exported in the format of the authors' evaluator, {"v1_0": answer}.
    """

    prompt: str = ""

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        folder = images or path.parent / "images"
        return collect(path, by_id(path), lambda record: self._sample(record[0], record[1], folder))

    def _sample(self, identity: str, record: Any, folder: Path) -> Sample:
        picture = field(record, "imagename", str)
        question = field(record, "question", str)
        return Sample(identity, question + self.prompt, (folder / picture,), field(record, "answer", str))

    def score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        return {"all": Score(len(rows), None)}

    def export(self, rows: Sequence[Prediction], folder: Path) -> list[Path]:
        answers = {row.id: row.prediction or "" for row in rows}
        return [write_text(folder / "mm-vet.json", json.dumps(answers, ensure_ascii=False, indent=2))]
