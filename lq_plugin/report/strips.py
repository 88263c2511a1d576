"""Small plots that stand in a table's cell: a drop beside its budget, the spread of a latency, a histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree.ElementTree import tostring

from lq_plugin.report.plots import Axis, canvas, draw

WIDTH, HEIGHT = 112, 20
MIDDLE = HEIGHT / 2
TALL = 32  # pixels of a histogram's height


def drop_strip(drop: float, allowed: float, within: bool, told: str) -> str:
    """Return the drop of a metric on a scale from twice what a budget allows to as much gain; better is to the right.

    Args:
        drop: in the budget's terms; a finite number.
        allowed: the largest drop that is within the budget.
        within: whether the budget was met.
        told: what it shows, in words.
    """
    svg = canvas("strip", WIDTH, HEIGHT, told)
    unit = allowed or abs(drop) or 1.0
    places = {name: _at(value / unit) for name, value in (("limit", allowed), ("zero", 0.0), ("drop", drop))}
    draw(svg, "rect", "allowed", x=places["limit"], y=5, width=round(WIDTH - places["limit"], 1), height=10)
    draw(svg, "line", "grid", x1=0, x2=WIDTH, y1=MIDDLE, y2=MIDDLE)
    draw(svg, "line", "zero", x1=places["zero"], x2=places["zero"], y1=3, y2=17)
    draw(svg, "line", "limit", x1=places["limit"], x2=places["limit"], y1=3, y2=17)
    draw(svg, "circle", "within" if within else "over", cx=places["drop"], cy=MIDDLE, r=4.5)
    return tostring(svg, encoding="unicode")


def _at(share: float) -> float:
    """Pixels of a drop as a multiple of what is allowed; what is further out stands at the edge."""
    return round(6 + (WIDTH - 12) * (2 - min(max(share, -1.0), 2.0)) / 3, 1)


def latency_axis(medians: Sequence[float]) -> Axis:
    """Return a logarithmic scale for all latencies of a table, at least one, in milliseconds."""
    return Axis([math.log10(median) for median in medians], 6, WIDTH - 6)


def latency_strip(median: float, p90: float | None, axis: Axis, kind: str, told: str) -> str:
    """Return a latency with its spread: a dot at the median, a line to what nine in ten calls take at most.

    Args:
        median: in milliseconds.
        p90: the same; ``None`` where it is not known.
        axis: of :func:`latency_axis`.
        kind: class of the dot.
        told: what it shows, in words.
    """
    svg = canvas("strip", WIDTH, HEIGHT, told)
    draw(svg, "line", "grid", x1=0, x2=WIDTH, y1=MIDDLE, y2=MIDDLE)
    at = axis.at(math.log10(median))
    if p90 is not None:
        end = min(axis.at(math.log10(p90)), WIDTH - 1)
        draw(svg, "line", "spread", x1=at, x2=end, y1=MIDDLE, y2=MIDDLE)
        draw(svg, "line", "spread", x1=end, x2=end, y1=6, y2=14)
    draw(svg, "circle", kind, cx=at, cy=MIDDLE, r=4.5)
    return tostring(svg, encoding="unicode")


def histogram(bins: Sequence[int], extremes: tuple[float, float], bounds: tuple[float, float], told: str) -> str:
    """Return counts as bars, on a logarithmic scale; those inside of a range are filled with the accent's colour.

    Args:
        bins: counts in equal bins from the lowest to the highest value.
        extremes: the lowest and the highest value; finite numbers.
        bounds: of the range.
        told: what it shows, in words.
    """
    svg = canvas("strip", WIDTH, TALL, told)
    step, width = (extremes[1] - extremes[0]) / len(bins), WIDTH / len(bins)
    highest = math.log1p(max(0, *bins)) or 1.0
    for number, count in enumerate(bins):
        center = extremes[0] + (number + 0.5) * step
        height = round((TALL - 2) * math.log1p(max(count, 0)) / highest, 1)
        kind = "kept" if bounds[0] - step / 2 <= center <= bounds[1] + step / 2 else "counted"
        place = {"x": round(number * width, 1), "y": round(TALL - height, 1)}
        draw(svg, "rect", kind, **place, width=round(width - 0.5, 1), height=height)
    return tostring(svg, encoding="unicode")
