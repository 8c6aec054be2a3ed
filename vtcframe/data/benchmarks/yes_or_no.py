"""Benchmarks of questions that are answered by yes or no: POPE and MME."""

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
ENDINGS = (".jpg", ".png")
ASKED = "Please answer yes or no."  # how questions of MME end


@dataclass(frozen=True)
class Pope(Benchmark):
    """POPE (Li et al., EMNLP 2023): is an object in the picture? Three ways of choosing objects that are not.

    `path` is a folder with coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json, or one of
    them; pictures are COCO's val2014. Numbers of questions begin anew in each file: ids are "random/1". As in the
    authors' evaluate.py an answer is read up to its first full stop and without commas; it is no where one of its
    words is No, no or not, and yes otherwise.

    Columns, for each way: accuracy, precision, recall and F1 of yes, the fraction of yes; last the mean of the F1.
    """

    prompt: str = SHORT

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        files = sorted(path.glob("*_pope_*.json"), reverse=True) if path.is_dir() else [path]
        folder = images or (path if path.is_dir() else path.parent)
        records = (
            (place, (file.stem.rpartition("_pope_")[2], record)) for file in files for place, record in read_jsonl(file)
        )
        return collect(path, records, lambda one: self._sample(one[0], one[1], folder))

    def _sample(self, way: str, record: Any, folder: Path) -> Sample:
        number, label = field(record, "question_id", int), field(record, "label", str)
        question, image = field(record, "text", str), field(record, "image", str)
        if label not in ("yes", "no"):
            raise UsageError(f"the label must be yes or no, got {label!r}")
        return Sample(f"{way}/{number}", question + self.prompt, (folder / image,), label, way)

    def grade(self, row: Prediction) -> float | None:
        return (row.answer == "yes") == says_yes(row.prediction or "")

    def score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        scores: dict[str, Score] = {}
        ways = parts(rows, lambda row: row.type)
        for way, own in ways.items():
            said = torch.tensor([says_yes(row.prediction or "") for row in own]).int()
            right = torch.tensor([row.answer == "yes" for row in own]).int()
            figures = {
                "accuracy": binary_accuracy(said, right),
                "precision": binary_precision(said, right),
                "recall": binary_recall(said, right),
                "F1": binary_f1_score(said, right),
                "yes": said.float().mean(),
            }
            scores |= {f"{way} {name}": Score(len(own), float(figure)) for name, figure in figures.items()}
        return scores | {"F1": Score(len(rows), mean_score([scores[f"{way} F1"].value for way in ways]).value)}


def says_yes(text: str) -> bool:
    """Read an answer as POPE's authors do."""
    words = text.partition(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"}.intersection(words)


@dataclass(frozen=True)
class Mme(Benchmark):
    """MME (Fu et al., arXiv 2306.13394): 14 categories, two questions about each picture.

    `path` is MME_Benchmark_release_version, with a folder for each category: pictures and texts side by side, or in
    images and questions_answers_YN. The release's "Please answer yes or no." gives way to the prompt. As in the
    authors' calculation.py an answer is read by its first four letters, whatever their case: yes, else no, else
    neither, which is wrong.

    Columns: for each category accuracy and accuracy+ (both questions about a picture right) in percent, added, 0..200;
    their sums for cognition (0..800) and perception (0..2000). Exports what calculation.py reads: CATEGORY.txt.
    """

    prompt: str = SHORT

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        categories = [name for name in PERCEPTION + COGNITION if (path / name).is_dir()]
        records = (one for name in categories for one in _lines(path / name, (images or path) / name))
        return collect(path, records, lambda one: self._sample(*one))

    def _sample(self, category: str, picture: Path, number: int, line: str) -> Sample:
        question, tab, answer = line.rpartition("\t")
        if not tab or answer.strip().lower() not in ("yes", "no"):
            raise UsageError(f"a line holds a question, a tab, and Yes or No, not {line!r}")
        asked = question.replace(ASKED, "").strip() + self.prompt
        meta = {"picture": picture.name, "question": question}
        return Sample(f"{category}/{picture.stem}/{number}", asked, (picture,), answer.strip(), category, meta=meta)

    def grade(self, row: Prediction) -> float | None:
        said = (row.prediction or "").lower()[:4]
        return (row.answer or "").lower() == ("yes" if "yes" in said else "no" if "no" in said else "other")

    def score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        scores: dict[str, Score] = {}
        for category, own in parts(rows, lambda row: row.type).items():
            right = [self.grade(row) for row in own]
            pictures: dict[str, list[float | None]] = {}
            for row, grade in zip(own, right, strict=True):
                pictures.setdefault(row.meta["picture"], []).append(grade)
            both = fmean(grades == [True, True] for grades in pictures.values())
            scores[category] = Score(len(own), 100 * ((mean_score(right).value or 0) + both))
        sums = {"cognition": COGNITION, "perception": PERCEPTION}
        return scores | {name: _sum([scores[one] for one in own if one in scores]) for name, own in sums.items()}

    def export(self, rows: Sequence[Prediction], folder: Path) -> list[Path]:
        written = []
        for category, own in parts(rows, lambda row: row.type).items():
            lines = ["\t".join(_told(row)) + "\n" for row in own]
            written.append(write_text(folder / f"{category}.txt", "".join(lines)))
        return written


def _lines(folder: Path, pictures: Path) -> Iterator[tuple[str, tuple[str, Path, int, str]]]:
    """Yield the questions of a category: their place; category, picture, number from 1, and line."""
    texts = folder / "questions_answers_YN"
    apart = texts.is_dir()
    for text in sorted((texts if apart else folder).glob("*.txt")):
        base = (pictures / "images" if apart else pictures) / text.name
        picture = next((one for one in map(base.with_suffix, ENDINGS) if one.exists()), base.with_suffix(ENDINGS[0]))
        lines = [line for line in read_text(text).splitlines() if line.strip()]
        if len(lines) != 2:
            raise UsageError(f"{text} holds {len(lines)} questions: there are two about each picture")
        for number, line in enumerate(lines, start=1):
            yield f"{text}, line {number}", (folder.name, picture, number, line)


def _sum(scores: Sequence[Score]) -> Score:
    return Score(sum(one.questions for one in scores), sum(one.value or 0 for one in scores) if scores else None)


def _told(row: Prediction) -> list[str]:
    return [row.meta["picture"], row.meta["question"], row.answer or "", " ".join((row.prediction or "").split())]
