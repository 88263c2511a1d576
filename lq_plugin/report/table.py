"""The table at the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from lq_plugin.artifacts.base import FORMATS
from lq_plugin.printing import add_row, counted, show_lines, terminal
from lq_plugin.report import formats, run_page
from lq_plugin.report.board import groups
from lq_plugin.report.manifest import EAGER, FILE, Entry, Manifest, Speedup
from lq_plugin.report.problems import problems


def show(manifest: Manifest, folder: Path, console: Console | None = None) -> None:
    """Print a manifest: accuracy and cost of FP32 and of every artifact, what stayed float, and what went wrong.

    Args:
        manifest: of a run.
        folder: where it lies, for the last line.
        console: where to print; the terminal by default.
    """
    console = console or terminal()
    for table in (_accuracy(manifest), _cost(manifest)):
        if table.row_count:
            console.print(table)
    place = folder / FILE
    where = f"Manifest: {place}" if place.is_file() else f"There is no manifest: {place} could not be written"
    page = [f"Report: {folder / run_page.FILE}"] if (folder / run_page.FILE).is_file() else []
    show_lines(console, *problems(manifest), *_coverage(manifest), *page, where, *_next(manifest, folder))


def _next(manifest: Manifest, folder: Path) -> list[str]:
    """What to do with the artifact that was selected; what to do without one, the lines before say."""
    chosen = next((entry for entry in manifest.artifacts if entry.label == manifest.selected), None)
    if chosen is None or chosen.path is None:
        return []
    factory = ", factory=…" if FORMATS[chosen.format].rebuild else ""
    return [f"Use it: lq_plugin.load({str(folder / chosen.path)!r}{factory})"]


def _accuracy(manifest: Manifest) -> Table:
    table = _table("Metrics of the reloaded artifacts", ("FP32", "INT8", "difference"))
    for fp32, entries in groups(manifest):
        for name, reference in fp32.metrics.items():
            table.add_section()
            add_row(table, name, formats.metric(reference))
            for entry in entries:
                if name in entry.metrics:
                    add_row(
                        table,
                        f"  {entry.label}",
                        "",
                        formats.metric(entry.metrics[name]),
                        formats.change(entry.delta[name]),
                    )
    return table


def _cost(manifest: Manifest) -> Table:
    table = _table("Fidelity, size and latency", ("SQNR dB", "size", "ms", "vs torch", "vs best", "status"))
    for fp32, entries in groups(manifest):
        table.add_section()
        for runtime, latency in fp32.latency_ms.items():
            size = formats.size(fp32.size_bytes) if runtime == EAGER else ""
            ratio = formats.times(fp32.speedup(latency).vs_torch_fp32)
            fastest = "fastest FP32" if latency == fp32.best else ""
            add_row(table, f"FP32 {runtime}", "", size, formats.milliseconds(latency), ratio, "", fastest)
        for entry in entries:
            selected = ", selected" if entry.label == manifest.selected else ""
            add_row(table, entry.label, *_measures(entry), entry.status + selected)
    return table


def _measures(entry: Entry) -> list[str]:
    speedup = entry.speedup or Speedup()
    return [
        formats.decibels(entry.sqnr_db),
        formats.size(entry.size_bytes),
        formats.milliseconds(entry.median),
        formats.times(speedup.vs_torch_fp32),
        formats.times(speedup.vs_best_fp32),
    ]


def _coverage(manifest: Manifest) -> list[str]:
    lines: dict[str, list[str]] = {}
    for entry in manifest.artifacts:
        if entry.path is not None:
            counts = Counter(f"{op.op} ({op.reason})" for op in entry.float_ops)
            stays = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"
            text = f"{counted(len(entry.quantized_ops), 'operator')} in INT8; float: {stays}"
            if entry.kernels and entry.kernels.fell_back:
                fallen = ", ".join(f"{count} {kind}" for kind, count in entry.kernels.fell_back.items())
                text += f"; runs in float on {entry.runtime}: {fallen}"
            lines.setdefault(text, []).append(entry.label)
    return [f"{', '.join(labels)}: {text}" for text, labels in lines.items()]


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True, min_width=18)
    for column in columns:
        table.add_column(column, justify="left" if column == "status" else "right", no_wrap=True)
    return table
