"""The table at the end of a run shows every name as it is."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
from damage.manifests import NASTY, good
from rich.console import Console

from lq_plugin.printing import brief, line, plain
from lq_plugin.report import table

NAMES = ["val/iou[/car]", "[red]", ":car:", "[bold]x", NASTY]


def printed(content: dict[str, Any]) -> str:
    written = io.StringIO()
    table.show(content, Path("run[/x]"), Console(file=written, width=200))
    return written.getvalue()


@pytest.fixture
def content() -> dict[str, Any]:
    """What a run has in memory: its figures are floats."""
    made = copy.deepcopy(good())
    for metrics in (made["fp32"]["metrics"], *(entry["metrics"] for entry in made["artifacts"])):
        metrics.pop("val/loss", None)
    for entry in made["artifacts"]:
        entry["fp32"] = entry["fp32"] and made["fp32"]
    return made


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["metric", "candidate", "status", "runtime", "reason", "error"])
def test_a_name_is_shown_as_text(key: str, name: str, content: dict[str, Any]) -> None:
    entry = content["artifacts"][0]
    if key == "metric":
        for values in (content["fp32"]["metrics"], entry["metrics"], entry["delta"]):
            values[name] = values.pop("val/acc")
    elif key == "runtime":
        content["fp32"]["latency_ms"][name] = 1.5
    elif key == "reason":
        entry["float_ops"][0]["reason"] = name
    else:
        entry[key] = name
    shown = printed(content)
    expected = {"reason": line(name), "error": line(brief(name))}.get(key, plain(name))
    assert expected in shown
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_an_error_of_several_artifacts_is_printed_once_by_its_first_line(content: dict[str, Any]) -> None:
    for entry in content["artifacts"]:
        entry["error"] = "CaptureError: it cannot be captured:\n  model.py:7: if x.sum() > 0:"
    shown = printed(content)
    assert shown.count("cannot be captured") == 1
    assert "static/onnx, static/pt2: CaptureError: it cannot be captured: …" in shown
    assert "model.py:7" not in shown


def test_the_last_line_leads_to_the_manifest(content: dict[str, Any]) -> None:
    assert printed(content).splitlines()[-1] == "Manifest: run[/x]/manifest.json"
