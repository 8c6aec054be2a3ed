"""Inputs of a model from samples, and the part of a picture that the model sees."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from vtcframe.data.sample import Sample

FPS = 2.0  # of videos, which are given as frames: the rate at which Qwen's processors sample one


Region = tuple[float, float, float, float]


def processor_inputs(processor: Any, samples: Sequence[Sample]) -> Any:
    """Return what the processor makes of loaded samples: each question behind its pictures, these before its video.

    ValueError for a video where the processor takes none.
    """
    prompts = [
        render_prompt(processor, sample.question, len(sample.pictures), len(sample.videos)) for sample in samples
    ]
    videos = [frames for sample in samples for frames in sample.videos]
    return batch_inputs(
        processor, prompts, [sample.pictures for sample in samples], videos, [_metadata(len(v)) for v in videos]
    )


def batch_inputs(
    processor: Any,
    prompts: Sequence[str],
    pictures: Sequence[Sequence[Image.Image]],
    videos: Sequence[Sequence[Image.Image]],
    metadata: Sequence[Mapping[str, Any]],
) -> Any:
    """Return the output of the processor for prompts, the pictures of each, and all videos in the order of prompts.

    The processor samples no frames. ValueError for videos if it takes none.
    """
    if videos and getattr(processor, "video_processor", None) is None:
        raise ValueError(f"{type(processor).__name__} takes no videos: give the frames as `images`")
    visuals: dict[str, Any] = {}
    if any(pictures):
        visuals["images"] = [list(images) for images in pictures]
    if videos:
        visuals |= {"videos": [list(v) for v in videos], "do_sample_frames": False, "video_metadata": list(metadata)}
    start = processor.tokenizer.bos_token
    return processor(
        text=list(prompts),
        add_special_tokens=start is None or not prompts[0].startswith(start),  # some templates write the start token
        padding=True,
        padding_side="left",  # generated tokens follow the last tokens of the prompts
        return_tensors="pt",
        **visuals,
    )


def _metadata(frames: int) -> dict[str, Any]:
    return {"fps": FPS, "total_num_frames": frames, "frames_indices": list(range(frames))}


def render_prompt(processor: Any, question: str, pictures: int, videos: int = 0) -> str:
    """Return a question in the chat template of the processor, or after its placeholders if it has no template."""
    if getattr(processor, "chat_template", None) is None:
        visuals = [processor.image_token] * pictures + ([processor.video_token] * videos if videos else [])
        return " ".join([*visuals, question])
    content = [{"type": "image"}] * pictures + [{"type": "video"}] * videos + [{"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def visible_region(processor: Any, size: tuple[int, int], video: bool = False, alone: bool = True) -> Region:
    """Return the part of a picture of `size` (height, width), or of the frames of a video, that the model sees.

    It is a rectangle (top, left, bottom, right), relative to the picture: 0..1 inside it, beyond that where the
    processor pads. Boxes of views are relative to this rectangle. If the picture is resized or cut into tiles, it is
    the whole picture; the padding of tiles is not a part of it. `alone` is False for one of several pictures of a
    sample: LLaVA-OneVision cuts a single picture into tiles, and pads several to squares.
    """
    part = processor.video_processor if video else processor.image_processor
    height, width = size
    top = left = 0
    tiled = bool(getattr(part, "image_grid_pinpoints", None))
    if hasattr(part, "pad_to_square") and (not alone if tiled else getattr(part, "do_pad", False)):
        side = max(size)
        top, left = -((side - height) // 2), -((side - width) // 2)
        height = width = side
    crop = getattr(part, "crop_size", None)
    if getattr(part, "do_center_crop", False) and crop and not tiled:
        down, across = _resized_size(part, height, width)
        top, left = (
            top + _offset(down, crop["height"]) * height / down,
            left + _offset(across, crop["width"]) * width / across,
        )
        height, width = crop["height"] * height / down, crop["width"] * width / across
    return top / size[0], left / size[1], (top + height) / size[0], (left + width) / size[1]


def _resized_size(processor: Any, height: int, width: int) -> tuple[int, int]:
    """Return height and width before the crop, by an image or video processor."""
    size = dict(processor.size) if getattr(processor, "do_resize", False) else {"height": height, "width": width}
    if "height" in size:
        return size["height"], size["width"]
    short, long = size["shortest_edge"], int(size["shortest_edge"] * max(height, width) / min(height, width))
    return (short, long) if height <= width else (long, short)


def _offset(edge: int, crop: int) -> int:
    """Return the start of a centre crop along an edge; it is negative if the crop pads."""
    return (edge - crop) // 2 if edge >= crop else -((crop - edge) // 2)
