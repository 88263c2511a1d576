"""The table at the end of a run shows every name as it is."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from damage.manifests import NASTY, good
from rich.console import Console

from lq_plugin.learning import Sensitivity
from lq_plugin.printing import brief, line, plain
from lq_plugin.report import table
from lq_plugin.report.manifest import Entry, Kernels, Manifest, Speedup

NAMES = ["val/iou[/car]", "[red]", ":car:", "[bold]x", NASTY]


def printed(content: Manifest) -> str:
    written = io.StringIO()
    table.show(content, Path("run[/x]"), Console(file=written, width=200))
    return written.getvalue()


@pytest.fixture
def content() -> Manifest:
    return Manifest.from_json(good())


def changed(content: Manifest, *entries: Entry, **changes: Any) -> Manifest:
    """Replace the first artifacts, or anything else of a manifest."""
    return replace(content, artifacts=(*entries, *content.artifacts[len(entries) :]), **changes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["metric", "candidate", "status", "runtime", "reason", "error"])
def test_a_name_is_shown_as_text(key: str, name: str, content: Manifest) -> None:
    entry = content.artifacts[0]
    if key == "metric":
        fp32 = replace(content.fp32, metrics={name: 0.75})
        made = changed(content, replace(entry, fp32=fp32, metrics={name: 0.7}, delta={name: -0.05}), fp32=fp32)
    elif key == "runtime":
        made = changed(content, fp32=replace(content.fp32, latency_ms={name: 1.5}))
    elif key == "reason":
        made = changed(content, replace(entry, float_ops=(replace(entry.float_ops[0], reason=name),)))
    else:
        made = changed(content, replace(entry, **{key: name}))
    shown = printed(made)
    expected = {"reason": line(name), "error": line(brief(name))}.get(key, plain(name))
    assert expected in shown
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_an_error_of_several_artifacts_is_printed_once_by_its_first_line(content: Manifest) -> None:
    error = "CaptureError: it cannot be captured:\n  model.py:7: if x.sum() > 0:"
    shown = printed(changed(content, *(replace(entry, error=error) for entry in content.artifacts)))
    assert shown.count("cannot be captured") == 1
    assert "static/onnx, static/pt2: CaptureError: it cannot be captured: …" in shown
    assert "model.py:7" not in shown


def test_an_artifact_is_compared_with_its_own_fp32(content: Manifest) -> None:
    """Figures that are no numbers are equal to themselves: a model of nan and inf is one model."""
    assert printed(content).count("val/loss") == 1
    small = replace(content.fp32, size_bytes=10)
    made = changed(content, replace(content.artifacts[0], fp32=small, speedup=Speedup(1.0, 0.5)))
    assert "Larger than FP32: static/onnx" in printed(made)
    assert "Slower than the fastest FP32 runtime: static/onnx" in printed(made)


def test_operators_that_fell_back_to_float_are_told(content: Manifest) -> None:
    entry = content.artifacts[0]
    assert "static/onnx: 1 operator in INT8; float: 1 gelu (no kernel); runs in float on onnxruntime: 1 conv2d\n" in (
        printed(content)
    )
    for kernels in (None, Kernels({}, {"MatMul": ("a product that was left in float",)})):
        assert "runs in float" not in printed(changed(content, replace(entry, kernels=kernels)))


def test_the_last_lines_lead_to_the_manifest_and_to_what_was_selected(content: Manifest) -> None:
    place = "There is no manifest: run[/x]/manifest.json could not be written"
    assert printed(content).splitlines()[-2:] == [place, "Use it: lq_plugin.load('run[/x]/static/onnx')"]
    assert printed(replace(content, selected=None)).splitlines()[-1] == place


@pytest.mark.parametrize(
    ("other", "then"), [("ok", "; within it: "), ("failed", "; Int8Evaluation(search=Search()) would look")]
)
def test_a_search_is_offered_where_no_format_is_within_the_budget(other: str, then: str, content: Manifest) -> None:
    entry = replace(content.artifacts[0], candidate="static", status="over_budget")
    second = replace(entry, format="pt2", status=other)
    ranking = {"static": (Sensitivity("conv", "conv2d", "conv2d", 1.0, 1.0),)}
    shown = printed(replace(content, artifacts=(entry, second), sensitivity=ranking, trials=()))
    assert f"Over budget: {entry.label}. INT8 costs most in conv (100%){then}" in shown
