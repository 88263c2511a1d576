"""Run ``python -m lq_plugin.recipes.lstm_demo``: sizes, latency and difference of a small LSTM, float and INT8.

With ``--hidden-sizes 8 16 32`` it measures several widths, and with ``--plot FILE.svg`` it draws their speed-up.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import lq_plugin
from lq_plugin.artifacts import onnx
from lq_plugin.errors import require
from lq_plugin.evaluation import latency

INPUTS, STEPS, BATCH, SEED = 8, 20, 1, 0
LATENCY = lq_plugin.Latency(rounds=5, seconds=0.2)


@dataclass(frozen=True)
class Figures:
    """What was measured on one LSTM.

    Args:
        hidden: its width.
        size_bytes: by form: ``float``, ``torch`` and ``onnx``.
        latency_ms: by lane: ``torch float``, ``torch INT8``, ``onnxruntime float``, ``onnxruntime INT8``.
        difference: mean absolute difference of the outputs to float, by form.
        magnitude: mean absolute float output.
    """

    hidden: int
    size_bytes: dict[str, int]
    latency_ms: dict[str, float]
    difference: dict[str, float]
    magnitude: float


def measure(hidden: int) -> Figures:
    """Quantize one LSTM of ``nn.LSTM(8, hidden)``, export it, load it again and compare."""
    torch.manual_seed(SEED)
    model, x = nn.LSTM(INPUTS, hidden).eval(), torch.randn(STEPS, BATCH, INPUTS)
    candidate = lq_plugin.quantize(model, [x], "dynamic")
    with tempfile.TemporaryDirectory() as scratch:
        artifacts = lq_plugin.export(candidate, scratch, ["onnx"])
        folder = Path(scratch) / "float"
        folder.mkdir()
        onnx.export(candidate.reference, folder)
        factory = functools.partial(nn.LSTM, INPUTS, hidden)
        loaded = {name: lq_plugin.load(made.path, factory=factory) for name, made in artifacts.items()}
        lanes = {"onnxruntime float": ("onnx", folder), "onnxruntime INT8": ("onnx", artifacts["onnx"].path)}
        with torch.no_grad():
            here = {"torch float": lambda: model(x), "torch INT8": lambda: loaded["torch"](x)}
            timings = latency.measure(here, lanes, [x], LATENCY)
            reference = model(x)[0]
            difference = {name: (module(x)[0] - reference).abs().mean().item() for name, module in loaded.items()}
        sizes = {name: made.size_bytes for name, made in artifacts.items()}
    return Figures(
        hidden,
        {"float": sum(tensor.nbytes for tensor in model.state_dict().values()), **sizes},
        {name: timing.median for name, timing in timings.items() if timing.median is not None},
        difference,
        reference.abs().mean().item(),
    )


def table(figures: Figures) -> Table:
    """Float and INT8 side by side."""
    made = Table(title=f"nn.LSTM({INPUTS}, {figures.hidden}), {STEPS} steps, batch {BATCH}")
    for column in ("", "bytes", "of float", "ms", "speed-up", "difference"):
        made.add_column(column, justify="left" if not column else "right")
    for runtime, form in (("torch", "torch"), ("onnxruntime", "onnx")):
        base = figures.latency_ms[f"{runtime} float"]
        made.add_row(f"float, {runtime}", f"{figures.size_bytes['float']:,}", "1.00", f"{base:.3f}", "1.00×", "")
        size, ms = figures.size_bytes[form], figures.latency_ms[f"{runtime} INT8"]
        share, difference = size / figures.size_bytes["float"], figures.difference[form]
        made.add_row(
            f"INT8, {runtime}", f"{size:,}", f"{share:.2f}", f"{ms:.3f}", f"{base / ms:.2f}×", f"{difference:.5f}"
        )
    made.caption = f"Difference: mean absolute, of outputs whose mean absolute value is {figures.magnitude:.3f}"
    return made


def draw(measured: Sequence[Figures], file: Path) -> None:
    """Draw speed-up and size over the width."""
    plots = require("matplotlib.pyplot", "recipes", "--plot")
    widths = [figures.hidden for figures in measured]
    drawing, (speed, size) = plots.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for runtime, form, color in (("onnxruntime", "onnx", "tab:blue"), ("torch", "torch", "tab:orange")):
        times = [figures.latency_ms for figures in measured]
        speed.plot(
            widths, [t[f"{runtime} float"] / t[f"{runtime} INT8"] for t in times], "o-", color=color, label=runtime
        )
        sizes = [figures.size_bytes for figures in measured]
        size.plot(widths, [each[form] / each["float"] for each in sizes], "o-", color=color, label=runtime)
    for axes, title in ((speed, "speed-up of INT8 over float"), (size, "size of INT8, share of float")):
        axes.axhline(1, color="gray", linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel="hidden size", title=title, xticks=widths)
        axes.set_xticklabels(widths)
        axes.minorticks_off()
        axes.legend()
    speed.set_yticks([0.25, 0.5, 1, 2, 4], ["0.25×", "0.5×", "1×", "2×", "4×"])
    size.set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
    drawing.savefig(file, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m lq_plugin.recipes.lstm_demo", description=__doc__)
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=[8], metavar="N", help="widths (default: 8)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the figures")
    options = parser.parse_args(arguments)
    measured = [measure(hidden) for hidden in track(options.hidden_sizes, "measuring", transient=True)]
    for figures in measured:
        Console().print(table(figures))
    if options.json:
        options.json.write_text(json.dumps([asdict(figures) for figures in measured], indent=1) + "\n")
    if options.plot:
        draw(measured, options.plot)


if __name__ == "__main__":
    main()
