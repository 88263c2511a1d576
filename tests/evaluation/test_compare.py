"""Artifacts are compared with the float model of their own target, and one that fails costs no other anything."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CLASSES, Images, Tiny
from torchmetrics.classification import MulticlassAccuracy

import lq_plugin
from lq_plugin import Latency
from lq_plugin.artifacts.writing import export_one
from lq_plugin.evaluation import compare as comparing
from lq_plugin.evaluation.compare import Comparison, Protocol, Subject, timed
from lq_plugin.evaluation.loop import Data, run
from lq_plugin.progress import Display, shown_on
from lq_plugin.report.manifest import Entry, Speedup

DATA = Data(Images())
QUICK = Latency(batch_size=2, threads=1, rounds=1, seconds=0.01)


def batches() -> list[Any]:
    return [x for x, _ in Images().val_dataloader()]


def compare(subject: Subject, protocol: Protocol) -> Comparison:
    """Latencies first, as in a run."""
    return comparing.compare(subject, protocol, timed(subject, protocol))


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A model with a static and a dynamic artifact."""
    torch.manual_seed(0)
    folder, model = tmp_path_factory.mktemp("artifacts"), Tiny().eval()
    static = lq_plugin.quantize(model, batches())
    dynamic = lq_plugin.quantize(model, batches(), "dynamic")
    artifacts = [export_one(static, folder / "static" / "pt2", "pt2"), export_one(dynamic, folder / "torch", "torch")]
    entries = [
        Entry(made.candidate, made.method, made.runtime, made.format).exported(made, folder) for made in artifacts
    ]
    return Subject(model, None, DATA, static, folder, entries)


@pytest.fixture(scope="module")
def notes() -> list[str]:
    return []


@pytest.fixture(scope="module")
def comparison(subject: Subject, notes: list[str]) -> Comparison:
    """Of both splits, without latency."""
    metrics = {"given": MulticlassAccuracy(CLASSES, average="micro")}
    with shown_on(Display(notes.append)):
        return compare(subject, Protocol(("test", "validate"), metrics, latency=None))


def test_fp32_is_what_the_float_model_logs(subject: Subject, comparison: Comparison) -> None:
    logged = run(subject.model, DATA, "validate") | run(subject.model, DATA, "test")
    given = {f"{split}/given": logged[f"{name}/acc"] for split, name in (("validate", "val"), ("test", "test"))}
    assert comparison.fp32.metrics == pytest.approx(logged | given)
    assert comparison.fp32.size_bytes == sum(tensor.nbytes for tensor in subject.model.state_dict().values())
    assert (comparison.fp32.latency_ms, comparison.fp32.errors) == ({}, {})


def test_measurements_are_those_of_the_artifacts_in_their_order(subject: Subject, comparison: Comparison) -> None:
    assert len(comparison.entries) == 2
    for entry, measured in zip(subject.entries, comparison.entries, strict=True):
        wanted = lq_plugin.evaluate(subject.model, Images().val_dataloader(), subject.path(entry))
        assert {name: measured.metrics[name] for name in wanted} == pytest.approx(wanted)
        fp32 = comparison.fp32.metrics
        assert measured.metrics.keys() == fp32.keys()
        assert measured.delta == {name: value - fp32[name] for name, value in measured.metrics.items()}
        assert measured.fp32 == comparison.fp32
        assert measured.sqnr_db is not None
        assert measured.sqnr_db > 15
        assert (measured.latency_ms, measured.speedup, measured.error) == (None, None, None)
        assert (measured.label, measured.path, measured.sha256) == (entry.label, entry.path, entry.sha256)
    static, dynamic = comparison.entries
    assert static.metrics["val/loss"] != dynamic.metrics["val/loss"]


def test_a_budget_is_about_validation_alone(subject: Subject, comparison: Comparison) -> None:
    assert set(comparison.judged_by) == {"val/loss", "val/acc", "validate/given"}
    bare = replace(subject, entries=())
    assert compare(bare, Protocol(("test",), latency=None)).judged_by == ()
    nothing = compare(replace(bare, data=Data()), Protocol(("validate", "test"), latency=None))
    assert (nothing.judged_by, nothing.fp32.metrics) == ((), {})


class WithExtraState(Tiny):
    def get_extra_state(self) -> Any:
        return {"version": 2}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_the_size_is_that_of_tensors(subject: Subject) -> None:
    extra = replace(subject, model=WithExtraState(), entries=())
    size = compare(replace(extra, data=Data()), Protocol((), latency=None)).fp32.size_bytes
    assert size == sum(tensor.nbytes for tensor in subject.model.state_dict().values())


def test_scores_are_reused_only_for_the_same_metric_and_model(subject: Subject, comparison: Comparison) -> None:
    def found(top_k: int, model: Any = subject.model) -> str | None:
        metrics = {"given": MulticlassAccuracy(CLASSES, top_k=top_k)}
        return compare(
            replace(subject, model=model, entries=()), Protocol(("validate",), metrics, latency=None)
        ).conditions

    first = found(1)
    assert first is not None
    assert found(1) == first
    other = Tiny().eval()
    assert len({first, found(2), found(1, other)}) == 3


def test_what_is_going_on_is_told(comparison: Comparison, notes: list[str]) -> None:
    what = [note.rpartition(":")[0] for note in notes]
    assert what == [f"lq_plugin: evaluating {name}" for name in ("FP32", "static/pt2", "dynamic/torch")]


def test_the_model_stays_as_it_is(subject: Subject, comparison: Comparison) -> None:
    assert "forward" not in subject.model.__dict__
    assert subject.model.accuracy.update_count == 0
    float_target = subject.float_target()
    assert float_target is not subject.model
    assert torch.equal(float_target.state_dict()["net.0.weight"], subject.model.state_dict()["net.0.weight"])


def truncated(folder: Path) -> None:
    file = next(file for file in folder.iterdir() if file.suffix == ".pt2")
    file.write_bytes(file.read_bytes()[:100])


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(("damage", "said"), [(truncated, "was changed or truncated"), (emptied, "holds no artifact")])
def test_a_damaged_artifact_says_why_and_costs_no_other(
    damage: Callable[[Path], None], said: str, subject: Subject, comparison: Comparison, tmp_path: Path
) -> None:
    copied = replace(subject, folder=shutil.copytree(subject.folder, tmp_path / "copied"))
    damage(copied.path(copied.entries[0]))
    made = compare(copied, Protocol(("validate",), latency=None)).entries
    assert made[0].error is not None
    assert made[0].error.startswith("ArtifactError: path: ")
    assert said in made[0].error
    assert (made[0].metrics, made[0].sqnr_db) == ({}, None)
    assert made[0].fp32 is not None
    assert made[1].metrics["val/loss"] == comparison.entries[1].metrics["val/loss"]


def test_a_lane_without_latency_keeps_its_metrics(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")  # no worker can be started
    notes: list[str] = []
    with shown_on(Display(notes.append)):
        made = compare(subject, Protocol(("validate",), latency=QUICK))
    static, dynamic = made.entries
    assert notes[0].startswith("lq_plugin: measuring the latency of 2 artifacts, and of FP32 on the same runtimes: ")
    reason = "the worker process could not be started"
    assert (static.error or "").startswith(reason)
    assert (static.latency_ms, static.speedup, static.reload_max_difference) == (None, None, None)
    assert static.metrics.keys() == {"val/loss", "val/acc"}
    assert made.fp32.latency_ms.keys() == {"torch"}
    assert made.fp32.errors.keys() == {"torch.compile"}
    assert made.fp32.errors["torch.compile"].startswith(reason)
    assert dynamic.error is None
    assert dynamic.latency_ms is not None
    timed = dynamic.latency_ms
    assert (timed.batch_size, timed.threads, timed.rounds, timed.mode) == (2, 1, 1, "eager")
    assert timed.p90 is not None
    assert 0 < timed.median <= timed.p90
    assert timed.calls is not None
    assert timed.calls >= 3
    ratio = made.fp32.latency_ms["torch"] / timed.median
    assert dynamic.speedup == Speedup(ratio, ratio)
    assert dynamic.reload_max_difference is None


def test_without_a_graph_the_example_is_what_is_timed(subject: Subject) -> None:
    alone = replace(subject, entries=subject.entries[1:])
    (made,) = compare(replace(alone, data=Data()), Protocol((), latency=QUICK)).entries
    assert made.latency_ms is not None
    assert made.latency_ms.batch_size == 8
