"""What a sweep is told of a run."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lq_plugin import ArtifactExport, Int8Evaluation
from lq_plugin.apps.objectives import check_directions, objectives
from lq_plugin.apps.train import outcome
from lq_plugin.errors import ConfigError, EvaluationError, ExportError
from lq_plugin.report.manifest import Entry, Environment, LatencyRecord, Manifest
from lq_plugin.selection import Budget


def entry(form: str, accuracy: float, median: float) -> Entry:
    metrics = {"val/acc": accuracy, "val/loss": 2.0}
    made = Entry("static", "static", "torch", form, metrics=metrics, latency_ms=LatencyRecord(median))
    return replace(made, size_bytes=100, sqnr_db=30.0)


MANIFEST = Manifest(
    artifacts=(entry("onnx", 0.5, 1.5), entry("pt2", 0.25, 2.5)),
    budget=Budget("val/acc", mode="max"),
    selected="static/pt2",
    environment=Environment(cpu="any"),
)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["metric"], 0.25),
        (["metric", "latency_ms"], (0.25, 2.5)),
        (["size_bytes", "sqnr_db", "val/loss"], (100, 30.0, 2.0)),
    ],
)
def test_objectives_are_figures_of_the_selected_artifact(names: list[str], expected: Any) -> None:
    assert objectives(MANIFEST, names) == expected


def test_nothing_selected_is_no_objective() -> None:
    assert objectives(replace(MANIFEST, selected=None), ["metric"]) is None
    assert objectives(None, ["metric"]) is None


def test_the_fastest_within_the_budget_stands_in_where_fp32_is_faster() -> None:
    fit = tuple(replace(each, status="ok") for each in MANIFEST.artifacts)
    assert objectives(replace(MANIFEST, artifacts=fit, selected=None), ["latency_ms"]) == 1.5


def judged(form: str, accuracy: float, status: str) -> Entry:
    return replace(entry(form, accuracy, 1.0), status=status, delta={"val/acc": round(accuracy - 0.5, 6)})


@pytest.mark.parametrize(
    ("artifacts", "expected"),
    [
        ([judged("onnx", 0.45, "over_budget"), judged("pt2", 0.4, "over_budget")], (0.45, pytest.approx(0.09))),
        ([judged("onnx", 0.45, "over_budget"), judged("pt2", 0.496, "ok")], (0.496, pytest.approx(-0.002))),
        ([judged("pt2", 0.495 - 1e-8, "ok")], (pytest.approx(0.495), 0.0)),  # its drop is .01 but for rounding
        ([judged("pt2", 0.5, "failed")], None),
    ],
)
def test_what_is_over_the_budget_has_figures_where_that_is_a_constraint(artifacts: list[Entry], expected: Any) -> None:
    manifest = replace(MANIFEST, artifacts=tuple(artifacts), selected=None)
    assert objectives(manifest, ["metric", "over_budget"]) == expected
    if not any(made.status == "ok" for made in artifacts):
        assert objectives(manifest, ["metric"]) is None


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objectives: 'latency' is unknown\. Did you mean 'latency_ms'"):
        objectives(MANIFEST, ["latency"])


@pytest.mark.parametrize("directions", [None, "maximize", ["maximize", "minimize"]])
def test_directions_that_lead_to_the_better(directions: Any) -> None:
    check_directions(directions, ["metric", "latency_ms"], Budget("val/acc", mode="max"))
    check_directions(directions, ["val/loss", "latency_ms"], Budget())


@pytest.mark.parametrize(
    ("directions", "said"),
    [
        ("minimize", "'minimize' for 'metric', but more val/acc is better"),
        (["maximize", "maximize"], "'maximize' for 'latency_ms', but less latency_ms is better"),
    ],
)
def test_directions_that_lead_to_the_worse_are_refused(directions: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=f"hydra.sweeper.direction: {said}"):
        check_directions(directions, ["metric", "latency_ms"], Budget("val/acc", mode="max"))


def ended(artifacts: list[Entry], error: str | None = None) -> Any:
    """A Trainer whose callbacks have done their work."""
    export, evaluation = ArtifactExport(["pt2"]), Int8Evaluation()
    export.manifest = replace(MANIFEST, artifacts=tuple(artifacts), selected=None)
    evaluation.error = error
    return SimpleNamespace(callbacks=[export, evaluation])


def test_a_command_that_made_no_artifact_fails_and_says_each_reason_once() -> None:
    error = "CaptureError: it cannot be captured:\n  model.py:7"
    made = [replace(entry(form, 0.5, 1.0), status="failed", error=error) for form in ("onnx", "pt2")]
    said = "export: no artifact was made. static/onnx, static/pt2 failed: CaptureError: it cannot be captured: …"
    with pytest.raises(ExportError, match=f"^{re.escape(said)}$"):
        outcome(ended(made), ["metric"])


def test_a_command_whose_evaluation_failed_fails_although_nothing_raised() -> None:
    made = [replace(entry("onnx", 0.5, 1.0), status="not_evaluated", error="why")]
    with pytest.raises(EvaluationError, match=r"evaluation: the artifacts were made, but not judged\. why"):
        outcome(ended(made, "why"), ["metric"])
    assert outcome(ended(made), ["metric"]) is None  # where nothing is logged, nothing failed
