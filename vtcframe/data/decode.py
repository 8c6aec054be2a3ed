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

ENCODED = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv"}  # more than Pillow decodes


def load_sample(sample: Sample, frames: int | None = None, transforms: Sequence[Transform] = ()) -> Sample:
    """Return a sample decoded, with at most `frames` frames of each video, evenly spaced (None: all of them).

    Then `transforms` change it, in their order. What cannot be read or transformed becomes its `error`, so that other
    samples are still answered.
    """
    try:
        pictures = tuple(picture for source in sample.images for picture in _pictures(source))
        videos = tuple(_frames(clip, frames) for clip in sample.clips)
        return apply_transforms(replace(sample, pictures=pictures, videos=videos), transforms)
    except (ValueError, OSError) as error:
        return replace(sample, error=str(error))


def apply_transforms(sample: Sample, transforms: Sequence[Transform]) -> Sample:
    """Apply transforms to each picture, then to each video, in their order. ValueError if one refuses."""
    visuals: list[Visual] = [*sample.pictures, *sample.videos]
    for step in transforms:
        made = [check_visuals(step, call_component(step, step, visual)) for visual in visuals]
        visuals = [visual for group in made for visual in group]
    pictures = tuple(visual for visual in visuals if isinstance(visual, Image.Image))
    videos = tuple(visual for visual in visuals if not isinstance(visual, Image.Image))
    return replace(sample, pictures=pictures, videos=videos)


def _pictures(source: Path | Embedded) -> list[Image.Image]:
    if isinstance(source, Path):
        return [_picture(source)]
    try:
        files = source.files()
    except Exception as error:  # what is embedded may be anything
        raise ValueError(f"cannot read the image {source}: {type(error).__name__}: {error}") from error
    if not files:
        raise ValueError(f"there is no image in {source}")
    return [_decoded(file, "image", 1, str(source))[0] for file in files]


def _picture(path: Path, what: str = "image") -> Image.Image:
    """Decode a file, upright and in RGB."""
    return _decoded(path, what, 1, str(path))[0]


def _decoded(source: Path | BinaryIO, what: str, wanted: int | None, name: str) -> list[Image.Image]:
    """Decode `wanted` pictures of an animated file, None for all. ValueError with `name` for what cannot be read."""
    pictures = []
    try:
        with Image.open(source) as file:
            # a still may hold further pictures too (MPO: the other eye's, a thumbnail): the first is what it shows
            for index in spaced(getattr(file, "n_frames", 1), wanted) if what == "video" else [0]:
                file.seek(index)
                pictures.append(ImageOps.exif_transpose(file).convert("RGB"))
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them stumble over
        raise ValueError(f"cannot read the {what} {name}: {type(error).__name__}: {error}") from error
    return pictures


def _frames(clip: tuple[Path, ...], wanted: int | None) -> tuple[Image.Image, ...]:
    """Return the frames of a video. ValueError where there are none, or where their sizes differ."""
    name = ", ".join(map(str, clip[:1])) + (", ..." if len(clip) > 1 else "")
    if len(clip) == 1 and clip[0].is_dir():
        known = Image.registered_extensions()
        clip = tuple(sorted((path for path in clip[0].iterdir() if path.suffix.lower() in known), key=natural_key))
    elif len(clip) == 1:
        if clip[0].suffix.lower() in ENCODED:
            raise ValueError(
                f"cannot decode the video {name}, only animated GIF and WebP: write its frames as pictures (ffmpeg -i "
                f"{clip[0].name} -vf fps=2 frames/%04d.png) and give their folder"
            )
        return tuple(_decoded(clip[0], "video", wanted, name))
    frames = tuple(_picture(clip[index], "frame") for index in spaced(len(clip), wanted))
    if not frames:
        raise ValueError(f"the video {name or '[]'} has no frames: give pictures, or a folder that holds some")
    if len(sizes := {frame.size for frame in frames}) > 1:
        raise ValueError(f"the frames of the video {name} differ in size: {sorted(sizes)} (width, height)")
    return frames


def spaced(count: int, wanted: int | None) -> list[int]:
    """Return the middles of `wanted` equal parts of 0..count-1; all where there are no more."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]
