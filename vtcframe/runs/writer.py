"""What a run leaves: predictions.jsonl, whole under its name only once the run is; exports; pictures; the table."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from lightning import Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from vtcframe.atomic import atomic_path
from vtcframe.core.contracts import call_component
from vtcframe.data.benchmarks.base import Benchmark
from vtcframe.data.datamodule import Batch, Questions
from vtcframe.data.progress import RunProgress
from vtcframe.data.results import Prediction, runs
from vtcframe.drawing import file_name, sheet
from vtcframe.errors import UnfinishedError, UsageError
from vtcframe.machine import describe_hardware
from vtcframe.runs.exports import check, export
from vtcframe.runs.predictor import Predictor
from vtcframe.runs.run_folder import Existing, RunFolder
from vtcframe.runs.shards import HeartbeatMonitor, Shard, report_write_errors, shard_path
from vtcframe.runs.table import table

NOTE = "seconds: a sample's share of its batch, encoding included, without the first batch where there are more"


class Writer(BasePredictionWriter):
    """Writes FOLDER/predictions.jsonl in the order of the questions, and prints the table of accuracies.

    Until the run is over, rows lie in FOLDER/parts, a file for each process. After whatever stopped it the same
    command answers what has no answer yet, with as many processes as it then has. FOLDER/run.json says what the run is
    of. With several machines FOLDER is one that all of them see.

    Args:
        folder: Where to; made if it is not there.
        existing: What becomes of an earlier run in the folder. resume: the same one goes on, questions that failed are
            asked again, another one is refused; mix: another one goes on, too; replace: it begins anew.
        masks: Whether rows tell, for each view, which tokens were kept and how they were scored.
        pictures: For how many samples FOLDER/pictures gets a sheet of what each method keeps.
        exports: Other forms of predictions.jsonl to be written beside it.
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
        self.progress = RunProgress()  # of this run, for its data module and its predictor
        self.failed: list[str] = []  # ids of the samples that have no answer, once the run is over
        self._shard: Shard | None = None

    # `setup` and `teardown`, and not `on_predict_start` and `_end`, which a process without a sample does not get to.

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Find out what is left to be asked, and begin a shard. UsageError, on all processes, for a refused folder."""
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue] (a trainer has it once it predicts)
        if not isinstance(data, Questions):
            raise TypeError(
                f"the writer orders rows as vtcframe.data.datamodule.Questions does, got {type(data).__name__}"
            )
        for form in self.exports:
            check(form)
        told: tuple[int, set[str]] | Exception = 0, set()
        if trainer.is_global_zero:
            try:
                own, place = (
                    facts(trainer, pl_module, data, self.masks),
                    describe_hardware(trainer.strategy.root_device),
                )
                told = self.folder.begin(own, trainer.world_size, place)
            except (UsageError, UnfinishedError) as error:
                told = error  # the others would wait for ever
        told = trainer.strategy.broadcast(told)
        if isinstance(told, Exception):
            raise told
        self.attempt, done = told
        if done and trainer.is_global_zero:
            print(f"{len(done)} of {len(data.samples)} samples were answered earlier in {self.folder.path}")
        self._drawn = {sample.id for sample in data.samples[: self.pictures]}
        self.progress.open(done, None if self.masks else self._drawn)
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
        """Append the rows of a batch, then draw those of its samples that are wanted."""
        assert self._shard is not None
        own = [[row for row in prediction if row.id == sample.id] for sample in batch]
        kept = own if self.masks else [[replace(row, views=None) for row in rows] for rows in own]
        self._shard.append([[asdict(row) for row in rows] for rows in kept])
        for sample, rows in zip(batch, own, strict=True):
            answered = [row for row in rows if row.error is None]
            if sample.id in self._drawn and answered:
                self._draw(pl_module.shown(sample), answered)
        if trainer.received_sigterm:
            raise UnfinishedError("it was asked to stop")
        if trainer.global_rank and self._first.gone():
            raise UnfinishedError("the first process of this run is gone")

    def _draw(self, pictures: Sequence[Image.Image], rows: Sequence[Prediction]) -> None:
        path = self.folder.path / "pictures" / file_name(rows[0].id, ".png")
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as part:
            sheet(pictures, rows).save(part, format="PNG")

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Finish the shard. The first process waits for the others, merges, and prints the table.

        There is no barrier: a process may have hours to go when another is done, and process groups time out.
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
        self._tell(data)
        self.folder.leave()

    def _tell(self, data: Questions) -> None:
        rows = [Prediction.from_json(row) for row in self.folder.rows()]
        self.failed = list(dict.fromkeys(row.id for row in rows if row.error is not None))
        print(table(rows) if data.benchmark is None else call_component(data.benchmark, table, rows, data.benchmark))
        print(NOTE)
        path = self.folder.predictions
        written = [path, *(export(form, self.folder.rows(), path) for form in self.exports)]
        if data.benchmark is not None and self._submit(rows, data.benchmark):
            written.append(self.folder.path / "official")
        drawn = f", {len(self._drawn)} sheets to {self.folder.path}/pictures" if self._drawn else ""
        print(f"written to {', '.join(map(str, written))}{drawn}")

    def _submit(self, rows: Sequence[Prediction], benchmark: Benchmark) -> list[Path]:
        """Write each run's answers, empty ones where it failed, as the benchmark's own tool or server takes them."""
        nowhere = [row for row in rows if row.label is None]
        with report_write_errors(self.folder.path / "official"):
            return [
                path
                for (method, budget), own in runs(rows, failed=True).items()
                for path in call_component(
                    benchmark,
                    benchmark.export,
                    [*own, *nowhere],
                    self.folder.path / "official" / file_name(f"{method} {budget}", ""),
                )
            ]

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Let go of the shard and the folder."""
        if self._shard is not None:
            self._shard.close()
            self._shard = None
        if trainer.is_global_zero:
            self.folder.leave()


def facts(trainer: Trainer, predictor: Predictor, data: Questions, masks: bool) -> dict[str, Any]:
    """Return what makes rows what they are: a run that differs in one of these is another run."""
    return {**predictor.facts(), **data.facts(), "trainer.precision": trainer.precision, "writer.masks": masks}
