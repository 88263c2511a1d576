"""Plots as SVG from plain data: for any page, light or dark, in print and for a screen reader.

An SVG is built as a tree, so no label can become a tag or an attribute. It has no script, no style and no link of its
own: a page that shows one has ``STYLE`` among its styles. Colours are the page's variables, where it has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

from lq_plugin.printing import figure, line

STYLE = """\
svg.plot { min-width: 34rem; max-width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg.plot text { fill: var(--ink, currentColor); }
svg.plot .grid { stroke: var(--line, #9aa3ad); }
svg.plot .limit { stroke: var(--bad, #c4473d); stroke-dasharray: 5 4; }
svg.plot .joined { stroke: var(--dim, #6f7a86); fill: none; }
svg.plot .bar { fill: var(--front, #3b82d6); }
svg.plot .over { fill: var(--paper, none); stroke: var(--dim, #6f7a86); stroke-width: 1.5; }
svg.plot .within { fill: var(--front, #3b82d6); }
svg.plot .winner { fill: var(--winner, #1f9d4d); stroke: var(--ink, currentColor); stroke-width: 2; }
"""
WIDTH = 720
LABELS = 290  # pixels of the labels of bars
LONGEST_LABEL = 40  # characters that fit there
BAR, ROW = 14, 22  # pixels: height of a bar, and from one to the next
CURVE_HEIGHT = 300
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 28, 48  # margins of a curve, where the ticks' labels are


@dataclass(frozen=True)
class Bar:
    """One bar.

    Args:
        label: beside it; any text.
        share: its length, 0 to 1; what is no number is shown as a dash.
        told: what a reader sees who points at it.
    """

    label: str
    share: float
    told: str


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Args:
        x: a share, 0 to 1.
        y: a finite number.
        kind: ``winner``, ``within`` or ``over`` the limit.
        told: what a reader sees who points at it.
    """

    x: float
    y: float
    kind: str
    told: str


def bars(given: Sequence[Bar], title: str, description: str) -> str:
    """Return shares as horizontal bars, in their order from top to bottom.

    Args:
        given: the bars; the longest one takes the whole width.
        title: of the plot, for a screen reader.
        description: what it shows, for a screen reader.

    Example:
        >>> "42.0 %" in bars([Bar("net.0.conv2d", 0.42, "it costs most")], "Operators", "One operator.")
        True
    """
    svg = canvas("plot", WIDTH, ROW * len(given) + 8, title, description)
    longest = max((bar.share for bar in given if _is_share(bar.share)), default=0.0)
    room = WIDTH - LABELS - 60  # beside the longest bar stands its figure
    for number, bar in enumerate(given):
        length = round(room * bar.share / longest, 1) if _is_share(bar.share) and longest > 0 else 0.0
        top, base = 4 + ROW * number, 4 + ROW * number + 11.5
        group = SubElement(svg, "g")
        write(group, "title", bar.told)
        write(group, "text", _shortened(bar.label), x=LABELS - 8, y=base, text_anchor="end")
        draw(group, "rect", "bar", x=LABELS, y=top, width=max(length, 1), height=BAR)
        write(group, "text", figure(bar.share, ".1f", 100, " %"), x=LABELS + length + 6, y=base)
    draw(svg, "line", "grid", x1=LABELS, x2=LABELS, y1=0, y2=ROW * len(given) + 4)
    return tostring(svg, encoding="unicode")


def curve(
    points: Sequence[Point], limit: float, axes: tuple[str, str], percent: bool, title: str, description: str
) -> str:
    """Return points over shares, joined where they are lowest, with a limit that they should stay below.

    Args:
        points: at least one.
        limit: a finite number.
        axes: what the horizontal and the vertical axis show.
        percent: whether the vertical axis shows percentages.
        title: of the plot, for a screen reader.
        description: what it shows, for a screen reader.
    """
    svg = canvas("plot", WIDTH, CURVE_HEIGHT, title, description)
    across = Axis([*(point.x for point in points), 1.0], LEFT, WIDTH - RIGHT)
    up = Axis([*(point.y for point in points), limit, 0.0], CURVE_HEIGHT - BOTTOM, TOP)
    _grid(svg, across, up, percent)
    write(svg, "text", axes[0], x=across.end, y=up.start + 36, text_anchor="end")
    write(svg, "text", axes[1], x=across.start, y=TOP - 14)
    draw(svg, "line", "limit", x1=across.start, x2=across.end, y1=up.at(limit), y2=up.at(limit))
    write(svg, "text", "budget", x=across.start + 4, y=up.at(limit) - 5)
    lowest = {x: min(point.y for point in points if point.x == x) for x in sorted({point.x for point in points})}
    draw(svg, "polyline", "joined", points=" ".join(f"{across.at(x)},{up.at(y)}" for x, y in lowest.items()))
    for point in sorted(points, key=lambda point: point.kind == "winner"):  # which nothing else hides
        mark = draw(svg, "circle", point.kind, cx=across.at(point.x), cy=up.at(point.y), r=5)
        write(mark, "title", point.told)
    return tostring(svg, encoding="unicode")


class Axis:
    """Values to pixels, with some room at both ends.

    Args:
        values: finite numbers, at least one.
        start: pixels of the lowest value, without the room.
        end: pixels of the highest.
    """

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        room = 0.06 * (max(values) - min(values)) or 0.05 * abs(values[0]) or 0.05
        self.low, self.high = min(values) - room, max(values) + room
        self.start, self.end = start, end

    def at(self, value: float) -> float:
        """Return the pixels of a value."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def decades(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, … between two positive numbers, or even steps where these are too few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    ticks = [digit * 10.0**n for n in exponents for digit in (1, 2, 5) if low <= digit * 10.0**n <= high]
    return ticks if len(ticks) > 2 else steps(low, high)


def steps(low: float, high: float) -> list[float]:
    """About five round numbers between two numbers."""
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit * 5 >= high - low)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def canvas(kind: str, width: int, height: int, title: str, description: str = "") -> Element:
    """Return an empty SVG that says what it shows.

    Args:
        kind: its class.
        width: in pixels.
        height: in pixels.
        title: for a screen reader, and for who points at it.
        description: more, for a screen reader.
    """
    box = {"viewBox": f"0 0 {width} {height}", "width": str(width), "height": str(height)}
    svg = Element("svg", {"class": kind, "role": "img", **box})
    write(svg, "title", title)
    if description:
        write(svg, "desc", description)
    return svg


def draw(parent: Element, shape: str, kind: str, **places: object) -> Element:
    """Add a shape of a class."""
    return SubElement(parent, shape, {"class": kind, **{name: str(place) for name, place in places.items()}})


def write(parent: Element, tag: str, text: str, **places: object) -> None:
    """Add an element with a text, whatever is in it."""
    attributes = {name.replace("_", "-"): str(place) for name, place in places.items()}
    SubElement(parent, tag, attributes).text = line(text)


def _is_share(value: float) -> bool:
    return 0 <= value <= 1


def _grid(svg: Element, across: Axis, up: Axis, percent: bool) -> None:
    """Lines and labels at round numbers."""
    for share in steps(across.low, min(across.high, 1.0)):
        draw(svg, "line", "grid", x1=across.at(share), x2=across.at(share), y1=up.end, y2=up.start)
        write(svg, "text", f"{100 * share:g} %", x=across.at(share), y=up.start + 16, text_anchor="middle")
    for value in steps(up.low, up.high):
        label = f"{100 * value:g} %" if percent else f"{value:g}"
        draw(svg, "line", "grid", x1=across.start, x2=across.end, y1=up.at(value), y2=up.at(value))
        write(svg, "text", label, x=across.start - 6, y=up.at(value) + 4, text_anchor="end")


def _shortened(label: str) -> str:
    """The end of a label, which tells operators of one model apart."""
    label = line(label)
    return label if len(label) <= LONGEST_LABEL else f"…{label[1 - LONGEST_LABEL :]}"
