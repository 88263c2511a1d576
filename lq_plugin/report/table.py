"""The table at the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def note(text: str) -> None:
    """Say what is going on, or where something was taken from or left."""
    Console().print(f"lq_plugin: {text}", markup=False, highlight=False, soft_wrap=True)


def show(manifest: Mapping[str, Any], folder: Path, console: Console | None = None) -> None:
    """Print a manifest: accuracy and cost of FP32 and of every artifact, what stayed float, and what went wrong.

    Args:
        manifest: as returned by ``manifest.build``.
        folder: where it lies, for the last line.
        console: where to print; the terminal by default.
    """
    console = console or Console()
    for table in (_accuracy(manifest), _cost(manifest)):
        console.print(table)
    for line in (*_problems(manifest), *_coverage(manifest), f"Manifest: {folder / 'manifest.json'}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _accuracy(manifest: Mapping[str, Any]) -> Table:
    table = _table("Metrics of the reloaded artifacts", ("FP32", "INT8", "difference"))
    for name, reference in manifest["fp32"]["metrics"].items():
        table.add_section()
        table.add_row(name, f"{reference:.4f}")
        for entry in manifest["artifacts"]:
            if name in entry["metrics"]:
                table.add_row(f"  {_label(entry)}", "", f"{entry['metrics'][name]:.4f}", f"{entry['delta'][name]:+.4f}")
    return table


def _cost(manifest: Mapping[str, Any]) -> Table:
    fp32 = manifest["fp32"]
    table = _table("Fidelity, size and latency", ("SQNR dB", "MB", "ms", "vs torch", "vs best", "status"))
    best = min(fp32["latency_ms"].values(), default=None)
    for runtime, latency in fp32["latency_ms"].items():
        size = _megabytes(fp32["size_bytes"]) if runtime == "torch" else ""
        ratio = fp32["latency_ms"]["torch"] / latency
        note = "fastest FP32" if latency == best else ""
        table.add_row(f"FP32 {runtime}", "", size, f"{latency:.3f}", f"{ratio:.2f}×", "", note)
    for entry in manifest["artifacts"]:
        selected = ", selected" if _label(entry) == manifest["selected"] else ""
        table.add_row(_label(entry), *_measures(entry), entry["status"] + selected)
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
    lines = [f"{_label(entry)}: {entry['error']}" for entry in manifest["artifacts"] if entry["error"]]
    slower = [
        _label(entry)
        for entry in manifest["artifacts"]
        if entry["speedup"] is not None and entry["speedup"]["vs_best_fp32"] < 1
    ]
    larger = [
        _label(entry)
        for entry in manifest["artifacts"]
        if entry["size_bytes"] is not None and entry["size_bytes"] > (manifest["fp32"]["size_bytes"] or float("inf"))
    ]
    if not manifest["fp32"]["metrics"]:
        lines.append("No metric is known, so no budget was judged: log one in validation_step, or give metrics={…}.")
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
            lines.setdefault(text, []).append(_label(entry))
    return [f"{', '.join(labels)}: {text}" for text, labels in lines.items()]


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True, min_width=18)
    for column in columns:
        table.add_column(column, justify="left" if column == "status" else "right", no_wrap=True)
    return table


def _label(entry: Mapping[str, Any]) -> str:
    return f"{entry['candidate']}/{entry['format']}"


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:.2f}"
