"""The law of alignment: what lies at a place of a picture is judged, and drawn, at the token that covers the place."""

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
    """Light single tokens of a dark picture of `size` (height, width), or of one frame of a dark video of `frames`.

    The picture goes through the real processor and packing with attention silenced, so that a token's feature depends
    on its own pixels. Brightness put where the layout says a token lies must change that token more than any other of
    its view, and those that do not cover it (by `reach` tokens) by less than a tenth; other frames stay as they are.
    `picks` tokens of each view are lit, corners among them. `reach` is for packings that resample.
    """
    height, width = size
    box = visible_region(processor, size, video=bool(frames))
    with silent_attention():
        plain = _observed(model, processor, [_gradient(height, width)] * max(frames, 1), frames)
        layout = plain.layout
        frame = layout.frame if layout.frame.any() else layout.image  # some models are told of frames as of images
        slices = int(frame.max()) + 1
        for v in range(len(frame)):
            tokens = layout.valid[v].nonzero()[:, 0]
            chosen = tokens[torch.linspace(0, len(tokens) - 1, picks).round().long()].unique()
            for n in chosen.tolist():
                centre, half = layout.centre[v, n], 0.2 * cell(layout, v)
                low, high = (_pixels(centre + way * half, box, size) for way in (-1, 1))
                canvas = [_gradient(height, width) for _ in range(max(frames, 1))]
                each = max(frames, 1) // slices  # frames that a view is made of
                for picture in canvas[int(frame[v]) * each :][:each]:
                    ImageDraw.Draw(picture).rectangle((low[1], low[0], high[1] - 1, high[0] - 1), fill=BRIGHT)
                lit = _observed(model, processor, canvas, frames)
                change = (lit.tokens - plain.tokens).float().norm(dim=-1).masked_fill(~layout.valid, 0)
                _check_lit(layout, change, frame == frame[v], v, n, reach)


def _check_lit(layout: Layout, change: Tensor, same: Tensor, view: int, token: int, reach: int) -> None:
    centre, lit = layout.centre[view, token], 0.2 * cell(layout, view)
    told = f"token {token} of view {view} at {[round(x, 3) for x in centre.tolist()]} was lit"
    for v in range(len(change)):
        if not same[v]:
            assert not change[v].any(), f"{told}, and view {v} of another frame changed"
            continue
        apart, size = (layout.centre[v] - centre).abs(), cell(layout, v)
        covers = (apart < size * (0.5 + reach) + lit).all(-1) & layout.valid[v]
        rest = change[v][~covers].amax() if not covers.all() else 0
        if covers.any():
            brightest = int(change[v].argmax())
            where = [round(x, 3) for x in layout.centre[v, brightest].tolist()]
            assert covers[brightest], f"{told}, but in view {v} token {brightest} at {where} changed most"
        # another tile, or un-padded away: resizing blurs a little over edges
        most = change[v].max() if covers.any() else change.max()
        assert rest <= FAINT * most, f"{told}, and tokens of view {v} that do not cover it changed"


def cell(layout: Layout, view: int) -> Tensor:
    """[2] height and width of a token of a view, as a part of its picture."""
    box = layout.box[view].to(layout.grid.device)
    return (box[2:] - box[:2]) / (layout.grid[view].amax(0) + 1)


@contextmanager
def silent_attention() -> Iterator[None]:
    """Let every attention of transformers' models return zeros, so that tokens do not see each other."""

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
    """Return a dark picture that differs from place to place: some layouts are told by how a picture looks."""
    down, across = (Image.linear_gradient("L").rotate(turn).resize((width, height)) for turn in (0, 90))
    return Image.merge("RGB", (down, across, down)).point([level // 4 for level in range(256)] * 3)


def _pixels(at: Tensor, box: tuple[float, float, float, float], size: tuple[int, int]) -> list[int]:
    top, left, bottom, right = box
    place = top + float(at[0]) * (bottom - top), left + float(at[1]) * (right - left)
    return [round(part * length) for part, length in zip(place, size, strict=True)]


def _observed(model: Any, processor: Any, pictures: list[Image.Image], frames: int) -> Evidence:
    sample = ("<video> what ?", [pictures]) if frames else ("<image> what ?", pictures)
    return adapter_for(model).observe(inputs_for(model, processor, [sample]))
