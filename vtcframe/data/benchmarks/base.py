"""What a benchmark is, and how its files are read."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vtcframe.data.files import natural_key
from vtcframe.data.results import Prediction, Score, columns, mean_scores
from vtcframe.data.sample import Sample
from vtcframe.errors import UsageError

SHORT = "\nAnswer the question using a single word or phrase."  # the wordings of LLaVA-1.5's evaluation


LETTER = "\nAnswer with the option's letter from the given choices directly."


class Benchmark(ABC):
    """Reads a published benchmark's files as they are downloaded, and scores answers by its own rules.

    Components are frozen dataclasses, as the verbs are. Their `prompt` is what a question is followed by.
    """

    @abstractmethod
    def read(self, path: Path, images: Path | None) -> list[Sample]:
        """Read the questions of a file or folder. Pictures lie in `images`, else where the download has them.

        UsageError, naming file and question, for what is no such thing and for an id that comes twice.
        """

    def grade(self, row: Prediction) -> float | None:
        """How right an answer is, 0..1; None where that cannot be known."""
        return row.correct

    def score(self, rows: Sequence[Prediction]) -> dict[str, Score]:
        """Column -> score of what one method answered at one budget; the figure that papers report comes last.

        That is the mean grade by type of question and of "all", unless the benchmark has other rules.
        """
        return mean_scores(columns(rows), self.grade)

    def export(self, rows: Sequence[Prediction], folder: Path) -> list[Path]:
        """Write the answers of one method at one budget as the official tool or server takes them; return the files.

        Nothing, where there is none. A row without a prediction is written with an empty answer.
        """
        return []


@dataclass(frozen=True)
class ImageFolder(Benchmark):
    """One question about every picture in a folder and the folders in it; ids are the paths from there."""

    question: str

    def read(self, path: Path, images: Path | None) -> list[Sample]:
        known = {ending for ending, form in Image.registered_extensions().items() if form in Image.OPEN}
        found = sorted((file for file in path.rglob("*") if file.suffix.lower() in known), key=natural_key)
        if not found:
            raise UsageError(f"there are no pictures in the folder {path}")
        return [Sample(file.relative_to(path).as_posix(), self.question, (file,)) for file in found]
