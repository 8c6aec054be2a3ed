"""Picture transforms: what changes pictures and frames before the processor sees them, on the side of the data."""

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


NARROWEST = 8  # pixels: of an edge of three and fewer, processors guess that it is the channels


class Transform(ABC):
    """Changes what a question shows. Components are frozen dataclasses, as the verbs are."""

    def fitted(self, processor: Any) -> "Transform":
        """Return what knows the processor of the model that will be shown the result; itself, if it need not."""
        return self

    @abstractmethod
    def __call__(self, visual: Visual) -> tuple[Visual, ...]:
        """Return what is shown in place of a picture or video, in that order. ValueError if that cannot be done."""


@dataclass(frozen=True)
class Downsample(Transform):
    """Shrinks a picture or video, its aspect kept, to the largest size of which the model makes at most the budget.

    `tokens` of each picture, or `ratio` of those that the processor would make of it as it is: a baseline for models of
    flexible resolution, which spends less on the vision tower too. How many tokens a size makes is asked of the
    processor itself (its placeholders are counted, newlines among them), so call `fitted` first; `data.transforms` do.
    Sizes are tried by bisection and remembered; where tokens do not grow with the size (crops of LLaVA-NeXT) the
    result may be smaller than it needed to be. ValueError where no size will do: a model of fixed resolution makes as
    many of any picture.
    """

    tokens: int | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        Budget(self.tokens, self.ratio)  # its errors are ours

    def fitted(self, processor: Any) -> "Transform":
        return _Downsampling(self, processor)

    def __call__(self, visual: Visual) -> tuple[Visual, ...]:
        raise ValueError(f"{self} does not know the model: call fitted(processor) first, with the model's own")


@dataclass(frozen=True)
class _Downsampling(Transform):
    wanted: Downsample
    processor: Any

    def __call__(self, visual: Visual) -> tuple[Visual, ...]:
        frames = (visual,) if isinstance(visual, Image.Image) else visual
        count = 0 if isinstance(visual, Image.Image) else len(frames)
        size = _fitting(self.processor, self.wanted, frames[0].size, count)
        if size == frames[0].size:
            return (visual,)
        resized = tuple(frame.resize(size, Image.Resampling.LANCZOS) for frame in frames)
        return resized if count == 0 else (resized,)


@lru_cache(maxsize=4096)
def _fitting(processor: Any, wanted: Downsample, size: tuple[int, int], frames: int) -> tuple[int, int]:
    """(width, height) -> the one to show; `frames` is 0 for a picture."""
    long = max(size)

    def scaled(edge: int) -> tuple[int, int]:
        width, height = (max(1, round(side * edge / long)) for side in size)
        return width, height

    def made(edge: int) -> int:
        return placeholders(processor, scaled(edge), frames)

    untouched = made(long)
    budget = wanted.tokens or max(1, round(untouched * (wanted.ratio or 1)))
    if untouched <= budget:
        return size
    low, high = min(long, ceil(NARROWEST * long / min(size))), long
    if (least := made(low)) > budget:
        raise ValueError(
            f"{type(processor).__name__} makes {least} tokens of a picture of {size[0]} x {size[1]} pixels however it "
            f"is shrunk, and {budget} are wanted: give more, or prune behind the tower (Pool keeps an even share)"
        )
    while high - low > 1:  # made(low) <= budget < made(high)
        middle = (low + high) // 2
        low, high = (middle, high) if made(middle) <= budget else (low, middle)
    return scaled(low)


def placeholders(processor: Any, size: tuple[int, int], frames: int = 0) -> int:
    """How many visual tokens a processor asks for, of a picture of (width, height) or of a video of so many frames."""
    from vtcframe.data.processor import processor_inputs  # lazily: it reads samples, whose module reads this one
    from vtcframe.data.sample import Sample

    blank = Image.new("RGB", size)
    shown = {"videos": ((blank,) * frames,)} if frames else {"pictures": (blank,)}
    ids = processor_inputs(processor, [replace(Sample("", "", ()), **shown)])["input_ids"]
    names = [f"{kind}_token_id{s}" for kind in ("image", "video") for s in ("", "s")]
    found = [getattr(processor, name, None) for name in names]
    known = {one for some in found for one in (some if isinstance(some, list) else [some]) if one is not None}
    # some processors list tags around the pictures and breaks between rows too: the placeholder is what comes most
    return max(int((ids == one).sum()) for one in known)


@dataclass(frozen=True)
class Thumbnail(Transform):
    """A video becomes one picture, a grid of evenly spaced frames; pictures stay as they are.

    TS-LLaVA (arXiv 2411.11066): of F frames those at round(linspace(0, F - 1, frames)), or all if there are no more,
    each resized to (edge // rows, edge // columns) pixels whatever its aspect, laid out row by row. Rows and columns
    are the factors that differ least, rows the more. Resizing averages areas where an edge shrinks, else it is
    bilinear. The authors resize frames to the model's resolution first, on normalised pixels; here they are resized
    once. Where `edge` is not divisible the grid is a little smaller, as theirs, and the processor enlarges it.

    `beside` keeps the video too: the thumbnail comes "first" (their Y variants) or "last" (V, their default). A prompt
    has its videos behind its pictures, so "last" needs frames that are pictures: FramesAsPictures.
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
        few = [visual[at] for at in spaced(len(visual), min(self.frames, len(visual)))]
        pixels = torch.stack([torch.from_numpy(np.array(frame.convert("RGB"))) for frame in few])
        drawn = tiled(pixels.permute(0, 3, 1, 2).float(), self.edge).permute(1, 2, 0)
        grid = Image.fromarray(drawn.round().clamp(0, 255).to(torch.uint8).numpy())
        return {None: (grid,), "first": (grid, visual), "last": (visual, grid)}[self.beside]


@dataclass(frozen=True)
class FramesAsPictures(Transform):
    """The frames of a video become pictures of their own, for models that take no videos."""

    def __call__(self, visual: Visual) -> tuple[Visual, ...]:
        return (visual,) if isinstance(visual, Image.Image) else visual


def spaced(count: int, wanted: int) -> list[int]:
    """Return round(linspace(0, count - 1, wanted)) in float32, half to even, the same on every processor.

    The authors round torch.linspace in float32, whose last bit depends on the processor's vector instructions. These
    count the second half from the end and round each product and sum once; so does this.
    """
    index = torch.arange(wanted)
    step = torch.tensor((count - 1) / max(wanted - 1, 1), dtype=torch.float32).double()
    from_start, from_end = step * index, (count - 1) - step * (wanted - 1 - index)
    return torch.where(index < max(wanted // 2, 1), from_start, from_end).float().round().long().tolist()


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


def check_visuals(transform: Any, made: Any) -> Sequence[Any]:
    """Return the pictures, or videos as tuples of frames, that a transform made of one."""
    kinds = Image.Image | tuple
    if not (isinstance(made, tuple | list) and all(isinstance(visual, kinds) for visual in made)):
        raise component_error(transform, f"returned {describe_type(made)}, and not a tuple of pictures")
    return made
