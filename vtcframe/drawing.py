"""Drawings of kept tokens: one sheet per sample, drawn with Pillow only.

Each line of a sheet is a method: its score map, then the picture at each budget with dropped tokens darkened and kept
tokens outlined. Budgets with the same scores share one score map. Crops are drawn at their place in the picture, and
the frames of a video side by side.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import pairwise

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from vtcframe.data.results import Prediction, ViewRecord, format_budget

PANEL = 384  # pixels: the target length of a picture's longer edge; small pictures grow by integer factors
GAP = 12  # pixels between neighbouring panels
LINE = 20  # pixels: the height of a line of text
LETTER = 8  # pixels: the width of a wide letter
DARK = 0.25  # brightness of dropped tokens
HEAT = 0.7  # opacity of a score map
PAPER = (255, 255, 255)  # background
INK = (32, 32, 32)  # text
FRAME = (255, 221, 51)  # outline of kept tokens
EQUAL = (160, 160, 160)  # a score map in which all scores are equal
COLOURS = [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)]  # viridis, low to high
MIN_OUTLINED = 6  # pixels: tokens with a shorter edge are not outlined, because the outline would hide them
PANELS_PER_LINE = 8
Cell = tuple[Sequence[str], Image.Image]  # a caption and the image below it
Picture = Image.Image | Sequence[Image.Image]  # a picture, or the frames of a video


def sheet(pictures: Sequence[Picture], rows: Sequence[Prediction], edge: int = PANEL) -> Image.Image:
    """Draw the rows of one sample; `pictures` are the pictures or videos to which the boxes of their views refer.

    The longer edge of a picture becomes at most `edge` pixels, that of a video frame at most `edge` / 2.
    """
    large = enlarge_pictures(pictures, edge)
    first = rows[0]
    title = [first.id, first.question, *([] if first.answer is None else [f"answer: {first.answer}"])]
    lines = [
        list(_method_cells(large, [row for row in rows if row.label == method]))
        for method in dict.fromkeys(row.label for row in rows)
    ]
    line_images = [_join_horizontally([_add_caption(cell) for cell in line]) for line in lines]
    content = _join_vertically([_draw_text(title, PANEL * 2), *line_images])
    with_margin = Image.new("RGB", (content.width + 2 * GAP, content.height + 2 * GAP), PAPER)
    with_margin.paste(content, (GAP, GAP))
    return with_margin


def enlarge_pictures(pictures: Sequence[Picture], edge: int = PANEL) -> list[Picture]:
    """Resize pictures so that the longer edge is at most `edge` pixels, that of video frames at most `edge` / 2.

    Small pictures grow by integer factors, so that tokens keep sharp edges.
    """
    return [
        _resize(picture, edge) if isinstance(picture, Image.Image) else [_resize(frame, edge // 2) for frame in picture]
        for picture in pictures
    ]


def file_name(identity: str, suffix: str) -> str:
    """Return a file name for the sample `identity`: unsafe characters are replaced, a hash keeps it unique."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", identity)[:80]
    digest = "" if safe == identity else "-" + blake2b(identity.encode(), digest_size=4).hexdigest()
    return safe + digest + suffix


def _method_cells(pictures: Sequence[Picture], rows: Iterable[Prediction]) -> Iterator[Cell]:
    drawn_scores = None
    for row in rows:
        if row.views is None:
            panels = [panel for p in pictures for panel in ([p] if isinstance(p, Image.Image) else p)]
            yield _caption(row), _arrange(panels)
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
    """Colour each token by its score, from the lowest to the highest of the sample; a colour scale is drawn below."""
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
    return _join_vertically([_arrange(panels), _draw_scale(low, high)], GAP // 2)


def kept_tokens(pictures: Sequence[Picture], views: Sequence[ViewRecord]) -> Image.Image:
    """Darken dropped tokens and outline kept tokens, with one panel per picture and per layer of overlapping views."""
    panels = []
    for picture, panel_views in _panels(pictures, views):
        panel = ImageEnhance.Brightness(picture).enhance(DARK)
        pen = ImageDraw.Draw(panel)
        for view in panel_views:
            for row, column, (left, top, right, bottom) in _boxes(view, picture):
                if view["kept"][row][column]:
                    panel.paste(picture.crop((left, top, right, bottom)), (left, top))
                    if min(right - left, bottom - top) >= MIN_OUTLINED:
                        pen.rectangle((left, top, right - 1, bottom - 1), outline=FRAME)
        panels.append(panel)
    return _arrange(panels)


def _panels(pictures: Sequence[Picture], views: Sequence[ViewRecord]) -> list[tuple[Image.Image, list[ViewRecord]]]:
    """Group the views of each picture that do not overlap: an overview gets one panel, its crops another."""
    panels: list[list[ViewRecord]] = []
    for view in views:
        for panel in panels:
            if _same_picture(panel[0], view) and not any(_overlap(view["box"], other["box"]) for other in panel):
                panel.append(view)
                break
        else:
            panels.append([view])
    return [(_picture_of(pictures, panel[0]), panel) for panel in panels]


def _picture_of(pictures: Sequence[Picture], view: ViewRecord) -> Image.Image:
    picture = pictures[view["image"]]
    return picture if isinstance(picture, Image.Image) else picture[view["frame"]]


def _same_picture(a: ViewRecord, b: ViewRecord) -> bool:
    return (a["image"], a["frame"]) == (b["image"], b["frame"])


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(min(a[i + 2], b[i + 2]) - max(a[i], b[i]) > 1e-6 for i in (0, 1))


def cells(view: ViewRecord, width: int, height: int) -> list[list[tuple[float, float, float, float] | None]]:
    """Return the box of each token of a view in its picture of `width` x `height`: left, top, right, bottom in pixels.

    The result has the shape of the view's grid. Boxes are clipped to the picture; None if there is no token, or if the
    token lies outside the picture.
    """
    top, left, bottom, right = view["box"]
    rows, columns = len(view["kept"]), len(view["kept"][0])
    across = [min(max((left + (right - left) * i / columns) * width, 0), width) for i in range(columns + 1)]
    down = [min(max((top + (bottom - top) * i / rows) * height, 0), height) for i in range(rows + 1)]
    return [
        [
            (x, y, next_x, next_y) if token is not None and x < next_x and y < next_y else None
            for token, (x, next_x) in zip(line, pairwise(across), strict=True)
        ]
        for line, (y, next_y) in zip(view["kept"], pairwise(down), strict=True)
    ]


def _boxes(view: ViewRecord, picture: Image.Image) -> Iterator[tuple[int, int, tuple[int, int, int, int]]]:
    """Yield row, column and the box in integer pixels (left, top, right, bottom) of each token inside the picture."""
    for row, line in enumerate(cells(view, picture.width, picture.height)):
        for column, cell in enumerate(line):
            if cell is not None:
                left, top, right, bottom = (round(edge) for edge in cell)
                if left < right and top < bottom:
                    yield row, column, (left, top, right, bottom)


def _resize(picture: Image.Image, edge: int) -> Image.Image:
    factor = edge / max(picture.size)
    width, height = (max(1, round(edge * (int(factor) or factor))) for edge in picture.size)
    resampling = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize((width, height), resampling)


def _colour(level: float) -> tuple[int, int, int]:
    """0..1 -> red, green, blue."""
    index = min(int(level * (len(COLOURS) - 1)), len(COLOURS) - 2)
    fraction = level * (len(COLOURS) - 1) - index
    red, green, blue = (round(a + (b - a) * fraction) for a, b in zip(COLOURS[index], COLOURS[index + 1], strict=True))
    return red, green, blue


def _draw_scale(low: float, high: float) -> Image.Image:
    if low == high:
        return _draw_text([f"all scores are {low:.3g}"])
    bar = Image.new("RGB", (PANEL // 2, LINE // 2))
    for x in range(bar.width):
        bar.paste(_colour(x / (bar.width - 1)), (x, 0, x + 1, bar.height))
    return _join_horizontally([_draw_text([f"{low:.3g}"]), bar, _draw_text([f"{high:.3g}"])], GAP // 2)


def _add_caption(cell: Cell) -> Image.Image:
    caption, image = cell
    return _join_vertically([_draw_text(caption, max(image.width, PANEL // 2)), image], GAP // 2)


def _draw_text(lines: Sequence[str], width: int | None = None) -> Image.Image:
    """Draw lines of text; lines longer than `width` pixels are wrapped."""
    font = ImageFont.load_default(15)
    if width is not None:
        lines = [part for line in lines for part in textwrap.wrap(line, width // LETTER) or [""]]
    out = Image.new("RGB", (max(int(font.getlength(line)) + 1 for line in lines), LINE * len(lines)), PAPER)
    for i, line in enumerate(lines):
        ImageDraw.Draw(out).text((0, i * LINE), line, INK, font)
    return out


def _arrange(panels: Sequence[Image.Image]) -> Image.Image:
    """Arrange panels in lines, from left to right and from top to bottom."""
    return _join_vertically(
        [_join_horizontally(panels[i : i + PANELS_PER_LINE]) for i in range(0, len(panels), PANELS_PER_LINE)]
    )


def _join_horizontally(images: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    out = Image.new("RGB", (sum(i.width + gap for i in images) - gap, max(i.height for i in images)), PAPER)
    x = 0
    for image in images:
        out.paste(image, (x, 0))
        x += image.width + gap
    return out


def _join_vertically(images: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    out = Image.new("RGB", (max(i.width for i in images), sum(i.height + gap for i in images) - gap), PAPER)
    y = 0
    for image in images:
        out.paste(image, (0, y))
        y += image.height + gap
    return out
