"""Decoding of the pictures and videos of a sample."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps

from vtcframe.core.contracts import call_component
from vtcframe.data.files import natural_key
from vtcframe.data.sample import Embedded, Sample
from vtcframe.data.transforms import Transform, Visual, check_visuals

ENCODED = {
    ".mp4",
    ".m4v",
    ".mov",
    ".avi",
    ".mkv",
    ".webm",
    ".mpg",
    ".mpeg",
    ".wmv",
    ".flv",
}  # Pillow decodes none of them


def load_sample(sample: Sample, frames: int | None = None, transforms: Sequence[Transform] = ()) -> Sample:
    """Return a sample decoded, with at most `frames` frames of each video, evenly spaced (None: all of them).

    Then `transforms` are applied in their order. If a picture cannot be read or transformed, the sample has an `error`,
    and other samples are still answered.
    """
    try:
        pictures = tuple(picture for source in sample.images for picture in _decode_pictures(source))
        videos = tuple(_decode_frames(clip, frames) for clip in sample.clips)
        return apply_transforms(replace(sample, pictures=pictures, videos=videos), transforms)
    except (ValueError, OSError) as error:
        return replace(sample, error=str(error))


def apply_transforms(sample: Sample, transforms: Sequence[Transform]) -> Sample:
    """Apply transforms to each picture, then to each video, in their order. ValueError if one refuses."""
    visuals: list[Visual] = [*sample.pictures, *sample.videos]
    for step in transforms:
        results = [check_visuals(step, call_component(step, step, visual)) for visual in visuals]
        visuals = [visual for result in results for visual in result]
    pictures = tuple(visual for visual in visuals if isinstance(visual, Image.Image))
    videos = tuple(visual for visual in visuals if not isinstance(visual, Image.Image))
    return replace(sample, pictures=pictures, videos=videos)


def _decode_pictures(source: Path | Embedded) -> list[Image.Image]:
    if isinstance(source, Path):
        return [_decode_picture(source)]
    try:
        files = source.files()
    except Exception as error:  # decoding of embedded pictures raises errors of any type
        raise ValueError(f"cannot read the image {source}: {type(error).__name__}: {error}") from error
    if not files:
        raise ValueError(f"there is no image in {source}")
    return [_decode(file, "image", 1, str(source))[0] for file in files]


def _decode_picture(path: Path, what: str = "image") -> Image.Image:
    """Decode a file, in the orientation of its EXIF data and in RGB."""
    return _decode(path, what, 1, str(path))[0]


def _decode(source: Path | BinaryIO, what: str, count: int | None, name: str) -> list[Image.Image]:
    """Decode `count` pictures of an animated file, None for all. ValueError with `name` if it cannot be read."""
    pictures = []
    try:
        with Image.open(source) as file:
            # a file of a single picture may hold others, such as thumbnails: the first is the picture
            for index in part_middles(getattr(file, "n_frames", 1), count) if what == "video" else [0]:
                file.seek(index)
                pictures.append(ImageOps.exif_transpose(file).convert("RGB"))
    except Exception as error:  # Pillow's decoders raise errors of any type for a broken file
        raise ValueError(f"cannot read the {what} {name}: {type(error).__name__}: {error}") from error
    return pictures


def _decode_frames(clip: tuple[Path, ...], count: int | None) -> tuple[Image.Image, ...]:
    """Return the frames of a video. ValueError if there are none, or if their sizes differ."""
    name = ", ".join(map(str, clip[:1])) + (", ..." if len(clip) > 1 else "")
    if len(clip) == 1 and clip[0].is_dir():
        endings = Image.registered_extensions()
        clip = tuple(sorted((path for path in clip[0].iterdir() if path.suffix.lower() in endings), key=natural_key))
    elif len(clip) == 1:
        if clip[0].suffix.lower() in ENCODED:
            raise ValueError(
                f"cannot decode the video {name}, only animated GIF and WebP: write its frames as pictures (ffmpeg -i "
                f"{clip[0].name} -vf fps=2 frames/%04d.png) and give their folder"
            )
        return tuple(_decode(clip[0], "video", count, name))
    frames = tuple(_decode_picture(clip[index], "frame") for index in part_middles(len(clip), count))
    if not frames:
        raise ValueError(f"the video {name or '[]'} has no frames: give pictures, or a folder that holds some")
    if len(sizes := {frame.size for frame in frames}) > 1:
        raise ValueError(f"the frames of the video {name} differ in size: {sorted(sizes)} (width, height)")
    return frames


def part_middles(count: int, parts: int | None) -> list[int]:
    """Return the middle of each of `parts` equal parts of 0..count-1; all numbers if there are no more than parts."""
    if parts is None or parts >= count:
        return list(range(count))
    return [(2 * i + 1) * count // (2 * parts) for i in range(parts)]
