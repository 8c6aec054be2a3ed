"""Plots of a report as SVG: text stays text, colours follow the page, every point says what it is.

By hand, for a plotting library's SVG knows neither the page's dark mode nor its width, and takes a megabyte to import
and a hundred kilobytes a plot.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from vtcframe.report.statistics import front

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 270, 46, 12, 12, 38  # pixels on a phone
TICKS = 7
COLOURS = 8  # of Okabe and Ito, which the colour-blind tell apart; the page's style has them as .c0 to .c7
SHAPES = (  # around 0, 0; as many as are coprime to the colours, so that 56 methods get marks of their own
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
    told: str  # what it says when it is pointed at
    cost: float
    value: float
    spread: tuple[float, float] | None = None  # least and greatest value over seeds


def mark(method: str, methods: Sequence[str]) -> str:
    """Return a method's mark around 0, 0: its colour and shape are those of its place among all `methods`."""
    at = methods.index(method)
    return f'<g class="c{at % COLOURS}">{SHAPES[at % len(SHAPES)]}</g>'


def legend(method: str, methods: Sequence[str]) -> str:
    """Return a method's mark as a picture of its own."""
    return f'<svg class="mark" viewBox="-8 -8 16 16" aria-hidden="true">{mark(method, methods)}</svg>'


def plot(points: Sequence[Point], across: str, up: str, methods: Sequence[str]) -> str:
    """Draw value over cost, with the front of those that nothing beats in both. Nothing for fewer than two points."""
    if len(points) < 2:
        return ""
    low_high = [end for point in points for end in (point.value, *(point.spread or ()))]
    x = _Axis([point.cost for point in points], LEFT, WIDTH - RIGHT)
    y = _Axis(low_high, HEIGHT - BOTTOM, TOP)
    best = front([(point.cost, point.value) for point in points])
    lines = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(up)} over {escape(across)}</title>",
        *(_tick_x(x, tick) for tick in x.ticks),
        *(_tick_y(y, tick) for tick in y.ticks),
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>',
        f'<text transform="translate(11 {(TOP + HEIGHT - BOTTOM) / 2:g}) rotate(-90)" text-anchor="middle">'
        f"{escape(up)}</text>",
        '<polyline class="front" points="' + " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in best) + '"/>',
        *(_drawn(point, x, y, methods) for point in points),
        "</svg>",
    ]
    return "\n".join(lines)


def _drawn(point: Point, x: "_Axis", y: "_Axis", methods: Sequence[str]) -> str:
    at, bar = x(point.cost), ""
    if point.spread is not None:
        least, greatest = (y(end) for end in point.spread)
        bar = f'<path class="spread" d="M{at:.1f} {least:.1f}V{greatest:.1f}"/>'
    title = f"<title>{escape(point.told)}</title>"
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
    """From values to pixels, a little wider than the values; `ticks` are round numbers on it."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        self.low, self.high, self.start, self.end = low - room, high + room, start, end
        rough = (self.high - self.low) / TICKS
        scale = 10.0 ** floor(log10(rough))
        step = scale * next(factor for factor in (1, 2, 5, 10) if factor * scale >= rough)
        first, last = ceil(self.low / step), floor(self.high / step)
        self.ticks = [round(n * step, 12) for n in range(first, last + 1)]

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
