"""The report on disk: JSON for each CPU, the document that is made from all of them, and its plots."""

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks import cells, durations
from benchmarks.cells import Plan
from benchmarks.command_line import RESULTS
from benchmarks.comparing import compare, settings, times
from benchmarks.latency_tables import has_vnni, markdown, name, told
from benchmarks.preparations import BATCHES, PREPARATIONS, THREADS
from benchmarks.reference_models import MODELS
from benchmarks.workers import ROOT
from lq_plugin import cpu
from lq_plugin.report.environment import environment
from lq_plugin.report.plots import STYLE, Bar, bars

DOCUMENT = ROOT / "docs" / "benchmarks.md"
OURS = "ours"  # label of its bars
SVG = "http://www.w3.org/2000/svg"

Result = dict[str, Any]


def report_of_this_cpu() -> Path:
    """Named after the best instructions for INT8 that it has."""
    return RESULTS / f"latency_{cpu.isa()[-1] if cpu.isa() else platform.machine()}.json"


def earlier() -> dict[Path, Result]:
    """The reports of full runs, one for each CPU, those with VNNI first."""
    found = {file: json.loads(file.read_text()) for file in sorted(RESULTS.glob("latency_*.json"))}
    return dict(sorted(found.items(), key=lambda each: has_vnni(each[1]), reverse=True))


def collected(plan: Plan) -> Result:
    """Every cell that is known and holds, asked for in this run or not."""
    found: dict[str, Result] = {}
    for model in MODELS:
        for batch in BATCHES:
            for threads in THREADS:
                if (cell := cells.known(model, batch, threads, plan)) is not None:
                    found.setdefault(model, {})[f"{batch}/{threads}"] = cell
    facts = asdict(environment()) | {"versions": cells.versions(), "machine": platform.machine()}
    return {
        "environment": facts,
        "rounds": plan.rounds,
        "seconds_per_turn": plan.seconds,
        "prepared": {model: prepared_settings(model, plan.keep) for model in found},
        "seconds": durations.known(plan.keep, []),
        "cells": found,
    }


def prepared_settings(model: str, keep: Path) -> Result:
    """What preparations recorded of themselves."""
    files = {name: keep / model / f"{name}.json" for name in PREPARATIONS}
    made = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    return {
        name: {key: found.get(key) for key in ("code", "settings", "errors", "error")} for name, found in made.items()
    }


def write(plan: Plan, out: Path | None) -> list[Path]:
    """Write this CPU's report, and the document with its plots.

    Args:
        plan: what was asked for.
        out: the report's file, whose document is beside it; by default the one of this CPU, for the document of all.
    """
    report, is_public = out or report_of_this_cpu(), out is None
    report.parent.mkdir(parents=True, exist_ok=True)
    content = collected(plan)
    report.write_text(json.dumps(content, indent=1) + "\n")
    document = DOCUMENT if is_public else report.with_suffix(".md")
    reports = earlier() if is_public else {report: content}
    plots = {document.parent / f"{file.stem}.svg": each for file, each in reports.items()}
    for file, each in plots.items():
        file.write_text(plot(each))
    document.write_text(markdown(list(reports.values()), [file.name for file in plots]))
    return [report, document, *plots]


def plot(report: Result) -> str:
    """Bars of every model: the fastest FP32, INT8 of others and ours, as shares of the time of FP32 eager.

    Of the largest batch and number of threads, with the CPU below.
    """
    setting = max(settings(report["cells"]), default=(0, 0))
    drawn = []
    for model, found in report["cells"].items():
        lanes = found.get("{}/{}".format(*setting), {"lanes": {}})["lanes"]
        drawn += shares(MODELS[model].label, lanes)
    title = (
        f"Time as a share of FP32 eager's; {told(setting)}; {name(report)} ({', '.join(report['environment']['isa'])})"
    )
    return standalone(
        bars(drawn, title, "Of every model the fastest FP32 runtime, other tools' INT8, and ours."), title
    )


def shares(label: str, lanes: Result) -> list[Bar]:
    """Three bars of a model, those that ran."""
    eager = times(lanes.get("fp32_eager", {}))
    if not eager:
        return []
    best = compare(lanes)
    named = {"FP32": best.fp32, "others": best.peer, OURS: best.ours}
    return [
        Bar(f"{label}: {kind}" if kind == "FP32" else kind, min(times(lanes[lane])) / min(eager), lane)
        for kind, lane in named.items()
        if lane is not None
    ]


def standalone(svg: str, caption: str) -> str:
    """A plot as a file of its own: with its style, ours in another colour, and its conditions as a line of text."""
    root = ElementTree.fromstring(svg)
    for bar in root.iter("g"):
        if bar.findtext("text") == OURS:
            bar.find("rect").set("class", "winner")
    height = int(root.get("height", "0")) + 24
    root.set("xmlns", SVG)
    root.set("height", str(height))
    root.set("viewBox", f"0 0 {root.get('width')} {height}")
    style = ElementTree.Element("style")
    style.text = STYLE
    root.insert(0, style)
    text = ElementTree.SubElement(root, "text", {"x": "8", "y": str(height - 8)})
    text.text = caption
    return ElementTree.tostring(root, encoding="unicode") + "\n"
