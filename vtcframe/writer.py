"""What a run leaves: predictions.jsonl, whole under its name only once the run is; pictures; the table."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from vtcframe.data import Sample
from vtcframe.metrics import Row, table
from vtcframe.pictures import file_name, sheet

NOTE = "seconds: a sample's share of its batch, encoding included, without the first batch where there are more"


class Writer(BasePredictionWriter):
    """Writes FOLDER/predictions.jsonl and prints the table of accuracies.

    Until the run is over, rows lie in predictions.jsonl.part beside it; after a crash they still do.

    Args:
        folder: Where to; made if it is not there.
        masks: Whether rows tell, for each view, which tokens were kept and how they were scored.
        pictures: For how many samples FOLDER/pictures gets a sheet of what each method keeps.
    """

    def __init__(self, folder: str, masks: bool = False, pictures: int = 0) -> None:
        super().__init__(write_interval="batch")
        if pictures < 0:
            raise ValueError(f"pictures is a number of samples, got {pictures}")
        self.masks, self.pictures = masks, pictures
        self.path = Path(folder) / "predictions.jsonl"
        self.part = self.path.with_name(self.path.name + ".part")
        self.failed: list[str] = []  # ids of the samples that have no answer

    def on_predict_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin a new file and ask for the views that it needs."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.drawn = 0
        pl_module.viewed = math.inf if self.masks else self.pictures
        self._file: TextIO = self.part.open("w", encoding="utf-8")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        prediction: Sequence[Row],
        batch_indices: Sequence[int] | None,
        batch: Sequence[Sample],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append the rows of a batch, then draw those of its samples that are still wanted."""
        rows = prediction if self.masks else [replace(row, views=None) for row in prediction]
        self._file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
        self._file.flush()
        self.failed += [row.id for row in prediction if row.error is not None]
        refused = {row.id for row in prediction if row.error is not None}
        for sample in [sample for sample in batch if sample.id not in refused][: self.pictures - self.drawn]:
            self.drawn += 1
            self._draw(pl_module.shown(sample), [row for row in prediction if row.id == sample.id])

    def _draw(self, pictures: Sequence[Image.Image], rows: Sequence[Row]) -> None:
        path = self.path.parent / "pictures" / file_name(rows[0].id, ".png")
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(path.name + ".part")
        sheet(pictures, rows).save(part, format="PNG")
        os.replace(part, path)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the finished file its name and print the table."""
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.part, self.path)
        with self.path.open(encoding="utf-8") as lines:
            print(table(Row(**json.loads(line) | {"views": None}) for line in lines))
        print(NOTE)
        print(
            f"written to {self.path}" + (f", {self.drawn} sheets to {self.path.parent}/pictures" if self.drawn else "")
        )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close what was written so far."""
        if hasattr(self, "_file"):
            self._file.close()
