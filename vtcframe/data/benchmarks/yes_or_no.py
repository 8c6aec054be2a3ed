"""Benchmarks with yes-or-no questions: POPE and MME."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_f1_score,
    binary_precision,
    binary_recall,
)

from vtcframe.data.benchmarks.base import SHORT, Benchmark
from vtcframe.data.files import collect, field, read_jsonl, read_text, write_text
from vtcframe.data.results import Prediction, Score, mean_score, parts
from vtcframe.data.sample import Sample
from vtcframe.errors import UsageError

PERCEPTION = "existence count position color posters celebrity scene landmark artwork OCR".split()
COGNITION = "commonsense_reasoning numerical_calculation text_translation code_reasoning".split()
SUFFIXES = (".jpg", ".png")  # of MME's pictures
MME_PROMPT = "Please answer yes or no."  # the end of MME's questions


@dataclass(frozen=True)
class Pope(Benchmark):
    """POPE (Li et al., EMNLP 2023): is an object in the picture? Absent objects are chosen by three strategies.

    `path` is a folder with coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json, or one of
    these files; pictures are COCO's val2014. Question numbers restart in each file, so ids are "random/1". As in the
    authors' evaluate.py, only the answer's text before the first full stop counts, without commas. It means no if one
    of its words is No, no or not, and yes otherwise.

    Columns, for each strategy: accuracy, precision, recall and F1 of yes, and the fraction of yes; last the mean F1.
    """

    prompt: str = SHORT

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        files = sorted(path.glob("*_pope_*.json"), reverse=True) if path.is_dir() else [path]
        folder = images or (path if path.is_dir() else path.parent)
        records = (
            (place, (file.stem.rpartition("_pope_")[2], record)) for file in files for place, record in read_jsonl(file)
        )
        return collect(path, records, lambda record: self._sample(record[0], record[1], folder))

    def _sample(self, strategy: str, record: Any, folder: Path) -> Sample:
        number = field(record, "question_id", int)
        label = field(record, "label", str)
        question = field(record, "text", str)
        image = field(record, "image", str)
        if label not in ("yes", "no"):
            raise UsageError(f"the label must be yes or no, got {label!r}")
        return Sample(f"{strategy}/{number}", question + self.prompt, (folder / image,), label, strategy)

    def grade(self, row: Prediction) -> float | None:
        return (row.answer == "yes") == says_yes(row.prediction or "")

    def score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        scores: dict[str, Score] = {}
        strategies = parts(rows, lambda row: row.type)
        for strategy, group in strategies.items():
            predicted = torch.tensor([says_yes(row.prediction or "") for row in group]).int()
            expected = torch.tensor([row.answer == "yes" for row in group]).int()
            figures = {
                "accuracy": binary_accuracy(predicted, expected),
                "precision": binary_precision(predicted, expected),
                "recall": binary_recall(predicted, expected),
                "F1": binary_f1_score(predicted, expected),
                "yes": predicted.float().mean(),
            }
            scores |= {f"{strategy} {name}": Score(len(group), float(figure)) for name, figure in figures.items()}
        return scores | {
            "F1": Score(len(rows), mean_score([scores[f"{strategy} F1"].value for strategy in strategies]).value)
        }


def says_yes(text: str) -> bool:
    """Return whether an answer means yes, by the rules of POPE's authors."""
    words = text.partition(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"}.intersection(words)


@dataclass(frozen=True)
class Mme(Benchmark):
    """MME (Fu et al., arXiv 2306.13394): 14 categories, two questions about each picture.

    `path` is MME_Benchmark_release_version, with a folder for each category. Pictures and texts are in that folder, or
    in its subfolders images and questions_answers_YN. The prompt replaces the release's "Please answer yes or no.". As
    in the authors' calculation.py, only the first four letters of an answer count, in any case: yes, else no, else
    neither, which is wrong.

    Columns: for each category the sum of accuracy and accuracy+ (both questions about a picture right) in percent,
    0..200; their sums for cognition (0..800) and perception (0..2000). Exports CATEGORY.txt for calculation.py.
    """

    prompt: str = SHORT

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        categories = [name for name in PERCEPTION + COGNITION if (path / name).is_dir()]
        records = (record for name in categories for record in _lines(path / name, (images or path) / name))
        return collect(path, records, lambda record: self._sample(*record))

    def _sample(self, category: str, picture: Path, number: int, line: str) -> Sample:
        question, tab, answer = line.rpartition("\t")
        if not tab or answer.strip().lower() not in ("yes", "no"):
            raise UsageError(f"a line must hold a question, a tab, and Yes or No, got {line!r}")
        text = question.replace(MME_PROMPT, "").strip() + self.prompt
        meta = {"picture": picture.name, "question": question}
        return Sample(f"{category}/{picture.stem}/{number}", text, (picture,), answer.strip(), category, meta=meta)

    def grade(self, row: Prediction) -> float | None:
        start = (row.prediction or "").lower()[:4]
        return (row.answer or "").lower() == ("yes" if "yes" in start else "no" if "no" in start else "other")

    def score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        scores: dict[str, Score] = {}
        for category, group in parts(rows, lambda row: row.type).items():
            grades = [self.grade(row) for row in group]
            pictures: dict[str, list[float | None]] = {}
            for row, grade in zip(group, grades, strict=True):
                pictures.setdefault(row.meta["picture"], []).append(grade)
            both = fmean(pair == [True, True] for pair in pictures.values())
            scores[category] = Score(len(group), 100 * ((mean_score(grades).value or 0) + both))
        sums = {"cognition": COGNITION, "perception": PERCEPTION}
        return scores | {
            name: _sum([scores[category] for category in categories if category in scores])
            for name, categories in sums.items()
        }

    def export(self, rows: Sequence[Prediction], folder: Path) -> list[Path]:
        files = []
        for category, group in parts(rows, lambda row: row.type).items():
            lines = ["\t".join(_export_cells(row)) + "\n" for row in group]
            files.append(write_text(folder / f"{category}.txt", "".join(lines)))
        return files


def _lines(folder: Path, pictures: Path) -> Iterator[tuple[str, tuple[str, Path, int, str]]]:
    """Yield for each question of a category its place, and (category, picture, number from 1, line)."""
    texts = folder / "questions_answers_YN"
    separate = texts.is_dir()
    for text in sorted((texts if separate else folder).glob("*.txt")):
        base = (pictures / "images" if separate else pictures) / text.name
        picture = next(
            (file for file in map(base.with_suffix, SUFFIXES) if file.exists()), base.with_suffix(SUFFIXES[0])
        )
        lines = [line for line in read_text(text).splitlines() if line.strip()]
        if len(lines) != 2:
            raise UsageError(f"{text} holds {len(lines)} questions: each picture must have two")
        for number, line in enumerate(lines, start=1):
            yield f"{text}, line {number}", (folder.name, picture, number, line)


def _sum(scores: Sequence[Score]) -> Score:
    return Score(
        sum(score.questions for score in scores), sum(score.value or 0 for score in scores) if scores else None
    )


def _export_cells(row: Prediction) -> list[str]:
    return [row.meta["picture"], row.meta["question"], row.answer or "", " ".join((row.prediction or "").split())]
