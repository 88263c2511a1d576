"""The demo runs, and prints and draws what its card explains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lq_plugin import Latency
from lq_plugin.recipes.lstm_demo import __main__ as demo


@pytest.fixture(scope="module")
def quick() -> Any:
    """A shorter measurement than the demo's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "LATENCY", Latency(rounds=1, seconds=0.01))
        yield


@pytest.mark.usefixtures("quick")
def test_it_prints_a_table_draws_a_plot_and_repeats_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--json", str(tmp_path / "figures.json"), "--plot", str(tmp_path / "plot.svg"))
    demo.main(["--hidden-sizes", "8", "16", *files])
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "nn.LSTM(8, 8), 20 steps, batch 1" in printed.out
    assert "INT8, onnxruntime" in printed.out
    first, second = json.loads((tmp_path / "figures.json").read_text())
    assert (first["hidden"], second["hidden"]) == (8, 16)
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    again = demo.measure(8)
    assert (again.size_bytes, again.difference) == (first["size_bytes"], first["difference"])
    assert all(0 < difference < 0.1 * again.magnitude for difference in again.difference.values())
