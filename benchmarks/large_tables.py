"""The report of ``python -m benchmarks.large`` in Markdown, and its plot."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from benchmarks.command_line import markdown_table
from lq_plugin.report.plots import STYLE, Axis, steps

BOUND = 10.0  # GiB, for 350 million parameters
GIB = 2**30
EXTERNAL = "model.onnx.data"
COLOURS = {"onnx": "#3b82d6", "openvino": "#1f9d4d", "pt2": "#b26a00", "onnx, algorithms": "#9b4dca"}
PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, BOTTOM = 400, 260, 56, 56, 44

Result = dict[str, Any]
Points = list[tuple[float, float]]


def memory(cell: Result) -> float:
    """Peak memory in GiB, from the model to the loaded artifact."""
    return float(cell["steps"]["load"]["peak_memory_bytes"]) / GIB


def seconds(cell: Result) -> float:
    """CPU seconds of quantizing and exporting."""
    return float(cell["steps"]["quantize"]["cpu_seconds"] + cell["steps"]["export"]["cpu_seconds"])


@dataclass(frozen=True)
class Panel:
    """One of the plots."""

    title: str
    axis: str
    value: Callable[[Result], float]
    bound: float | None


PANELS = (
    Panel("peak memory, GiB", "layers", memory, BOUND),
    Panel("CPU seconds to quantize and export", "layers", seconds, None),
    Panel("peak memory, GiB", "samples", memory, BOUND),
    Panel("CPU seconds to quantize and export", "samples", seconds, None),
)


def lane(cell: Result) -> str:
    """Names a line of the plots."""
    name = cell["format"] if cell["algorithms"] == "plain" else f"{cell['format']}, algorithms"
    return name if EXTERNAL not in cell["files"] else f"{name}, beyond 2 GB"


def lines(cells: Iterable[Result], axis: str, value: Callable[[Result], float]) -> dict[str, Points]:
    """What is measured against layers or samples, where the other is the same: points by lane, two or more."""
    other = "samples" if axis == "layers" else "layers"
    found: dict[tuple[str, int], Points] = {}
    for cell in cells:
        found.setdefault((lane(cell), cell[other]), []).append((cell[axis], value(cell)))
    return {name: sorted(points) for (name, _), points in found.items() if len(points) > 1}


def straight(points: Points) -> tuple[float, float, float]:
    """Offset and slope of the straight line through points, and their largest distance as a share of the largest."""
    mean_x, mean_y = (statistics.fmean(each) for each in zip(*points, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    offset = mean_y - slope * mean_x
    return offset, slope, max(abs(offset + slope * x - y) for x, y in points) / max(y for _, y in points)


def markdown(report: Result, plot_file: str) -> str:
    """The report as Markdown tables; more memory than the bound is in bold."""
    known = sorted(measured(report), key=lambda cell: (lane(cell), cell["layers"], cell["samples"]))
    facts = report["environment"]
    text = [
        "# Large models",
        "",
        f"A transformer encoder of width 1,024 with random weights, {report['batch']} sequences of {report['length']} "
        f"tokens in a batch; {report['threads']} thread(s), {facts['cpu']} ({', '.join(facts['isa'])}); torch "
        f"{facts['versions']['torch']}. Each row is a process of its own. Memory: the peak of what is resident in it "
        "(`getrusage`), until the step had ended, with the libraries in it. Seconds are CPU time. The bound for 350 "
        f"million parameters is {BOUND:g} GiB.",
        "",
        f"![memory and time against layers and samples]({plot_file})",
        "",
        *markdown_table(HEADS, map(row, known)),
        "",
        *linearity(known),
    ]
    tried = [(cell, step) for cell in known for step in cell["steps_of_algorithms"]]
    if tried:
        text += ["", *markdown_table(("layers", "algorithm", "outcome", "s", "GiB", "why not"), map(step_row, tried))]
    text += [f"- {cell['layers']} layers as {cell['format']} failed: {cell['error']}" for cell in failed(report)]
    if report.get("missing"):
        text += ["", f"Not measured yet (layers-samples-format-algorithms): {', '.join(report['missing'])}."]
    return "\n".join(text) + "\n"


def measured(report: Result) -> list[Result]:
    return [cell for cell in report["cells"] if "error" not in cell]


def failed(report: Result) -> list[Result]:
    return [cell for cell in report["cells"] if "error" in cell]


HEADS = (
    *("layers", "parameters, millions", "samples", "format", "algorithms", "s to quantize", "s to export", "s to load"),
    *("GiB: model", "quantized", "exported", "loaded and run", "MB on disk", "SQNR dB"),
)


def row(cell: Result) -> Iterator[str]:
    """One cell."""
    steps = cell["steps"]
    yield from (str(cell["layers"]), f"{cell['parameters'] / 1e6:.0f}", str(cell["samples"]))
    yield f"{cell['format']} + {EXTERNAL}" if EXTERNAL in cell["files"] else cell["format"]
    yield cell["algorithms"]
    yield from (f"{steps[name]['cpu_seconds']:.1f}" for name in ("quantize", "export", "load"))
    for name in ("model", "quantize", "export", "load"):
        peak = steps[name]["peak_memory_bytes"] / GIB
        yield f"**{peak:.2f}**" if peak > BOUND else f"{peak:.2f}"
    yield f"{sum(cell['files'].values()) / 1e6:.0f}"
    yield f"{cell['sqnr_db']:.1f}"


def step_row(given: tuple[Result, Result]) -> Iterator[str]:
    """What became of one algorithm."""
    cell, step = given
    yield from (str(cell["layers"]), step["algorithm"], step["outcome"].replace("_", " "), f"{step['seconds']:.0f}")
    yield f"{step['peak_memory_bytes'] / GIB:.2f}" if step["peak_memory_bytes"] else ""
    yield step["reason"]


def linearity(cells: Sequence[Result]) -> list[str]:
    """How far the points are from a straight line."""
    rows = []
    for panel in PANELS:
        for name, points in lines(cells, panel.axis, panel.value).items():
            offset, slope, distance = straight(points)
            ends = f"{points[0][0]:g}–{points[-1][0]:g}"
            rows.append(
                (f"{panel.title}: {name}", panel.axis, ends, f"{offset:.2f}", f"{slope:.3f}", f"{distance:.1%}")
            )
    heads = ("straight line", "against", "from–to", "offset", "for each", "farthest point")
    return markdown_table(heads, rows) if rows else []


def plot(report: Result) -> str:
    """Memory and time, against layers and against samples: one line a format."""
    known = measured(report)
    width, height = 2 * PANEL_WIDTH, 2 * PANEL_HEIGHT
    box = {"viewBox": f"0 0 {width} {height}", "width": str(width), "height": str(height)}
    svg = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "class": "plot", "role": "img", **box})
    SubElement(svg, "title").text = "Memory and time of quantizing a large model"
    SubElement(svg, "style").text = STYLE
    for number, panel in enumerate(PANELS):
        place = f"translate({number % 2 * PANEL_WIDTH} {number // 2 * PANEL_HEIGHT})"
        _draw(SubElement(svg, "g", {"transform": place}), panel, lines(known, panel.axis, panel.value))
    return tostring(svg, encoding="unicode") + "\n"


def _draw(group: Element, panel: Panel, drawn: dict[str, Points]) -> None:
    """One panel; both axes begin at zero, so that a straight line tells the share that grows."""
    if not drawn:
        return
    across = Axis([0.0, *(x for points in drawn.values() for x, _ in points)], LEFT, PANEL_WIDTH - 20)
    highest = [0.0, *(y for points in drawn.values() for _, y in points), *([panel.bound] if panel.bound else [])]
    up = Axis(highest, PANEL_HEIGHT - BOTTOM, TOP)
    for x in sorted({x for points in drawn.values() for x, _ in points}):
        _text(group, f"{x:g}", across.at(x), up.start + 16, "middle")
    for y in steps(up.low, up.high):
        _line(group, "grid", [(across.start, up.at(y)), (across.end, up.at(y))])
        _text(group, f"{y:g}", across.start - 6, up.at(y) + 4, "end")
    if panel.bound:
        _line(group, "limit", [(across.start, up.at(panel.bound)), (across.end, up.at(panel.bound))])
    _text(group, panel.axis, across.end, up.start + 34, "end")
    _text(group, panel.title, across.start, 16)
    left = float(LEFT)
    for name, points in drawn.items():
        colour = f"stroke: {COLOURS[name]}; fill: none; stroke-width: 2"
        places = [(across.at(x), up.at(y)) for x, y in points]
        _line(group, "joined", places, colour)
        for (x, y), place in zip(points, places, strict=True):
            mark = SubElement(group, "circle", {"cx": str(place[0]), "cy": str(place[1]), "r": "3.5"})
            mark.set("style", f"fill: {COLOURS[name]}")
            SubElement(mark, "title").text = f"{name}: {x:g} {panel.axis}, {y:.2f}"
        _line(group, "joined", [(left, 34), (left + 14, 34)], colour)
        _text(group, name, left + 18, 38)
        left += 32 + 6.5 * len(name)


def _line(group: Element, kind: str, places: Points, style: str = "") -> None:
    points = " ".join(f"{x},{y}" for x, y in places)
    SubElement(group, "polyline", {"class": kind, "points": points, **({"style": style} if style else {})})


def _text(group: Element, text: str, x: float, y: float, anchor: str = "start") -> None:
    SubElement(group, "text", {"x": str(x), "y": str(y), "text-anchor": anchor}).text = text
