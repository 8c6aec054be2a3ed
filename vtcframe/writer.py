"""predictions.jsonl: written as answers come, whole under its name only once the run is."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from vtcframe.metrics import Row, table


class Writer(BasePredictionWriter):
    """Writes FOLDER/predictions.jsonl and prints the table of accuracies.

    Until the run is over, rows lie in predictions.jsonl.part beside it; after a crash they still do.

    Args:
        folder: Where to; made if it is not there.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(write_interval="batch")
        self.path = Path(folder) / "predictions.jsonl"
        self.part = self.path.with_name(self.path.name + ".part")
        self.failed: list[str] = []  # ids of the samples that have no answer

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = self.part.open("w", encoding="utf-8")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Sequence[Row],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append the rows of a batch."""
        self._file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in prediction)
        self._file.flush()
        self.failed += [row.id for row in prediction if row.error is not None]

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the finished file its name and print the table."""
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.part, self.path)
        with self.path.open(encoding="utf-8") as lines:
            print(table(Row(**json.loads(line)) for line in lines))
        print(f"written to {self.path}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close what was written so far."""
        if hasattr(self, "_file"):
            self._file.close()
