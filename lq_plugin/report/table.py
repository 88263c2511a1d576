"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def note(text: str) -> None:
    """Say what long work is going on."""
    Console().print(f"lq_plugin: {text} …", markup=False, highlight=False)


def show(manifest: Mapping[str, Any], folder: Path, console: Console | None = None) -> None:
    """Print a manifest: FP32 first, then every artifact with its difference to it.

    Args:
        manifest: as returned by ``manifest.build``.
        folder: where it lies, for the last line.
        console: where to print; the terminal by default.
    """
    console = console or Console()
    fp32 = manifest["fp32"]
    names = list(fp32["metrics"])
    table = Table(title="INT8 artifacts, each reloaded from disk and measured")
    table.add_column("artifact", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for header in ("SQNR dB", "size MB", "latency ms", "vs FP32", "status"):
        table.add_column(header, justify="right")
    best = min(fp32["latency_ms"].values(), default=None)
    for runtime, latency in fp32["latency_ms"].items():
        metrics = [_number(fp32["metrics"][name], 4) for name in names] if runtime == "torch" else [""] * len(names)
        size = _megabytes(fp32["size_bytes"]) if runtime == "torch" else ""
        note = "fastest FP32" if latency == best else ""
        table.add_row(f"FP32 {runtime}", *metrics, "", size, _number(latency, 3), "", note)
    table.add_section()
    for entry in manifest["artifacts"]:
        label = f"{entry['candidate']}/{entry['format']}"
        chosen = " ◀ selected" if label == manifest["selected"] else ""
        table.add_row(label, *(_metric(entry, name) for name in names), *_measures(entry), entry["status"] + chosen)
    console.print(table)
    for entry in manifest["artifacts"]:
        if entry["error"]:
            console.print(f"{entry['candidate']}/{entry['format']}: {entry['error']}", markup=False, highlight=False)
    console.print(_coverage(manifest), markup=False, highlight=False)
    console.print(f"Manifest: {folder}/manifest.json", markup=False, highlight=False, soft_wrap=True)


def _metric(entry: Mapping[str, Any], name: str) -> str:
    if name not in entry["metrics"]:
        return "–"
    return f"{_number(entry['metrics'][name], 4)} ({entry['delta'][name]:+.4f})"


def _measures(entry: Mapping[str, Any]) -> list[str]:
    latency, speedup = entry["latency_ms"], entry["speedup"]
    ratio = f"{speedup['vs_torch_fp32']:.2f}× (best {speedup['vs_best_fp32']:.2f}×)" if speedup else "–"
    sqnr = entry["sqnr_db"]
    return [
        _number(sqnr, 1) if sqnr is not None else "–",
        _megabytes(entry["size_bytes"]),
        _number(latency["median"], 3) if latency else "–",
        ratio,
    ]


def _coverage(manifest: Mapping[str, Any]) -> str:
    lines = []
    for entry in manifest["artifacts"]:
        if entry["path"] is not None:
            total = len(entry["quantized_ops"])
            reasons = sorted({f"{op['op']} ({op['reason']})" for op in entry["float_ops"]})
            stay = f"; float: {', '.join(reasons)}" if reasons else "; nothing left float"
            lines.append(f"{entry['candidate']}/{entry['format']}: {total} operators in INT8{stay}")
    return "\n".join(lines)


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def _megabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e6:.2f}"
