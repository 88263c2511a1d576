"""What the benchmark of large models measures, on a tiny one, and what it says of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import large, large_tables


def test_a_cell_measures_every_step_and_the_artifact(tmp_path: Path) -> None:
    cell = large.Cell(layers=1, samples=8, format="pt2", vocabulary=50, width=32)
    found = large.measure(cell, tmp_path)
    peaks = [step["peak_memory_bytes"] for step in found["steps"].values()]
    assert list(found["steps"]) == ["model", "quantize", "export", "load"]
    assert peaks == sorted(peaks)
    assert found["sqnr_db"] > 20
    assert found["files"].keys() == {"artifact.json", "model.pt2"}
    report = large.report_of([{**asdict(cell), **found}], threads=1)
    assert "| 1 | 0 | 8 | pt2 | plain |" in large_tables.markdown(report, "large.svg")


def test_layers_are_not_copies_whose_weights_are_stored_once() -> None:
    first, second = large.Encoder(large.Cell(layers=2, samples=8, format="pt2", vocabulary=50, width=32)).layers
    assert not first.linear1.weight.equal(second.linear1.weight)


def test_a_known_cell_is_not_measured_again(tmp_path: Path) -> None:
    (tmp_path / f"{large.CELLS[0].name}.json").write_text('{"known": 1}')
    assert large.run(large.CELLS[0], tmp_path, threads=1) == {"known": 1}


def made(layers: int, seconds: float, algorithms: str = "plain") -> dict[str, Any]:
    """A cell with this much time and memory."""
    step = {"cpu_seconds": seconds / 2, "peak_memory_bytes": seconds * 2**30}
    steps = dict.fromkeys(("model", "quantize", "export", "load"), step)
    tried = [{"algorithm": "ranges", "outcome": "not_tried", "reason": "time", "seconds": 0, "peak_memory_bytes": None}]
    facts = {"parameters": 10**6, "sqnr_db": 30.0, "files": {"model.onnx": 10**6}, "steps_of_algorithms": tried}
    return {**asdict(large.Cell(layers, 32, "onnx", algorithms)), "steps": steps, **facts}


def test_the_report_says_how_far_from_linear_it_is_and_what_was_not_tried() -> None:
    error = {**asdict(large.Cell(9, 32, "pt2")), "error": "killed"}
    report = large.report_of([*(made(n, s) for n, s in ((2, 2), (6, 6), (10, 12))), made(2, 4, "auto"), error], 1)
    text = large_tables.markdown(report, "large.svg")
    assert "| peak memory, GiB: onnx | layers | 2–10 | -0.83 | 1.250 | 5.6% |" in text
    assert "**12.00**" in text
    assert "| 2 | ranges | not tried | 0 |  | time |" in text
    assert "9 layers as pt2 failed: killed" in text


def test_the_plot_has_a_line_for_each_lane_with_two_points() -> None:
    drawn = large_tables.plot(large.report_of([made(2, 2), made(6, 6), made(6, 8, "auto")], 1))
    assert drawn.count("<circle") == 4  # memory and seconds against layers
    assert drawn.count('class="limit"') == 1


def test_a_straight_line_is_found() -> None:
    assert large_tables.straight([(1, 3), (2, 5), (4, 9)]) == pytest.approx((1, 2, 0))
