"""Pictures of what is kept: one sheet a sample, with Pillow alone.

A line of the sheet is a method: its score map, then the picture at each budget, dropped tokens darkened and kept ones
outlined. A map stands once for all the budgets that share it. Crops are drawn where they lie in their picture, frames
of a video side by side.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import pairwise

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from vtcframe.data.results import Prediction, ViewRecord, format_budget

PANEL = 384  # pixels that a picture's longer edge is enlarged to, in whole steps, or shrunk to
GAP, LINE, LETTER = 12, 20, 8  # pixels: between things, a line of text, a wide letter
DARK, HEAT = 0.25, 0.7  # brightness of what was dropped, opacity of the map
PAPER, INK, FRAME, EQUAL = (255, 255, 255), (32, 32, 32), (255, 221, 51), (160, 160, 160)
COLOURS = [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)]  # viridis, low to high
SMALLEST = 6  # pixels: the edge of a token below which an outline would hide it
ABREAST = 8  # panels in a line
Cell = tuple[Sequence[str], Image.Image]  # a caption, and what it stands over
Picture = Image.Image | Sequence[Image.Image]  # or the frames of a video


def sheet(pictures: Sequence[Picture], rows: Sequence[Prediction], edge: int = PANEL) -> Image.Image:
    """Draw the rows of one sample, whose views' boxes lie in `pictures`.

    The longer edge of a picture becomes at most `edge` pixels, that of a video's frame half of it.
    """
    large = enlarged(pictures, edge)
    first = rows[0]
    title = [first.id, first.question, *([] if first.answer is None else [f"answer: {first.answer}"])]
    lines = [
        list(_cells(large, [row for row in rows if row.label == method]))
        for method in dict.fromkeys(row.label for row in rows)
    ]
    drawn = _stacked([_text(title, PANEL * 2), *(_beside([_captioned(cell) for cell in line]) for line in lines)])
    framed = Image.new("RGB", (drawn.width + 2 * GAP, drawn.height + 2 * GAP), PAPER)
    framed.paste(drawn, (GAP, GAP))
    return framed


def enlarged(pictures: Sequence[Picture], edge: int = PANEL) -> list[Picture]:
    """Return pictures of which the longer edge is at most `edge` pixels, that of a video's frames half of it.

    Small ones grow in whole steps, so that tokens keep sharp edges.
    """
    return [
        _enlarged(p, edge) if isinstance(p, Image.Image) else [_enlarged(frame, edge // 2) for frame in p]
        for p in pictures
    ]


def file_name(identity: str, suffix: str) -> str:
    """Return a name for a file about the sample `identity`: what is unsafe is replaced, and a hash tells it apart."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", identity)[:80]
    mark = "" if safe == identity else "-" + blake2b(identity.encode(), digest_size=4).hexdigest()
    return safe + mark + suffix


def _cells(pictures: Sequence[Picture], rows: Iterable[Prediction]) -> Iterator[Cell]:
    drawn_scores = None
    for row in rows:
        if row.views is None:
            yield (
                _caption(row),
                _laid([panel for p in pictures for panel in ([p] if isinstance(p, Image.Image) else p)]),
            )
            continue
        scores = [view["scores"] for view in row.views]
        if scores != drawn_scores:
            drawn_scores = scores
            yield [str(row.label), "scores"], score_map(pictures, row.views)
        yield _caption(row), kept_tokens(pictures, row.views)


def _caption(row: Prediction) -> list[str]:
    name = str(row.label) if row.budget is None else f"{row.label} at {format_budget(row.budget)}"
    verdict = {True: " (right)", False: " (wrong)", None: ""}[row.correct]
    return [name, f"{row.visual_tokens} of {row.visual_tokens_before} tokens: {row.prediction}{verdict}"]


def score_map(pictures: Sequence[Picture], views: Sequence[ViewRecord]) -> Image.Image:
    """Colour each token by its score, from the sample's lowest to its highest, with the scale below."""
    values = [score for view in views for line in view["scores"] for score in line if score is not None]
    low, high = min(values), max(values)
    panels = []
    for picture, panel_views in _panels(pictures, views):
        grey = picture.convert("L").convert("RGB")
        heat = grey.copy()
        for view in panel_views:
            for row, column, box in _boxes(view, picture):
                score = view["scores"][row][column]
                if score is not None:
                    heat.paste(_colour((score - low) / (high - low)) if high > low else EQUAL, box)
        panels.append(Image.blend(grey, heat, HEAT))
    return _stacked([_laid(panels), _scale(low, high)], GAP // 2)


def kept_tokens(pictures: Sequence[Picture], views: Sequence[ViewRecord]) -> Image.Image:
    """Darken what was dropped and outline what was kept, a panel for each picture and for each layer of its views."""
    panels = []
    for picture, panel_views in _panels(pictures, views):
        panel = ImageEnhance.Brightness(picture).enhance(DARK)
        pen = ImageDraw.Draw(panel)
        for view in panel_views:
            for row, column, (left, top, right, bottom) in _boxes(view, picture):
                if view["kept"][row][column]:
                    panel.paste(picture.crop((left, top, right, bottom)), (left, top))
                    if min(right - left, bottom - top) >= SMALLEST:
                        pen.rectangle((left, top, right - 1, bottom - 1), outline=FRAME)
        panels.append(panel)
    return _laid(panels)


def _panels(pictures: Sequence[Picture], views: Sequence[ViewRecord]) -> list[tuple[Image.Image, list[ViewRecord]]]:
    """Group views that fit on one copy of their picture: an overview takes one, the tiles that lie below it another."""
    panels: list[list[ViewRecord]] = []
    for view in views:
        for panel in panels:
            if _same_picture(panel[0], view) and not any(_overlap(view["box"], other["box"]) for other in panel):
                panel.append(view)
                break
        else:
            panels.append([view])
    return [(_of(pictures, panel[0]), panel) for panel in panels]


def _of(pictures: Sequence[Picture], view: ViewRecord) -> Image.Image:
    picture = pictures[view["image"]]
    return picture if isinstance(picture, Image.Image) else picture[view["frame"]]


def _same_picture(a: ViewRecord, b: ViewRecord) -> bool:
    return (a["image"], a["frame"]) == (b["image"], b["frame"])


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(min(a[i + 2], b[i + 2]) - max(a[i], b[i]) > 1e-6 for i in (0, 1))


def cells(view: ViewRecord, width: int, height: int) -> list[list[tuple[float, float, float, float] | None]]:
    """Return where each token of a view lies in its picture of that size: left, top, right, bottom in pixels.

    Shaped as the view's grid, cut to the picture; None where there is no token or the picture shows nothing of it.
    """
    top, left, bottom, right = view["box"]
    rows, columns = len(view["kept"]), len(view["kept"][0])
    across = [min(max((left + (right - left) * i / columns) * width, 0), width) for i in range(columns + 1)]
    down = [min(max((top + (bottom - top) * i / rows) * height, 0), height) for i in range(rows + 1)]
    return [
        [
            (x, y, beside, below) if token is not None and x < beside and y < below else None
            for token, (x, beside) in zip(line, pairwise(across), strict=True)
        ]
        for line, (y, below) in zip(view["kept"], pairwise(down), strict=True)
    ]


def _boxes(view: ViewRecord, picture: Image.Image) -> Iterator[tuple[int, int, tuple[int, int, int, int]]]:
    """Yield row, column and the whole pixels (left, top, right, bottom) of each token that the picture shows."""
    for row, line in enumerate(cells(view, picture.width, picture.height)):
        for column, cell in enumerate(line):
            if cell is not None:
                left, top, right, bottom = (round(edge) for edge in cell)
                if left < right and top < bottom:
                    yield row, column, (left, top, right, bottom)


def _enlarged(picture: Image.Image, edge: int) -> Image.Image:
    factor = edge / max(picture.size)
    width, height = (max(1, round(edge * (int(factor) or factor))) for edge in picture.size)
    how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize((width, height), how)


def _colour(level: float) -> tuple[int, int, int]:
    """0..1 -> red, green, blue."""
    at = min(int(level * (len(COLOURS) - 1)), len(COLOURS) - 2)
    part = level * (len(COLOURS) - 1) - at
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(COLOURS[at], COLOURS[at + 1], strict=True))
    return red, green, blue


def _scale(low: float, high: float) -> Image.Image:
    if low == high:
        return _text([f"every score is {low:.3g}"])
    bar = Image.new("RGB", (PANEL // 2, LINE // 2))
    for x in range(bar.width):
        bar.paste(_colour(x / (bar.width - 1)), (x, 0, x + 1, bar.height))
    return _beside([_text([f"{low:.3g}"]), bar, _text([f"{high:.3g}"])], GAP // 2)


def _captioned(cell: Cell) -> Image.Image:
    caption, image = cell
    return _stacked([_text(caption, max(image.width, PANEL // 2)), image], GAP // 2)


def _text(lines: Sequence[str], width: int | None = None) -> Image.Image:
    """Write lines, broken where they do not fit into `width` pixels."""
    font = ImageFont.load_default(15)
    if width is not None:
        lines = [part for line in lines for part in textwrap.wrap(line, width // LETTER) or [""]]
    out = Image.new("RGB", (max(int(font.getlength(line)) + 1 for line in lines), LINE * len(lines)), PAPER)
    for i, line in enumerate(lines):
        ImageDraw.Draw(out).text((0, i * LINE), line, INK, font)
    return out


def _laid(panels: Sequence[Image.Image]) -> Image.Image:
    """Lay panels out in lines, as one reads."""
    return _stacked([_beside(panels[i : i + ABREAST]) for i in range(0, len(panels), ABREAST)])


def _beside(images: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    out = Image.new("RGB", (sum(i.width + gap for i in images) - gap, max(i.height for i in images)), PAPER)
    x = 0
    for image in images:
        out.paste(image, (x, 0))
        x += image.width + gap
    return out


def _stacked(images: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    out = Image.new("RGB", (max(i.width for i in images), sum(i.height + gap for i in images) - gap), PAPER)
    y = 0
    for image in images:
        out.paste(image, (0, y))
        y += image.height + gap
    return out
