"""Questions about pictures: a JSONL file and the pictures it names."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from vtcframe.config import UsageError, bundled


@dataclass(frozen=True)
class Sample:
    """One question; once loaded, with its pictures or the reason why there are none."""

    id: str
    question: str
    images: tuple[Path, ...]
    answer: str | None = None
    type: str | None = None
    pictures: tuple[Image.Image, ...] = ()
    error: str | None = None

    def loaded(self) -> "Sample":
        """Return it with its pictures decoded. One that cannot be read becomes its `error`, so that others go on."""
        pictures = []
        for path in self.images:
            try:
                with Image.open(path) as picture:
                    pictures.append(ImageOps.exif_transpose(picture).convert("RGB"))
            except Exception as error:  # Pillow's decoders raise whatever a broken file makes them stumble over
                return replace(self, error=f"cannot read the image {path}: {type(error).__name__}: {error}")
        return replace(self, pictures=tuple(pictures))


def read_samples(path: Path, images: Path) -> list[Sample]:
    """Read a JSONL of questions whose pictures lie in the folder `images`.

    Fields: `id`, `image` or `images`, `question`, and if known `answer` and `type`; others are not looked at.
    UsageError, naming file and line, for a line that is no such thing, an id that comes twice, or no line at all.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the questions {path}: {error}") from error
    samples: dict[str, Sample] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            sample = _sample(line, images)
            if sample.id in samples:
                raise UsageError(f"the id {sample.id!r} was on an earlier line: ids must differ")
        except UsageError as error:
            raise UsageError(f"{path}, line {number}: {error}") from error
        samples[sample.id] = sample
    if not samples:
        raise UsageError(f"{path} holds no questions: give one JSON object a line")
    return list(samples.values())


def _sample(line: str, folder: Path) -> Sample:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UsageError(f"a line holds one JSON object, this one a {type(fields).__name__}")
    identity = _field(fields, "id", str | int)
    question = _field(fields, "question", str)
    if ("image" in fields) == ("images" in fields):
        raise UsageError("give `image` (one path) or `images` (a list of paths), exactly one of them")
    names = fields["images"] if "images" in fields else [fields["image"]]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UsageError(f"pictures are given as paths, at least one a question, got {names!r}")
    answer, kind = (_field({name: None} | fields, name, str | None) for name in ("answer", "type"))
    return Sample(str(identity), question, tuple(folder / name for name in names), answer, kind)


def _field(fields: dict[str, Any], name: str, kind: Any) -> Any:
    if name not in fields:
        raise UsageError(f"there is no field {name!r}, only {', '.join(map(repr, fields)) or 'nothing'}")
    if not isinstance(fields[name], kind):
        raise UsageError(f"the field {name!r} must be {getattr(kind, '__name__', kind)}, got {fields[name]!r}")
    return fields[name]


class Questions(LightningDataModule):
    """Questions about pictures.

    Args:
        path: JSONL file with fields id, image or images, question, and if known answer and type; or a folder that
            holds it as questions.jsonl. `vtcframe:questions` is the bundled set.
        images: Folder that the image paths start from; the file's own when not given.
        batch_size: Samples that are answered together.
        num_workers: Processes that decode pictures beside the main one.
    """

    def __init__(self, path: str, images: str | None = None, batch_size: int = 8, num_workers: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.path, self.images = path, images
        self.batch_size, self.num_workers = batch_size, num_workers
        self.samples: list[Sample] = []

    def setup(self, stage: str) -> None:
        """Read the questions. UsageError for what cannot be used (see `read_samples`)."""
        path = Path(bundled(self.path))
        path = path / "questions.jsonl" if path.is_dir() else path
        self.samples = read_samples(path, path.parent if self.images is None else Path(self.images))

    def predict_dataloader(self) -> DataLoader:
        """Return batches that are lists of loaded samples."""
        return DataLoader(
            _Loaded(self.samples), batch_size=self.batch_size, num_workers=self.num_workers, collate_fn=list
        )

    def transfer_batch_to_device(self, batch: list[Sample], device: Any, dataloader_idx: int) -> list[Sample]:
        """Leave samples where they are: what the processor makes of them is moved."""
        return batch


class _Loaded(Dataset[Sample]):
    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index].loaded()
