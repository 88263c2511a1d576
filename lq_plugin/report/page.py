"""The leaderboard as one static page: no network, no script, readable in light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from lq_plugin.errors import require
from lq_plugin.printing import figure, plain
from lq_plugin.report.board import Leaderboard, Row
from lq_plugin.report.details import Section
from lq_plugin.report.plots import STYLE, Axis, decades, steps

TEMPLATE = "leaderboard.html.jinja"
WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 20, 48  # margins, where the ticks' labels are


@dataclass(frozen=True)
class Mark:
    """One point of a plot.

    Args:
        x: in pixels.
        y: in pixels.
        kind: ``winner``, ``front``, ``rest`` or ``reference``.
        number: of the row in the table.
        title: what a reader sees who points at it.
    """

    x: float
    y: float
    kind: str
    number: int | None
    title: str


@dataclass(frozen=True)
class Plot:
    """Latency against accuracy of the artifacts that are comparable.

    Args:
        title: how they were measured.
        vertical: what the vertical axis shows.
        xticks: positions and labels.
        yticks: positions and labels.
        marks: FP32 first, so that artifacts are drawn over it.
    """

    title: str
    vertical: str
    xticks: Sequence[tuple[float, str]]
    yticks: Sequence[tuple[float, str]]
    marks: Sequence[Mark]


def render(board: Leaderboard, distinctions: Mapping[str, str], details: Mapping[str, Sequence[Section]]) -> str:
    """Return the page.

    Args:
        board: what to show.
        distinctions: what sets each run apart.
        details: what INT8 costs in each run, and what was done about it.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", "report", "The leaderboard's page")
    numbered = list(enumerate(board.ranked, start=1))
    page = _template(jinja2).render(
        board=board,
        rows=numbered,
        runs=len({job.run for job in board.jobs}),
        distinctions=distinctions,
        metrics=list(dict.fromkeys(name for row in (*board.fp32, *board.artifacts) for name in row.entry.metrics)),
        cpus=list(dict.fromkeys(row.cpu for row in board.artifacts)),
        plots=plots(numbered, board.fp32),
        details=details,
        style=STYLE,
        size=(WIDTH, HEIGHT),
        area=(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
    )
    return str(page)


@cache
def _template(jinja2: ModuleType) -> Any:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        finalize=_text,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, "zip": zip}
    return environment.get_template(TEMPLATE)


def _text(value: Any) -> Any:
    """Every text as it is: a browser, too, obeys characters that change the direction of writing."""
    is_markup = hasattr(value, "__html__")  # made by us: an SVG
    return plain(value, keep="\n\t") if isinstance(value, str) and not is_markup else value


def plots(rows: Sequence[tuple[int, Row]], fp32: Sequence[Row]) -> list[Plot]:
    """Return one plot for each setting in which something was measured."""
    measured = [(number, row) for number, row in rows if row.objectives]
    settings = dict.fromkeys(row.setting for _, row in measured)
    return [
        _plot(
            [(number, row) for number, row in measured if row.setting == setting],
            [row for row in fp32 if row.setting == setting and row.accuracy is not None],
        )
        for setting in settings
    ]


def _plot(rows: Sequence[tuple[int, Row]], fp32: Sequence[Row]) -> Plot:
    first = rows[0][1]
    metric, mode = first.budget.metric, first.budget.mode
    points = [(row, None) for row in fp32] + [(row, number) for number, row in reversed(rows)]
    across = Axis([math.log10(row.entry.median or 1) for row, _ in points], LEFT, WIDTH - RIGHT)
    # Accuracy is a cost here: better is up, whatever the metric's direction.
    up = Axis([row.accuracy or 0.0 for row, _ in points], TOP, HEIGHT - BOTTOM)
    return Plot(
        title=f"{first.cpu}, batch size {first.batch_size}, threads: {first.threads}",
        vertical=str(metric) if mode else f"difference of {metric} from FP32",
        xticks=[(across.at(math.log10(t)), f"{t:g}") for t in decades(10**across.low, 10**across.high)],
        yticks=[(up.at(t), _shown(t, mode)) for t in steps(up.low, up.high)],
        marks=[
            Mark(
                across.at(math.log10(row.entry.median or 1)), up.at(row.accuracy or 0.0), _kind(row), number, _told(row)
            )
            for row, number in points
        ],
    )


def _kind(row: Row) -> str:
    if row.is_fp32:
        return "reference"
    return "winner" if row.winner else "front" if row.pareto else "rest"


def _shown(cost: float, mode: str | None) -> str:
    """Accuracy as a cost, back in the metric's terms."""
    return f"{100 * cost:g} %" if mode is None else f"{-cost + 0.0 if mode == 'max' else cost:g}"


def _told(row: Row) -> str:
    entry, metric = row.entry, row.budget.metric
    size = "" if entry.size_bytes is None else f", {entry.size_bytes / 1e6:.2f} MB"
    value = figure(entry.metrics.get(metric or ""))
    return f"{row.run}: {row.label}, {metric} {value}, {figure(entry.median, '.3f')} ms{size}"
