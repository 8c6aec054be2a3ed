"""Transforms: changes to pictures and videos before the processor."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from vtcframe.core.budget import Budget
from vtcframe.core.contracts import component_error, describe_type

Visual = Image.Image | tuple[Image.Image, ...]  # a picture, or the frames of a video


NARROWEST = 8  # pixels: processors take an edge of up to three for the channels


class Transform(ABC):
    """Changes pictures and videos of a question. Transforms are frozen dataclasses, as all components."""

    def fitted(self, processor: Any) -> "Transform":
        """Return the transform for the processor of a model; by default itself."""
        return self

    @abstractmethod
    def __call__(self, visual: Visual) -> tuple[Visual, ...]:
        """Return the pictures and videos, in order, that replace a picture or video. ValueError if it cannot."""


@dataclass(frozen=True)
class Downsample(Transform):
    """Shrinks a picture or video, its aspect kept, to the largest size of which the model makes at most the budget.

    The budget is `tokens` per picture, or `ratio` of the tokens of the original size. It is a baseline for models of
    flexible resolution that also saves time in the vision tower. The tokens of a size are counted in the output of the
    processor (its placeholders, newlines among them), so call `fitted` first; `data.transforms` does. Sizes are found
    by bisection and cached. If tokens do not grow with the size (crops of LLaVA-NeXT), the result may be smaller than
    necessary. ValueError if no size meets the budget, as for models of fixed resolution.
    """

    tokens: int | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        Budget(self.tokens, self.ratio)  # raises its errors

    def fitted(self, processor: Any) -> "Transform":
        return _Downsampling(self, processor)

    def __call__(self, visual: Visual) -> tuple[Visual, ...]:
        raise ValueError(
            f"{self} does not know the model: call fitted(processor) first, with the processor of the model"
        )


@dataclass(frozen=True)
class _Downsampling(Transform):
    options: Downsample
    processor: Any

    def __call__(self, visual: Visual) -> tuple[Visual, ...]:
        frames = (visual,) if isinstance(visual, Image.Image) else visual
        count = 0 if isinstance(visual, Image.Image) else len(frames)
        size = _largest_size(self.processor, self.options, frames[0].size, count)
        if size == frames[0].size:
            return (visual,)
        resized = tuple(frame.resize(size, Image.Resampling.LANCZOS) for frame in frames)
        return resized if count == 0 else (resized,)


@lru_cache(maxsize=4096)
def _largest_size(processor: Any, options: Downsample, size: tuple[int, int], frames: int) -> tuple[int, int]:
    """Return the largest (width, height) within the budget for a picture of `size`; `frames` is 0 for a picture."""
    long = max(size)

    def scale_to(edge: int) -> tuple[int, int]:
        width, height = (max(1, round(side * edge / long)) for side in size)
        return width, height

    def count_tokens(edge: int) -> int:
        return count_placeholders(processor, scale_to(edge), frames)

    untouched = count_tokens(long)
    budget = options.tokens or max(1, round(untouched * (options.ratio or 1)))
    if untouched <= budget:
        return size
    low, high = min(long, ceil(NARROWEST * long / min(size))), long
    if (least := count_tokens(low)) > budget:
        raise ValueError(
            f"{type(processor).__name__} makes {least} tokens of a picture of {size[0]} x {size[1]} pixels at any "
            f"smaller size, more than the budget of {budget}: give more, or prune after the tower with Pool"
        )
    while high - low > 1:  # count_tokens(low) <= budget < count_tokens(high)
        middle = (low + high) // 2
        low, high = (middle, high) if count_tokens(middle) <= budget else (low, middle)
    return scale_to(low)


def count_placeholders(processor: Any, size: tuple[int, int], frames: int = 0) -> int:
    """Return the number of visual tokens of a picture of (width, height), or of a video of so many frames."""
    from vtcframe.data.processor import processor_inputs  # lazily: that module imports this one
    from vtcframe.data.sample import Sample

    blank = Image.new("RGB", size)
    visuals: dict[str, Any] = {"videos": ((blank,) * frames,)} if frames else {"pictures": (blank,)}
    ids = processor_inputs(processor, [replace(Sample("", "", ()), **visuals)])["input_ids"]
    names = [f"{kind}_token_id{s}" for kind in ("image", "video") for s in ("", "s")]
    values = [getattr(processor, name, None) for name in names]
    tokens = {token for value in values for token in (value if isinstance(value, list) else [value])} - {None}
    # some processors also list tags around pictures and breaks between rows: the placeholder is the most frequent token
    return max(int((ids == token).sum()) for token in tokens)


@dataclass(frozen=True)
class Thumbnail(Transform):
    """Replaces a video with one picture, a grid of evenly spaced frames; pictures are not changed.

    TS-LLaVA (arXiv 2411.11066): of F frames those at round(linspace(0, F - 1, frames)), or all if there are no more,
    each resized to (edge // rows, edge // columns) pixels whatever its aspect, laid out row by row. Rows and columns
    are the factors that differ least, rows the more. Resizing averages areas where an edge shrinks, else it is
    bilinear. The authors resize frames to the model's resolution first, on normalised pixels; here they are resized
    once. Where `edge` is not divisible the grid is a little smaller, as theirs, and the processor enlarges it.

    `beside` keeps the video too, after the thumbnail if it is "first" (the authors' Y variants), before it if it is
    "last" (V, their default). In a prompt, videos follow pictures, so "last" needs FramesAsPictures.
    """

    frames: int = 6
    edge: int = 336
    beside: Literal["first", "last"] | None = None

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"frames must be at least 1, got {self.frames}")
        if self.edge < self.frames:
            raise ValueError(f"edge must be at least {self.frames} pixels, one for each frame, got {self.edge}")
        if self.beside not in (None, "first", "last"):
            raise ValueError(f"beside must be 'first', 'last' or left out, got {self.beside!r}")

    def __call__(self, visual: Visual) -> tuple[Visual, ...]:
        if isinstance(visual, Image.Image):
            return (visual,)
        few = [visual[at] for at in even_positions(len(visual), min(self.frames, len(visual)))]
        pixels = torch.stack([torch.from_numpy(np.array(frame.convert("RGB"))) for frame in few])
        drawn = tiled(pixels.permute(0, 3, 1, 2).float(), self.edge).permute(1, 2, 0)
        grid = Image.fromarray(drawn.round().clamp(0, 255).to(torch.uint8).numpy())
        return {None: (grid,), "first": (grid, visual), "last": (visual, grid)}[self.beside]


@dataclass(frozen=True)
class FramesAsPictures(Transform):
    """Replaces a video with its frames as pictures, for models that take no videos."""

    def __call__(self, visual: Visual) -> tuple[Visual, ...]:
        return (visual,) if isinstance(visual, Image.Image) else visual


def even_positions(count: int, number: int) -> list[int]:
    """Return round(linspace(0, count - 1, number)) in float32, half to even, the same on every processor.

    The authors round torch.linspace in float32, whose last bit depends on the processor's vector instructions. These
    count the second half from the end and round each product and sum once; so does this.
    """
    index = torch.arange(number)
    step = torch.tensor((count - 1) / max(number - 1, 1), dtype=torch.float32).double()
    from_start, from_end = step * index, (count - 1) - step * (number - 1 - index)
    return torch.where(index < max(number // 2, 1), from_start, from_end).float().round().long().tolist()


def tiled(frames: Tensor, edge: int) -> Tensor:
    """[F, C, h, w] float -> [C, rows (edge // rows), columns (edge // columns)], row by row; see Thumbnail."""
    count = len(frames)
    columns = next(c for c in range(int(count**0.5), 0, -1) if count % c == 0)
    rows = count // columns
    size = edge // rows, edge // columns
    shrinks = size[0] < frames.shape[2] or size[1] < frames.shape[3]
    small = interpolate(frames, size, mode="area" if shrinks else "bilinear")
    lines = [torch.cat(list(small[i : i + columns]), 2) for i in range(0, count, columns)]
    return torch.cat(lines, 1)


def check_visuals(transform: Any, visuals: Any) -> Sequence[Any]:
    """Return the output of a transform: pictures, and videos as tuples of frames. ComponentError for other values."""
    kinds = Image.Image | tuple
    if not (isinstance(visuals, tuple | list) and all(isinstance(visual, kinds) for visual in visuals)):
        raise component_error(transform, f"returned {describe_type(visuals)}, and not a tuple of pictures")
    return visuals
