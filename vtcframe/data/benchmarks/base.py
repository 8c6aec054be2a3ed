"""The base class of benchmarks, and a benchmark that asks one question about every picture of a folder."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vtcframe.data.files import natural_key
from vtcframe.data.results import Prediction, Score, columns, mean_scores
from vtcframe.data.sample import Sample
from vtcframe.errors import UsageError

SHORT = "\nAnswer the question using a single word or phrase."  # prompts of LLaVA-1.5's evaluation
LETTER = "\nAnswer with the option's letter from the given choices directly."


class Benchmark(ABC):
    """Reads the files of a published benchmark as downloaded, and scores answers by the benchmark's rules.

    Benchmarks are frozen dataclasses, like all components. The option `prompt` is appended to every question.
    """

    @abstractmethod
    def read(self, path: Path, images: Path | None) -> list[Sample]:
        """Read the questions of a file or folder. Pictures are in `images`, or in the benchmark's default folder.

        Raises UsageError, with file and question, for invalid content and for duplicate ids.
        """

    def grade(self, row: Prediction) -> float | None:
        """Return the correctness of an answer, 0..1; None if there is no reference answer."""
        return row.correct

    def score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        """Return the score of each column for the answers of one method at one budget.

        The figure that papers report comes last. By default the columns are the mean grade of each type of question
        and of "all".
        """
        return mean_scores(columns(rows), self.grade)

    def export(self, rows: Sequence[Prediction], folder: Path) -> list[Path]:
        """Write the answers of one method at one budget in the format of the official tool or server.

        Returns the files, or an empty list if there is no such format. A row without a prediction is written with an
        empty answer.
        """
        return []


@dataclass(frozen=True)
class ImageFolder(Benchmark):
    """One question about every picture in a folder and its subfolders; ids are the relative paths."""

    question: str

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        suffixes = {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}
        files = sorted((file for file in path.rglob("*") if file.suffix.lower() in suffixes), key=natural_key)
        if not files:
            raise UsageError(f"there are no pictures in the folder {path}")
        return [Sample(file.relative_to(path).as_posix(), self.question, (file,)) for file in files]
