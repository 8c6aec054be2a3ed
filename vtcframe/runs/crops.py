"""The part of each picture that the processor shows to the model: the boxes of view records lie in it."""

from typing import Any

from PIL import Image

from vtcframe.data.processor import visible_region
from vtcframe.data.sample import Sample
from vtcframe.drawing import Picture


def crop_pictures(processor: Any, sample: Sample) -> list[Picture]:
    """Return a sample's pictures as the processor crops them, then the frames of its videos, one for each view."""
    single = len(sample.pictures) == 1
    pictures: list[Picture] = [_crop(processor, picture, single=single) for picture in sample.pictures]
    step = frames_per_view(processor)
    return pictures + [[_crop(processor, frame, video=True) for frame in frames[::step]] for frames in sample.videos]


def frames_per_view(processor: Any) -> int:
    """Return how many frames of a video become one view: two in the vision towers of Qwen-VL, one in others."""
    return getattr(getattr(processor, "video_processor", None), "temporal_patch_size", 1)


def _crop(processor: Any, picture: Image.Image, *, video: bool = False, single: bool = True) -> Image.Image:
    top, left, bottom, right = visible_region(processor, (picture.height, picture.width), video, single)
    x, y = round(left * picture.width), round(top * picture.height)
    width, height = round((right - left) * picture.width), round((bottom - top) * picture.height)
    return picture.crop((x, y, x + max(width, 1), y + max(height, 1)))
