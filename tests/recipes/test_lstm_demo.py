"""The demo runs, and prints and draws what its card explains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from lq_plugin.recipes.lstm_demo.__main__ import measure


def test_it_prints_a_table_and_draws_a_plot(tmp_path: Path) -> None:
    files = ("--json", str(tmp_path / "figures.json"), "--plot", str(tmp_path / "plot.svg"))
    command = [sys.executable, "-m", "lq_plugin.recipes.lstm_demo", "--hidden-sizes", "8", "16", *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nn.LSTM(8, 8), 20 steps, batch 1" in done.stdout
    assert "INT8, onnxruntime" in done.stdout
    assert [each["hidden"] for each in json.loads((tmp_path / "figures.json").read_text())] == [8, 16]
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_figures_but_latency_are_the_same_every_time() -> None:
    first, second = measure(8), measure(8)
    assert (first.size_bytes, first.difference) == (second.size_bytes, second.difference)
    assert all(0 < difference < 0.1 * first.magnitude for difference in first.difference.values())
