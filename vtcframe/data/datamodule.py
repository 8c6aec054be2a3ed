"""Questions about pictures and videos, batched and decoded."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from vtcframe.assets import bundled
from vtcframe.core.contracts import call_component
from vtcframe.core.serialization import component_data
from vtcframe.data.benchmarks.base import Benchmark
from vtcframe.data.decode import load_sample
from vtcframe.data.formats import read_groups, read_samples
from vtcframe.data.progress import RunProgress
from vtcframe.data.sample import Sample
from vtcframe.data.transforms import Transform
from vtcframe.errors import UsageError

CHECKED_SAMPLES = 10  # if none of their pictures exists, data.images is wrong


class RankSampler(DistributedSampler):
    """Every `world`-th of `count` samples, from index `rank` on, so that each process answers others.

    Lightning does not replace samplers of this type. Its own fails if there are fewer samples than processes.
    """

    def __init__(self, count: int, rank: int, world: int) -> None:
        self.indices, self.epoch = range(rank, count, world), 0

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class Batch:
    """Loaded samples that are answered together. It is not a list: some of Lightning's precisions convert lists."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)


class Questions(LightningDataModule):
    """Questions about pictures and videos.

    Args:
        path: File or folder of the benchmark. Without a benchmark: a .jsonl, .csv, .tsv or .parquet file with the
            fields id, question, image or images, video and, if known, answer and type, or a folder with
            questions.jsonl. `vtcframe:questions` is the bundled set.
        images: Folder that the paths of images and videos are relative to (default: that of the file, or the
            benchmark's).
        benchmark: Benchmark whose files are read and whose rules score the answers, for example Pope.
        batch_size: Number of samples that are answered together.
        num_workers: Number of processes that decode pictures, in addition to the main process.
        frames: Number of evenly spaced frames that are shown of a video (default: all).
        transforms: Changes to pictures and videos before the model's processor, for example
            [{name: Downsample, tokens: 256}].
        limit: Number of questions that are answered, from the first on (default: all).
        progress: Which samples are pending; set by the writer of the run. By default all of them are.
    """

    def __init__(
        self,
        path: str,
        images: str | None = None,
        benchmark: Benchmark | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        frames: int | None = None,
        transforms: list[Transform] | None = None,
        limit: int | None = None,
        progress: RunProgress | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if frames is not None and frames < 1:
            raise ValueError(f"frames must be at least 1, got {frames}: leave it out to show all")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}: leave it out to answer all")
        self.path, self.images, self.benchmark, self.frames, self.limit = path, images, benchmark, frames, limit
        self.batch_size, self.num_workers, self.transforms = batch_size, num_workers, transforms or []
        self.samples: list[Sample] = []
        self.groups: dict[str, list[str]] = {}
        self.progress = RunProgress.opened() if progress is None else progress
        self.allow_zero_length_dataloader_with_multiple_devices = True  # as many as there are samples, or fewer

    def setup(self, stage: str) -> None:
        """Read the questions. UsageError if they cannot be used (see `read_samples` and `Benchmark.read`)."""
        path, images = Path(bundled(self.path)), None if self.images is None else Path(self.images)
        if self.benchmark is None:
            samples = read_samples(path, images)
            self.groups = read_groups(path)
        else:
            samples = call_component(self.benchmark, self.benchmark.read, path, images)
        self.samples = samples[: self.limit]
        if self.benchmark is not None:
            _check_pictures(self.samples[:CHECKED_SAMPLES])

    def facts(self) -> dict[str, Any]:
        """Return what the answers depend on: key of the configuration -> value, and a digest of all questions."""
        digest = blake2b(digest_size=16)
        for sample in self.samples:
            digest.update(repr(sample).encode())
        return {
            "data.path": self.path,
            "data.images": self.images,
            "data.benchmark": self.benchmark and component_data(self.benchmark),
            "data.frames": self.frames,
            "data.transforms": [component_data(transform) for transform in self.transforms],
            "data.groups": self.groups,
            "data.limit": self.limit,
            "digest of the questions": digest.hexdigest(),
        }

    def predict_dataloader(self) -> DataLoader:
        """Return the batches of loaded samples of this process. Transforms are fitted to the processor of the model.

        If a transform fails on a sample, the sample has the error.
        """
        processor = getattr(getattr(self.trainer, "lightning_module", None), "processor", None)
        transforms = (
            self.transforms
            if processor is None
            else [call_component(transform, transform.fitted, processor) for transform in self.transforms]
        )
        pending = self.progress.pending(self.samples)
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return DataLoader(
            _Loaded(pending, self.frames, transforms),
            sampler=RankSampler(len(pending), rank, world),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=Batch,
        )

    def transfer_batch_to_device(self, batch: Batch, device: Any, dataloader_idx: int) -> Batch:
        """Return the batch as it is: only the output of the processor is moved to the device."""
        return batch


def _check_pictures(samples: Sequence[Sample]) -> None:
    """Raise UsageError if no picture of these samples exists. A single missing one becomes the error of its sample."""
    files = [image for sample in samples for image in sample.images if isinstance(image, Path)]
    if files and not any(file.exists() for file in files):
        raise UsageError(
            f"there is no picture {files[0]}, nor any other of the first samples: give their folder as data.images"
        )


class _Loaded(Dataset[Sample]):
    def __init__(self, samples: list[Sample], frames: int | None, transforms: Sequence[Transform]) -> None:
        self.samples, self.frames, self.transforms = samples, frames, transforms

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return load_sample(self.samples[index], self.frames, self.transforms)
