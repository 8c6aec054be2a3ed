"""The output of a run: predictions.jsonl, exports, pictures, and the printed table."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from lightning import Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from vtcframe.atomic import atomic_path
from vtcframe.core.contracts import call_component
from vtcframe.data.benchmarks.base import Benchmark
from vtcframe.data.datamodule import Batch, Questions
from vtcframe.data.progress import RunProgress
from vtcframe.data.results import Prediction, runs
from vtcframe.drawing import Picture, file_name, sheet
from vtcframe.errors import UnfinishedError, UsageError
from vtcframe.machine import describe_hardware
from vtcframe.runs.crops import crop_pictures
from vtcframe.runs.exports import check_format, export
from vtcframe.runs.predictor import Predictor
from vtcframe.runs.run_folder import Existing, RunFolder
from vtcframe.runs.shards import HeartbeatMonitor, Shard, report_write_errors, shard_path
from vtcframe.runs.table import format_table

NOTE = "seconds: a sample's share of its batch, encoding included, without the first batch where there are more"


class Writer(BasePredictionWriter):
    """Writes FOLDER/predictions.jsonl in the order of the questions, and prints the table of accuracies.

    Until the run is finished, rows are appended to FOLDER/parts, to one file per process. If the run is interrupted,
    the same command answers the remaining questions, with any number of processes. FOLDER/run.json describes the run.
    On several machines, FOLDER must be on a file system that they share.

    Args:
        folder: Folder of the run; created if it is missing.
        existing: What to do with an earlier run in the folder. resume: resume the same run, answer failed questions
            again, and refuse another run; mix: resume another run as well; replace: start again.
        masks: Whether rows have, for each view, the kept tokens and their scores.
        pictures: Number of samples for which FOLDER/pictures gets a sheet of the kept tokens of each method.
        exports: Other formats of predictions.jsonl, written beside it.
    """

    def __init__(
        self,
        folder: str,
        existing: Existing = "resume",
        masks: bool = False,
        pictures: int = 0,
        exports: list[Literal["csv", "parquet"]] | None = None,
    ) -> None:
        super().__init__(write_interval="batch")
        if pictures < 0:
            raise ValueError(f"pictures is a number of samples, got {pictures}")
        self.folder = RunFolder(Path(folder), existing)
        self.masks, self.pictures, self.exports = masks, pictures, exports or []
        self.progress = RunProgress()  # of this run; its data module and its predictor use it
        self.failed: list[str] = []  # ids of samples without an answer, set when the run is finished
        self._shard: Shard | None = None

    # `setup` and `teardown`: a process without samples never reaches `on_predict_start` and `on_predict_end`.

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Find the pending questions and start a shard. UsageError, on all processes, if the folder is refused."""
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue] (a trainer has it once it predicts)
        if not isinstance(data, Questions):
            raise TypeError(
                f"the writer orders rows as vtcframe.data.datamodule.Questions does, got {type(data).__name__}"
            )
        for form in self.exports:
            check_format(form)
        start: tuple[int, set[str]] | Exception = 0, set()
        if trainer.is_global_zero:
            try:
                identity = run_identity(trainer, pl_module, data, self.masks)
                hardware = describe_hardware(trainer.strategy.root_device)
                start = self.folder.begin(identity, trainer.world_size, hardware)
            except (UsageError, UnfinishedError) as error:
                start = error  # raised on all processes: the others would wait for ever
        start = trainer.strategy.broadcast(start)
        if isinstance(start, Exception):
            raise start
        self.attempt, answered = start
        if answered and trainer.is_global_zero:
            print(f"{len(answered)} of {len(data.samples)} samples were answered earlier in {self.folder.path}")
        self._drawn = {sample.id for sample in data.samples[: self.pictures]}
        self.progress.open(answered, None if self.masks else self._drawn)
        self._shard = Shard(self.folder.parts, self.attempt, trainer.global_rank)
        self._first = HeartbeatMonitor(shard_path(self.folder.parts, self.attempt, 0).with_suffix(".lock"))

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        prediction: Sequence[Prediction],
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append the rows of a batch, then draw the sheets of its samples."""
        assert self._shard is not None
        by_sample = [[row for row in prediction if row.id == sample.id] for sample in batch]
        written = by_sample if self.masks else [[replace(row, views=None) for row in rows] for rows in by_sample]
        self._shard.append([[asdict(row) for row in rows] for rows in written])
        for sample, rows in zip(batch, by_sample, strict=True):
            answered = [row for row in rows if row.error is None]
            if sample.id in self._drawn and answered:
                self._draw(crop_pictures(pl_module.processor, sample), answered)
        if trainer.received_sigterm:
            raise UnfinishedError("the run received SIGTERM")
        if trainer.global_rank and self._first.is_dead():
            raise UnfinishedError("the first process of this run has ended")

    def _draw(self, pictures: Sequence[Picture], rows: Sequence[Prediction]) -> None:
        path = self.folder.path / "pictures" / file_name(rows[0].id, ".png")
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as part:
            sheet(pictures, rows).save(part, format="PNG")

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Finish the shard. The first process waits for the others, merges their shards, and prints the table.

        It does not use a barrier: process groups time out, and a process may finish hours before another.
        """
        if self._shard is None:
            return
        self._shard.close(finished=True)
        self._shard = None
        if not trainer.is_global_zero:
            return
        self.folder.await_others(self.attempt, trainer.world_size, lambda: trainer.received_sigterm)
        data: Questions = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue] (as in setup)
        self.folder.merge([sample.id for sample in data.samples])
        self._write_results(data)
        self.folder.leave()

    def _write_results(self, data: Questions) -> None:
        rows = [Prediction.from_json(row) for row in self.folder.rows()]
        self.failed = list(dict.fromkeys(row.id for row in rows if row.error is not None))
        if data.benchmark is None:
            print(format_table(rows, groups=data.groups))
        else:
            print(call_component(data.benchmark, format_table, rows, data.benchmark))
        print(NOTE)
        path = self.folder.predictions
        files = [path, *(export(form, self.folder.rows(), path) for form in self.exports)]
        if data.benchmark is not None and self._export_official(rows, data.benchmark):
            files.append(self.folder.path / "official")
        sheets = f", {len(self._drawn)} sheets to {self.folder.path}/pictures" if self._drawn else ""
        print(f"written to {', '.join(map(str, files))}{sheets}")

    def _export_official(self, rows: Sequence[Prediction], benchmark: Benchmark) -> list[Path]:
        """Write the answers of each run, empty if it failed, in the format of the benchmark's own tool or server."""
        failed_in_all = [row for row in rows if row.label is None]
        with report_write_errors(self.folder.path / "official"):
            return [
                path
                for (method, budget), answers in runs(rows, failed=True).items()
                for path in call_component(
                    benchmark,
                    benchmark.export,
                    [*answers, *failed_in_all],
                    self.folder.path / "official" / file_name(f"{method} {budget}", ""),
                )
            ]

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Release the shard and the folder."""
        if self._shard is not None:
            self._shard.close()
            self._shard = None
        if trainer.is_global_zero:
            self.folder.leave()


def run_identity(trainer: Trainer, predictor: Predictor, data: Questions, masks: bool) -> dict[str, Any]:
    """Return everything that rows depend on. A run that differs in one of the values is another run."""
    return {**predictor.facts(), **data.facts(), "trainer.precision": trainer.precision, "writer.masks": masks}
