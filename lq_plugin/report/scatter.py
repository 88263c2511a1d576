"""Latency against accuracy as an SVG: one plot for each setting in which something was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from xml.etree.ElementTree import Element, tostring

from lq_plugin.printing import line
from lq_plugin.report import formats
from lq_plugin.report.board import Row
from lq_plugin.report.manifest import computable
from lq_plugin.report.plots import Axis, canvas, decades, draw, steps, write

WIDTH, HEIGHT = 960, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 36, 52  # margins, where the ticks' labels are
NEAR = 9  # pixels: marks of FP32 that are nearer hide one another, and are drawn as one
LONGEST_LABEL = 28  # characters
_CHARACTER, _LINE = 6.6, 14  # pixels of a label's characters, and its height
_FAR = 2  # a budget further from all points than this many times their spread would leave no room for them


@dataclass(frozen=True)
class Scatter:
    """One plot.

    Args:
        title: how its points were measured.
        svg: the plot.
    """

    title: str
    svg: str


@dataclass(frozen=True)
class Mark:
    """One point.

    Args:
        x: in pixels.
        y: in pixels.
        kind: ``winner``, ``front``, ``rest`` or ``reference``.
        label: beside it, where there is room.
        told: what a reader sees who points at it.
    """

    x: float
    y: float
    kind: str
    label: str
    told: str


def scatters(rows: Sequence[tuple[str, Row]], fp32: Sequence[tuple[str, Row]]) -> list[Scatter]:
    """Return one plot for each setting in which something was measured.

    Args:
        rows: artifacts with their labels.
        fp32: the same of FP32.
    """
    measured = [(label, row) for label, row in rows if row.objectives]
    settings = dict.fromkeys(row.setting for _, row in measured)
    return [
        _scatter(
            [(label, row) for label, row in measured if row.setting == setting],
            [(label, row) for label, row in fp32 if row.setting == setting and row.accuracy is not None],
        )
        for setting in settings
    ]


def _scatter(rows: Sequence[tuple[str, Row]], fp32: Sequence[tuple[str, Row]]) -> Scatter:
    first = rows[0][1]
    metric, mode = first.budget.metric, first.budget.mode
    every = [row for _, row in (*fp32, *rows)]
    # Accuracy is a cost here: better is up, whatever the metric's direction.
    costs = [row.accuracy or 0.0 for row in every]
    limit = _limit([row for _, row in rows], costs)
    across = Axis([_log(row) for row in every], LEFT, WIDTH - RIGHT)
    up = Axis([*costs, *([] if limit is None else [limit])], TOP, HEIGHT - BOTTOM)
    title = f"{first.cpu}, batch size {first.batch_size}, threads: {first.threads}"
    vertical = str(metric) if mode else f"difference of {metric} from FP32"
    svg = canvas(
        "scatter", WIDTH, HEIGHT, f"Latency against accuracy: {title}", f"{len(every)} points; the table lists the same"
    )
    _grid(svg, across, up, mode)
    write(svg, "text", f"↑ better: {vertical}", x=LEFT, y=16)
    write(svg, "text", "← better: latency in ms (logarithmic)", x=WIDTH - RIGHT, y=HEIGHT - 8, text_anchor="end")
    if limit is not None:
        draw(svg, "line", "limit", x1=LEFT, x2=WIDTH - RIGHT, y1=up.at(limit), y2=up.at(limit))
        write(svg, "text", "budget", x=WIDTH - RIGHT, y=up.at(limit) - 5, text_anchor="end")
    placed = [(label, row, across.at(_log(row)), up.at(row.accuracy or 0.0)) for label, row in (*fp32, *rows)]
    marks = [Mark(x, y, _kind(row), label, _told(row)) for label, row, x, y in placed]
    _draw(svg, _apart(marks))
    return Scatter(title, tostring(svg, encoding="unicode"))


def _log(row: Row) -> float:
    return math.log10(row.entry.median or 1)


def _kind(row: Row) -> str:
    if row.is_fp32:
        return "reference"
    return "winner" if row.winner else "front" if row.pareto else "rest"


def _told(row: Row) -> str:
    entry, metric = row.entry, row.budget.metric
    size = "" if entry.size_bytes is None else f", {formats.size(entry.size_bytes)}"
    value = formats.metric(entry.metrics.get(metric or ""))
    return f"{row.run}: {row.label}, {metric} {value}, {formats.milliseconds(entry.median)} ms{size}".removeprefix(": ")


def _limit(rows: Sequence[Row], costs: Sequence[float]) -> float | None:
    """The cost that the budget allows, where it is the same for all and not far from them."""
    limits = {_allowed(row) for row in rows}
    (limit,) = limits if len(limits) == 1 else (None,)
    if limit is None:
        return None
    low, high = min(costs), max(costs)
    return limit if limit <= high + _FAR * (high - low or abs(high) / 10) else None


def _allowed(row: Row) -> float | None:
    budget, fp32 = row.budget, row.manifest.fp32_of(row.entry)
    reference = computable(fp32.metrics.get(budget.metric or ""))
    if reference is None or budget.mode is None:
        return None
    cost = -reference if budget.mode == "max" else reference
    return computable(cost + budget.max_drop * (abs(reference) if budget.relative else 1.0))


def _grid(svg: Element, across: Axis, up: Axis, mode: str | None) -> None:
    for value in decades(10**across.low, 10**across.high):
        x = across.at(math.log10(value))
        draw(svg, "line", "grid", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM)
        write(svg, "text", f"{value:g}", x=x, y=HEIGHT - BOTTOM + 18, text_anchor="middle")
    for cost in steps(up.low, up.high):
        draw(svg, "line", "grid", x1=LEFT, x2=WIDTH - RIGHT, y1=up.at(cost), y2=up.at(cost))
        write(svg, "text", _shown(cost, mode), x=LEFT - 8, y=up.at(cost) + 4, text_anchor="end")


def _shown(cost: float, mode: str | None) -> str:
    """Accuracy as a cost, back in the metric's terms."""
    return f"{100 * cost:g} %" if mode is None else f"{-cost + 0.0 if mode == 'max' else cost:g}"


def _apart(marks: Sequence[Mark]) -> list[Mark]:
    """The marks with those of FP32 that hide one another as one."""
    groups: list[list[Mark]] = []
    for mark in (mark for mark in marks if mark.kind == "reference"):
        near = (group for group in groups if max(abs(group[0].x - mark.x), abs(group[0].y - mark.y)) < NEAR)
        group = next(near, None)
        if group is None:
            groups.append(group := [])
        group.append(mark)
    merged = [
        replace(group[0], label=_together(group), told="; ".join(mark.told for mark in group)) for group in groups
    ]
    return [*merged, *(mark for mark in marks if mark.kind != "reference")]


def _together(group: Sequence[Mark]) -> str:
    labels = list(dict.fromkeys(mark.label for mark in group if mark.label))
    return ", ".join(labels) if labels else f"{len(group)}×" if len(group) > 1 else ""


def _draw(svg: Element, marks: Sequence[Mark]) -> None:
    """Draw the best marks last, which nothing else hides, and their labels first, where there is most room."""
    order = {"reference": 0, "rest": 1, "front": 2, "winner": 3}
    ordered = sorted(marks, key=lambda mark: order[mark.kind])
    group = draw(svg, "g", "marks")
    for mark in ordered:
        if mark.kind == "reference":
            left, top = round(mark.x - 4.5, 1), round(mark.y - 4.5, 1)
            shape = draw(group, "rect", mark.kind, x=left, y=top, width=9, height=9)
        else:
            shape = draw(group, "circle", mark.kind, cx=mark.x, cy=mark.y, r=7 if mark.kind == "winner" else 6)
        write(shape, "title", mark.told)
    taken = [(mark.x - 7, mark.y - 7, mark.x + 7, mark.y + 7) for mark in marks]
    for mark in reversed(ordered):
        label = line(mark.label)
        label = label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"
        for x, y, anchor, box in _around(mark, _CHARACTER * len(label)):
            if label and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                write(svg, "text", label, x=round(x, 1), y=round(y, 1), text_anchor=anchor)
                break


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _around(mark: Mark, width: float) -> Iterator[tuple[float, float, str, Box]]:
    """Where a label fits beside a mark, inside the plot: its place, how it is aligned, and what it covers."""
    x, y, half = mark.x, mark.y, width / 2
    places = (
        (x + 11, y + 4, "start", x + 9),
        (x, y - 13, "middle", x - half),
        (x, y + 22, "middle", x - half),
        (x - 11, y + 4, "end", x - 11 - width),
        (x, y - 29, "middle", x - half),
        (x, y + 38, "middle", x - half),
    )
    for across, base, anchor, left in places:
        box = (left, base - _LINE + 3, left + width, base + 3)
        if box[0] >= LEFT and box[2] <= WIDTH - 2 and box[1] >= 20 and box[3] <= HEIGHT - BOTTOM + 2:
            yield across, base, anchor, box


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
