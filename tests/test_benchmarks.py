"""What the benchmark says of measured times; that a cell is measured at all is checked by ``long/benchmarks.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import comparing, durations, methods, reports
from benchmarks.command_line import RESULTS
from benchmarks.latency_tables import has_vnni, markdown
from benchmarks.reference_models import MODELS
from benchmarks.reports import plot


def lane(*medians: float, **facts: Any) -> dict[str, Any]:
    """A lane that took turns, with these medians in milliseconds."""
    turns = [{"median_ms": ms, "p90_ms": 2 * ms, "calls": 3, "peak_memory_bytes": 10**6} for ms in medians]
    made = {"sqnr_db": 40.0, "size_bytes": 10**6, "kernels": {"int8": 4, "float": 1}, "build_cpu_seconds": 1.0}
    return {"rounds": turns, **made, "build_peak_memory_bytes": 10**6, **facts}


def report(lanes: dict[str, Any], isa: tuple[str, ...] = ("avx2", "avx512_vnni")) -> dict[str, Any]:
    environment = {"cpu": "a CPU", "isa": isa, "cores": 2, "machine": "x86_64", "versions": {"torch": "2"}}
    cells = {"resnet18": {"1/2": {"lanes": lanes}}}
    return {"environment": environment, "rounds": 3, "seconds_per_turn": 0.3, "cells": cells}


LANES = {
    "fp32_eager": lane(8, 8, 8),
    "fp32_ort": lane(4, 4, 4),
    "ort_static": lane(2, 4, 2),
    "nncf": {"error": "No module named 'nncf'"},
    "ours_onnx": lane(2.2, 4.4, 2.2),
    "ours_openvino": lane(9, 9, 9),
}


def test_the_fastest_of_each_kind_are_compared_within_rounds() -> None:
    found = comparing.compare(LANES)
    assert (found.fp32, found.peer, found.ours) == ("fp32_ort", "ort_static", "ours_onnx")
    assert found.ratio is not None
    assert (found.ratio.within, found.ratio.quietest) == (pytest.approx(1.1), pytest.approx(1.1))
    assert found.ratio.is_above


def test_where_others_have_no_int8_their_fp32_counts() -> None:
    found = comparing.compare({name: LANES[name] for name in ("fp32_ort", "nncf", "ours_onnx")})
    assert found.peer == "fp32_ort"


def test_what_was_not_measured_is_named() -> None:
    (told,) = [line for line in markdown([report(LANES)], ["a.svg"]).splitlines() if "Not measured: " in line]
    assert "; MobileNetV2, 224²; " in told
    assert "ResNet-18" not in told


def test_what_was_chosen_by_noise_is_judged_by_other_rounds() -> None:
    found = comparing.compare({"fp32_ort": lane(4, 4, 4), "ours_onnx": lane(3, 6, 3)})
    assert (found.selected, found.selected_ratio) == ("ours_onnx", 1.5)


def test_nothing_is_selected_where_fp32_is_faster() -> None:
    assert comparing.compare({"fp32_ort": lane(4, 4), "ours_onnx": lane(5, 3)}).selected is None


def test_lengths_of_one_model_weigh_as_one() -> None:
    rows = [("bert_32", 4.0), ("bert_128", 4.0), ("bert_512", 4.0), ("mlp", 1.0)]
    assert comparing.geometric_mean(rows) == pytest.approx(2.0)


def test_the_document_has_each_cpu_side_by_side_and_every_failure() -> None:
    plain = report({name: LANES[name] for name in ("fp32_ort", "ours_onnx")}, isa=("avx2",))
    text = markdown([report(LANES), plain], ["one.svg", "two.svg"])
    assert "| ours / others | batch 1, 2 threads, VNNI | batch 1, 2 threads, no VNNI |" in text
    assert "| ResNet-18, 224² | **1.10 (1.10)** | 0.55 (0.55) |" in text
    assert "NNCF on OpenVINO failed: No module named 'nncf'" in text


def test_reports_of_cpus_with_vnni_come_first() -> None:
    found = [has_vnni(each) for each in reports.earlier().values()]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 2


def test_the_methods_are_summarized_for_each_cpu() -> None:
    slow = report({"fp32_eager": lane(8, 8), "fp32_ort": lane(2, 2), "ours_onnx": lane(4, 4)}, isa=("avx2",))
    text = methods.markdown([report(LANES), slow], {"models": {}})
    assert "| model | method | speed-up with VNNI | speed-up without VNNI | SQNR dB | why |" in text
    assert "| CNN | static | 0.9×: static on onnxruntime | none |" in text
    assert "## Speed: a CPU, without VNNI" in text


def test_the_plot_says_which_cpu_it_is_of() -> None:
    drawn = plot(report(LANES))
    assert (drawn.count('class="bar"'), drawn.count('class="winner"')) == (2, 1)
    assert "batch 1, 2 threads; a CPU, with VNNI (avx2, avx512_vnni)" in drawn


def test_what_is_not_known_takes_as_long_as_its_kind_did(tmp_path: Path) -> None:
    (tmp_path / "mlp").mkdir()
    (tmp_path / "mlp" / "onnx.json").write_text(json.dumps({"wall_seconds": 60}))
    earlier = {"seconds": {"prepare": {"mlp/onnx.json": 5, "mlp/nncf.json": 300}, "cell": {}}}
    took = durations.known(tmp_path, [earlier])
    wanted = {"prepare": ["mlp/onnx.json", "mlp/nncf.json", "unet/onnx.json"], "cell": []}
    assert durations.told(wanted, took) == "To do: prepare 3 (9 minutes), cell 0 (0 minutes); about 9 minutes in all."


def test_which_method_for_which_model_is_what_the_results_give() -> None:
    """``python -m benchmarks.methods`` writes the page."""
    assert methods.DOCUMENT.read_text() == methods.page()
    timed = {model for kind in methods.KINDS.values() for model in kind.timed}
    trained = {model for kind in methods.KINDS.values() for model in kind.trained}
    assert timed == set(MODELS)
    assert trained == set(json.loads((RESULTS / "accuracy.json").read_text())["models"])
