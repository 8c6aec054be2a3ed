"""Questions about pictures and videos: a JSONL file and the pictures it names."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from vtcframe.config import UsageError, bundled
from vtcframe.transforms import Transform, Visual

ENCODED = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv"}  # more than Pillow decodes


@dataclass(frozen=True)
class Sample:
    """One question; once loaded, with its pictures and videos or the reason why there are none."""

    id: str
    question: str
    images: tuple[Path, ...]
    answer: str | None = None
    type: str | None = None
    clips: tuple[tuple[Path, ...], ...] = ()  # each video as its frames' files, or as one folder or animated picture
    pictures: tuple[Image.Image, ...] = ()
    videos: tuple[tuple[Image.Image, ...], ...] = ()  # the frames of each
    error: str | None = None

    def loaded(self, frames: int | None = None, transforms: Sequence[Transform] = ()) -> "Sample":
        """Return it decoded, with at most so many `frames` of each video, evenly spaced; all of them if not given.

        Then `transforms` change it, one after the other. What cannot be read or changed becomes its `error`, so that
        other samples go on.
        """
        try:
            pictures = tuple(_picture(path) for path in self.images)
            videos = tuple(_frames(clip, frames) for clip in self.clips)
            return replace(self, pictures=pictures, videos=videos).transformed(transforms)
        except (ValueError, OSError) as error:
            return replace(self, error=str(error))

    def transformed(self, transforms: Sequence[Transform]) -> "Sample":
        """Return it with its pictures, then its videos, changed one after the other. ValueError if one cannot be."""
        visuals: list[Visual] = [*self.pictures, *self.videos]
        for transform in transforms:
            visuals = [shown for visual in visuals for shown in transform(visual)]
        pictures = tuple(visual for visual in visuals if isinstance(visual, Image.Image))
        videos = tuple(visual for visual in visuals if not isinstance(visual, Image.Image))
        return replace(self, pictures=pictures, videos=videos)


def _picture(path: Path, what: str = "image") -> Image.Image:
    """Decode a file, upright and in RGB."""
    return _decoded(path, what, 1)[0]


def _decoded(path: Path, what: str, wanted: int | None) -> list[Image.Image]:
    """Decode `wanted` pictures of an animated file, None for all. ValueError, naming it, for what cannot be read."""
    pictures = []
    try:
        with Image.open(path) as file:
            # a still may hold further pictures too (MPO: the other eye's, a thumbnail): the first is what it shows
            for index in _spaced(getattr(file, "n_frames", 1), wanted) if what == "video" else [0]:
                file.seek(index)
                pictures.append(ImageOps.exif_transpose(file).convert("RGB"))
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them stumble over
        raise ValueError(f"cannot read the {what} {path}: {type(error).__name__}: {error}") from error
    return pictures


def _frames(clip: tuple[Path, ...], wanted: int | None) -> tuple[Image.Image, ...]:
    """Return the frames of a video. ValueError where there are none, or where their sizes differ."""
    name = ", ".join(map(str, clip[:1])) + (", ..." if len(clip) > 1 else "")
    if len(clip) == 1 and clip[0].is_dir():
        known = Image.registered_extensions()
        clip = tuple(sorted((path for path in clip[0].iterdir() if path.suffix.lower() in known), key=_natural))
    elif len(clip) == 1:
        if clip[0].suffix.lower() in ENCODED:
            raise ValueError(
                f"cannot decode the video {name}, only animated GIF and WebP: write its frames as pictures (ffmpeg -i "
                f"{clip[0].name} -vf fps=2 frames/%04d.png) and give their folder"
            )
        return tuple(_decoded(clip[0], "video", wanted))
    frames = tuple(_picture(clip[index], "frame") for index in _spaced(len(clip), wanted))
    if not frames:
        raise ValueError(f"the video {name or '[]'} has no frames: give pictures, or a folder that holds some")
    if len(sizes := {frame.size for frame in frames}) > 1:
        raise ValueError(f"the frames of the video {name} differ in size: {sorted(sizes)} (width, height)")
    return frames


def _spaced(count: int, wanted: int | None) -> list[int]:
    """Return the middles of `wanted` equal parts of 0..count-1; all where there are no more."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key by which frame 9 comes before frame 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def read_samples(path: Path, images: Path) -> list[Sample]:
    """Read a JSONL of questions whose pictures lie in the folder `images`.

    Fields: `id`, `question`, `image` or `images`, `video` (a folder of frames, an animated GIF or WebP, or a list of
    frames), and if known `answer` and `type`; others are not looked at.
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
    if ("image" in fields and "images" in fields) or not fields.keys() & {"image", "images", "video"}:
        raise UsageError("give `image` (one path) or `images` (a list of paths), exactly one of them, or a `video`")
    images = fields["images"] if "images" in fields else [fields["image"]] if "image" in fields else []
    if not (_paths(images) and (images or "video" in fields)):
        raise UsageError(f"pictures are given as paths, at least one a question, got {images!r}")
    clips = ()
    if "video" in fields:
        video = fields["video"]
        if not isinstance(video, str) and not _paths(video):
            raise UsageError(f"a video is given as a path or as a list of its frames' paths, got {video!r}")
        clips = (tuple(folder / name for name in ([video] if isinstance(video, str) else video)),)
    answer, kind = (_field({name: None} | fields, name, str | None) for name in ("answer", "type"))
    return Sample(str(identity), question, tuple(folder / name for name in images), answer, kind, clips)


def _paths(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _field(fields: dict[str, Any], name: str, kind: Any) -> Any:
    if name not in fields:
        raise UsageError(f"there is no field {name!r}, only {', '.join(map(repr, fields)) or 'nothing'}")
    if not isinstance(fields[name], kind):
        raise UsageError(f"the field {name!r} must be {getattr(kind, '__name__', kind)}, got {fields[name]!r}")
    return fields[name]


class Questions(LightningDataModule):
    """Questions about pictures and videos.

    Args:
        path: JSONL file with fields id, question, image or images, video, and if known answer and type; or a folder
            that holds it as questions.jsonl. `vtcframe:questions` is the bundled set.
        images: Folder that the paths of images and videos start from; the file's own when not given.
        batch_size: Samples that are answered together.
        num_workers: Processes that decode pictures beside the main one.
        frames: How many frames of a video are shown, evenly spaced; all of them when not given.
        transforms: What changes pictures and videos before the model's processor, for example
            [{name: Downsample, tokens: 256}].
    """

    def __init__(
        self,
        path: str,
        images: str | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        frames: int | None = None,
        transforms: list[Transform] | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if frames is not None and frames < 1:
            raise ValueError(f"frames must be at least 1, got {frames}: leave it out to show all")
        self.path, self.images, self.frames = path, images, frames
        self.batch_size, self.num_workers, self.transforms = batch_size, num_workers, transforms or []
        self.samples: list[Sample] = []

    def setup(self, stage: str) -> None:
        """Read the questions. UsageError for what cannot be used (see `read_samples`)."""
        path = Path(bundled(self.path))
        path = path / "questions.jsonl" if path.is_dir() else path
        self.samples = read_samples(path, path.parent if self.images is None else Path(self.images))

    def predict_dataloader(self) -> DataLoader:
        """Return batches that are lists of loaded samples; transforms get to know the processor of the trainer's model.

        One that does not get on with a sample makes that sample's error.
        """
        processor = getattr(getattr(self.trainer, "lightning_module", None), "processor", None)
        transforms = self.transforms if processor is None else [one.fitted(processor) for one in self.transforms]
        return DataLoader(
            _Loaded(self.samples, self.frames, transforms),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=list,
        )

    def transfer_batch_to_device(self, batch: list[Sample], device: Any, dataloader_idx: int) -> list[Sample]:
        """Leave samples where they are: what the processor makes of them is moved."""
        return batch


class _Loaded(Dataset[Sample]):
    def __init__(self, samples: list[Sample], frames: int | None, transforms: Sequence[Transform]) -> None:
        self.samples, self.frames, self.transforms = samples, frames, transforms

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index].loaded(self.frames, self.transforms)
