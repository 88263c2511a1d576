"""The table at the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lq_plugin.printing import add_row, brief, show_lines, terminal
from lq_plugin.selection import label


def show(manifest: Mapping[str, Any], folder: Path, console: Console | None = None) -> None:
    """Print a manifest: accuracy and cost of FP32 and of every artifact, what stayed float, and what went wrong.

    Args:
        manifest: as returned by ``manifest.build``.
        folder: where it lies, for the last line.
        console: where to print; the terminal by default.
    """
    console = console or terminal()
    for table in (_accuracy(manifest), _cost(manifest)):
        if table.row_count:
            console.print(table)
    show_lines(console, *_problems(manifest), *_coverage(manifest), f"Manifest: {folder / 'manifest.json'}")


Group = tuple[Mapping[str, Any], list[Mapping[str, Any]]]


def _groups(manifest: Mapping[str, Any]) -> list[Group]:
    """Every FP32 model with the artifacts that are compared with it: those of the same target and weights."""
    groups: list[Group] = [(manifest["fp32"], [])]
    for entry in manifest["artifacts"]:
        fp32 = entry["fp32"] or manifest["fp32"]
        found = next((entries for reference, entries in groups if reference == fp32), None)
        if found is None:
            groups.append((fp32, found := []))
        found.append(entry)
    return groups


def _accuracy(manifest: Mapping[str, Any]) -> Table:
    table = _table("Metrics of the reloaded artifacts", ("FP32", "INT8", "difference"))
    for fp32, entries in _groups(manifest):
        for name, reference in fp32["metrics"].items():
            table.add_section()
            add_row(table, name, f"{reference:.4f}")
            for entry in entries:
                if name in entry["metrics"]:
                    figures = f"{entry['metrics'][name]:.4f}", f"{entry['delta'][name]:+.4f}"
                    add_row(table, f"  {label(entry)}", "", *figures)
    return table


def _cost(manifest: Mapping[str, Any]) -> Table:
    table = _table("Fidelity, size and latency", ("SQNR dB", "MB", "ms", "vs torch", "vs best", "status"))
    for fp32, entries in _groups(manifest):
        table.add_section()
        best = min(fp32["latency_ms"].values(), default=None)
        for runtime, latency in fp32["latency_ms"].items():
            size = _megabytes(fp32["size_bytes"]) if runtime == "torch" else ""
            ratio = f"{fp32['latency_ms']['torch'] / latency:.2f}×" if "torch" in fp32["latency_ms"] else "–"
            fastest = "fastest FP32" if latency == best else ""
            add_row(table, f"FP32 {runtime}", "", size, f"{latency:.3f}", ratio, "", fastest)
        for entry in entries:
            selected = ", selected" if label(entry) == manifest["selected"] else ""
            add_row(table, label(entry), *_measures(entry), entry["status"] + selected)
    return table


def _measures(entry: Mapping[str, Any]) -> list[str]:
    latency, speedup, sqnr = entry["latency_ms"], entry["speedup"], entry["sqnr_db"]
    return [
        "–" if sqnr is None else f"{sqnr:.1f}",
        _megabytes(entry["size_bytes"]),
        f"{latency['median']:.3f}" if latency else "–",
        f"{speedup['vs_torch_fp32']:.2f}×" if speedup else "–",
        f"{speedup['vs_best_fp32']:.2f}×" if speedup else "–",
    ]


def _problems(manifest: Mapping[str, Any]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for entry in manifest["artifacts"]:
        if entry["error"]:
            reasons.setdefault(entry["error"], []).append(label(entry))
    # Whole they were logged when they happened, and stand in the manifest.
    lines = [f"{', '.join(labels)}: {brief(error)}" for error, labels in reasons.items()]
    slower, larger = [], []
    for fp32, entries in _groups(manifest):
        lines += [f"FP32 {runtime} was not measured: {error}" for runtime, error in fp32["errors"].items()]
        for entry in entries:
            if entry["speedup"] is not None and entry["speedup"]["vs_best_fp32"] < 1:
                slower.append(label(entry))
            if entry["size_bytes"] is not None and entry["size_bytes"] > (fp32["size_bytes"] or float("inf")):
                larger.append(label(entry))
    if slower:
        lines.append(f"Slower than the fastest FP32 runtime: {', '.join(slower)}")
    if larger:
        lines.append(f"Larger than FP32: {', '.join(larger)}")
    return lines


def _coverage(manifest: Mapping[str, Any]) -> list[str]:
    lines: dict[str, list[str]] = {}
    for entry in manifest["artifacts"]:
        if entry["path"] is not None:
            counts = Counter(f"{op['op']} ({op['reason']})" for op in entry["float_ops"])
            stays = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"
            text = f"{len(entry['quantized_ops'])} operators in INT8; float: {stays}"
            lines.setdefault(text, []).append(label(entry))
    return [f"{', '.join(labels)}: {text}" for text, labels in lines.items()]


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True, min_width=18)
    for column in columns:
        table.add_column(column, justify="left" if column == "status" else "right", no_wrap=True)
    return table


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:.2f}"
