"""The law of alignment: the layout puts a token at the place of the picture that changes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vtcframe.adapters.base import adapter_for
from vtcframe.core.evidence import Evidence
from vtcframe.core.layout import Layout
from vtcframe.data.processor import visible_region
from vtcframe.testing.laws.adapters import inputs_for

BRIGHT, FAINT = (255, 230, 200), 0.1


def check_aligned(
    model: Any, processor: Any, size: tuple[int, int], frames: int = 0, reach: int = 0, picks: int = 3
) -> None:
    """Check that the layout matches the pixels, by lighting single tokens of a dark picture. AssertionError if not.

    The picture has `size` (height, width); with `frames` > 0 it is a frame of a dark video of so many frames. It goes
    through the real processor and packing while attention returns zeros, so that the feature of a token depends only
    on its pixels. A bright patch at the place of a token in the layout must change the feature of that token more than
    any other of its view, and tokens that do not cover it (within `reach` tokens) by less than a tenth of that; other
    frames must not change. `picks` tokens of each view are lit, corners included. `reach` > 0 is for packings that
    resample.
    """
    height, width = size
    box = visible_region(processor, size, video=bool(frames))
    with silent_attention():
        plain = _observe(model, processor, [_gradient(height, width)] * max(frames, 1), frames)
        layout = plain.layout
        frame = layout.frame if layout.frame.any() else layout.image  # some adapters lay out frames as images
        slices = int(frame.max()) + 1
        for v in range(len(frame)):
            tokens = layout.valid[v].nonzero()[:, 0]
            chosen = tokens[torch.linspace(0, len(tokens) - 1, picks).round().long()].unique()
            for n in chosen.tolist():
                centre, half = layout.centre[v, n], 0.2 * cell(layout, v)
                low, high = (_pixels(centre + sign * half, box, size) for sign in (-1, 1))
                canvas = [_gradient(height, width) for _ in range(max(frames, 1))]
                each = max(frames, 1) // slices  # number of frames in a view
                for picture in canvas[int(frame[v]) * each :][:each]:
                    ImageDraw.Draw(picture).rectangle((low[1], low[0], high[1] - 1, high[0] - 1), fill=BRIGHT)
                lit = _observe(model, processor, canvas, frames)
                change = (lit.tokens - plain.tokens).float().norm(dim=-1).masked_fill(~layout.valid, 0)
                _check_lit(layout, change, frame == frame[v], v, n, reach)


def _check_lit(layout: Layout, change: Tensor, same: Tensor, view: int, token: int, reach: int) -> None:
    centre, lit = layout.centre[view, token], 0.2 * cell(layout, view)
    description = f"token {token} of view {view} at {[round(x, 3) for x in centre.tolist()]} was lit"
    for v in range(len(change)):
        if not same[v]:
            assert not change[v].any(), f"{description}, and view {v} of another frame changed"
            continue
        apart, size = (layout.centre[v] - centre).abs(), cell(layout, v)
        covers = (apart < size * (0.5 + reach) + lit).all(-1) & layout.valid[v]
        rest = change[v][~covers].amax() if not covers.all() else 0
        if covers.any():
            brightest = int(change[v].argmax())
            where = [round(x, 3) for x in layout.centre[v, brightest].tolist()]
            assert covers[brightest], f"{description}, but in view {v} token {brightest} at {where} changed most"
        # without covering tokens (another tile, or un-padded): resizing blurs a little across edges
        most = change[v].max() if covers.any() else change.max()
        assert rest <= FAINT * most, f"{description}, and tokens of view {v} that do not cover it changed"


def cell(layout: Layout, view: int) -> Tensor:
    """Return height and width of a token of a view, [2], as fractions of its picture."""
    box = layout.box[view].to(layout.grid.device)
    return (box[2:] - box[:2]) / (layout.grid[view].amax(0) + 1)


@contextmanager
def silent_attention() -> Iterator[None]:
    """Replace attention in models of transformers by zeros, so that tokens do not depend on each other."""

    def silent(module: Any, query: Tensor, *args: Any, **options: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(query).transpose(1, 2).contiguous(), None

    names = list(ALL_ATTENTION_FUNCTIONS)
    before = dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    for name in names:
        ALL_ATTENTION_FUNCTIONS[name] = silent
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS._local_mapping.clear()
        ALL_ATTENTION_FUNCTIONS._local_mapping.update(before)


def _gradient(height: int, width: int) -> Image.Image:
    """Return a dark picture with gradients, because some layouts are inferred from the content of tiles."""
    down, across = (Image.linear_gradient("L").rotate(turn).resize((width, height)) for turn in (0, 90))
    return Image.merge("RGB", (down, across, down)).point([level // 4 for level in range(256)] * 3)


def _pixels(at: Tensor, box: tuple[float, float, float, float], size: tuple[int, int]) -> list[int]:
    top, left, bottom, right = box
    place = top + float(at[0]) * (bottom - top), left + float(at[1]) * (right - left)
    return [round(part * length) for part, length in zip(place, size, strict=True)]


def _observe(model: Any, processor: Any, pictures: list[Image.Image], frames: int) -> Evidence:
    sample = ("<video> what ?", [pictures]) if frames else ("<image> what ?", pictures)
    return adapter_for(model).observe(inputs_for(model, processor, [sample]))
