"""Questions about pictures and videos, and the inputs that a processor makes of them."""

import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

Visual = Image.Image | Sequence[Image.Image]  # a picture, or the frames of a video
Sample = tuple[str, Sequence[Visual]]  # a text with one "<image>" or "<video>" for each visual, in their order

# The text that chat templates write around a placeholder, if the processor does not.
_AROUND = {
    "<|image_pad|>": "<|vision_start|><|image_pad|><|vision_end|>",
    "<|video_pad|>": "<|vision_start|><|video_pad|><|vision_end|>",
    "<|image|>": "<|begin_of_image|><|image|><|end_of_image|>",
    "<|video|>": "<|begin_of_video|><|video|><|end_of_video|>",
}


def make_inputs(processor: Any, samples: Sequence[Sample], side: Literal["left", "right"] = "left") -> dict[str, Any]:
    """Return the inputs of a processor for `samples`, padded on `side`; every frame of a video is used.

    ValueError if a text and its visuals do not match, or if the family takes no videos.
    """
    for text, visuals in samples:
        markers = ["<image>" if isinstance(visual, Image.Image) else "<video>" for visual in visuals]
        if re.findall("<image>|<video>", text) != markers:
            raise ValueError(f"{text!r} comes with {markers}: give one visual for each marker, in their order")
    image, video = str(processor.image_token), getattr(processor, "video_token", None)
    images = [[visual for visual in visuals if isinstance(visual, Image.Image)] for _, visuals in samples]
    videos = [
        _stack_frames(visual) for _, visuals in samples for visual in visuals if not isinstance(visual, Image.Image)
    ]
    if videos and video is None:
        raise ValueError(f"{type(processor).__name__} takes no videos: give their frames as pictures")
    placeholders = {"<image>": _AROUND.get(image, image), "<video>": _AROUND.get(str(video), str(video))}
    texts = [re.sub("<image>|<video>", lambda marker: placeholders[marker[0]], text) for text, _ in samples]
    options: dict[str, Any] = {}
    if videos:
        options = {
            "videos": videos,
            "do_sample_frames": False,
            "video_metadata": [
                {"fps": 2.0, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}
                for frames in videos
            ],
        }
    with warnings.catch_warnings():
        # GLM-4.1V's processor makes numpy arrays of tensors, which numpy 2 deprecates.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        inputs = processor(
            text=texts,
            images=images if any(images) else None,
            padding=True,
            padding_side=side,
            return_tensors="pt",
            **options,
        )
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def draw(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return a picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def film(frames: int, height: int, width: int, seed: int = 0) -> list[Image.Image]:
    """Return a video of random pixels, each frame different."""
    return [draw(height, width, 100 * seed + frame) for frame in range(frames)]


def _stack_frames(video: Sequence[Image.Image]) -> np.ndarray:
    """Return the frames as an array [frames, height, width, 3] uint8."""
    return np.stack([np.asarray(frame.convert("RGB")) for frame in video])


SAMPLES: dict[str, list[Sample]] = {
    "one": [("USER : <image> what is in the image ? ASSISTANT :", [draw(70, 150, 1)])],
    "several": [("USER : <image> and <image> which of the two ? ASSISTANT :", [draw(60, 60, 2), draw(160, 80, 3)])],
    "ragged one": [
        ("USER : <image> what is in the image ? ASSISTANT :", [draw(70, 150, 1)]),
        ("USER : where are they ? ASSISTANT :", []),
        ("USER : <image> what ? ASSISTANT :", [draw(60, 64, 4)]),
    ],
    "ragged several": [
        ("USER : <image> and <image> which of the two ? ASSISTANT :", [draw(60, 60, 2), draw(160, 80, 3)]),
        ("USER : <image> what ? ASSISTANT :", [draw(60, 64, 4)]),
        ("USER : where are they ? ASSISTANT :", []),
    ],
    "video": [("USER : <video> what is in the video ? ASSISTANT :", [film(4, 60, 90, 5)])],
    "videos": [
        ("USER : <video> what is in the video ? ASSISTANT :", [film(4, 60, 90, 5)]),
        ("USER : where are they ? ASSISTANT :", []),
        ("USER : <video> what ? ASSISTANT :", [film(4, 70, 64, 6)]),
    ],
    "ragged video": [
        ("USER : <video> what is in the video ? ASSISTANT :", [film(2, 60, 90, 5)]),
        ("USER : where are they ? ASSISTANT :", []),
        ("USER : <video> what ? ASSISTANT :", [film(6, 64, 60, 6)]),
    ],
    "image and video": [
        ("USER : <video> and <image> which of the two ? ASSISTANT :", [film(4, 60, 60, 7), draw(60, 64, 4)]),
        ("USER : <image> what ? ASSISTANT :", [draw(70, 150, 1)]),
    ],
}
