"""SVG plots of a report, with selectable text, the colours of the page, and a tooltip on every point.

The SVG is written without a plotting library, whose output would ignore the page's dark mode and width, and would take
about a hundred kilobytes per plot.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from vtcframe.report.statistics import pareto_front

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 270, 46, 12, 12, 38  # pixels, sized for phones
TICKS = 7  # maximum number of ticks per axis
COLOURS = 8  # the colour-blind safe palette of Okabe and Ito, defined in the page's style as .c0 to .c7
SHAPES = (  # centred at 0, 0; their number is coprime to that of the colours, so that 56 methods get different marks
    '<circle r="5"/>',
    '<rect x="-4.5" y="-4.5" width="9" height="9"/>',
    '<path d="M0-6 5.5 4.5H-5.5Z"/>',
    '<path d="M0 6 5.5-4.5H-5.5Z"/>',
    '<path d="M0-6.5 5 0 0 6.5-5 0Z"/>',
    '<path d="M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z"/>',
    '<path d="M0-6.5 6-1.5 3.7 5.5H-3.7L-6-1.5Z"/>',
)


@dataclass(frozen=True)
class Point:
    """One method at one budget."""

    method: str
    description: str  # tooltip
    cost: float
    value: float
    spread: tuple[float, float] | None = None  # minimum and maximum over seeds


def mark(method: str, methods: Sequence[str]) -> str:
    """Return a method's mark, centred at 0, 0. Its position in `methods` determines colour and shape."""
    index = methods.index(method)
    return f'<g class="c{index % COLOURS}">{SHAPES[index % len(SHAPES)]}</g>'


def legend_mark(method: str, methods: Sequence[str]) -> str:
    """Return a method's mark as a separate SVG."""
    return f'<svg class="mark" viewBox="-8 -8 16 16" aria-hidden="true">{mark(method, methods)}</svg>'


def plot(points: Sequence[Point], x_label: str, y_label: str, methods: Sequence[str]) -> str:
    """Return an SVG of value over cost with the Pareto front; an empty string for fewer than two points."""
    if len(points) < 2:
        return ""
    values = [end for point in points for end in (point.value, *(point.spread or ()))]
    x = _Axis([point.cost for point in points], LEFT, WIDTH - RIGHT)
    y = _Axis(values, HEIGHT - BOTTOM, TOP)
    front = pareto_front([(point.cost, point.value) for point in points])
    lines = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(y_label)} over {escape(x_label)}</title>",
        *(_tick_x(x, tick) for tick in x.ticks),
        *(_tick_y(y, tick) for tick in y.ticks),
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(11 {(TOP + HEIGHT - BOTTOM) / 2:g}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>",
        '<polyline class="front" points="' + " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in front) + '"/>',
        *(_draw_point(point, x, y, methods) for point in points),
        "</svg>",
    ]
    return "\n".join(lines)


def _draw_point(point: Point, x: "_Axis", y: "_Axis", methods: Sequence[str]) -> str:
    at = x(point.cost)
    bar = ""
    if point.spread is not None:
        low, high = (y(end) for end in point.spread)
        bar = f'<path class="spread" d="M{at:.1f} {low:.1f}V{high:.1f}"/>'
    title = f"<title>{escape(point.description)}</title>"
    return f'{bar}<g transform="translate({at:.1f} {y(point.value):.1f})">{title}{mark(point.method, methods)}</g>'


def _tick_x(x: "_Axis", tick: float) -> str:
    return (
        f'<path class="grid" d="M{x(tick):.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{tick:.4g}</text>'
    )


def _tick_y(y: "_Axis", tick: float) -> str:
    return (
        f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 4}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
    )


class _Axis:
    """A linear map from values to pixels, with a margin around the values; `ticks` are round numbers on the axis."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low = min(values)
        high = max(values)
        margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        self.low = low - margin
        self.high = high + margin
        self.start = start
        self.end = end
        min_step = (self.high - self.low) / TICKS
        scale = 10.0 ** floor(log10(min_step))
        step = scale * next(factor for factor in (1, 2, 5, 10) if factor * scale >= min_step)
        first = ceil(self.low / step)
        last = floor(self.high / step)
        self.ticks = [round(n * step, 12) for n in range(first, last + 1)]

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
