"""If a candidate is over the budget, operators are left float. Trials are real artifacts; a killed search continues."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CLASSES, SIDE, Images, Tiny
from torch import nn

from lq_plugin import Budget, Scheme, Search, trials
from lq_plugin.artifacts import base
from lq_plugin.checkpoints import LIVE, Checkpoint
from lq_plugin.evaluation.compare import Protocol
from lq_plugin.evaluation.loop import Data
from lq_plugin.graph.observation import ObservationPlan
from lq_plugin.jobs import StaticJob
from lq_plugin.pipeline import Plan, finish
from lq_plugin.report import manifest
from lq_plugin.report.manifest import Manifest
from lq_plugin.source import Source
from lq_plugin.store import Store

UNEVEN = 3000.0
PLAIN = Scheme(algorithms=())


class OneBadLayer(Tiny):
    """Its second layer reads one channel that is far larger than the others and has little influence."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = nn.Linear(SIDE * SIDE, 16), nn.Linear(16, 16), nn.Linear(16, CLASSES)
        self.net = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), third)
        with torch.no_grad():
            first.weight[0] *= UNEVEN
            second.weight[:, 0] /= UNEVEN


def plan(
    folder: Path, limits: Search | None, max_drop: float = 0.003, scheme: Scheme = PLAIN, mode: str | None = "min"
) -> Plan:
    torch.manual_seed(0)
    data = Data(loaders={"validate": Images(val_samples=64).val_dataloader()})
    source = Source(OneBadLayer(), None, lambda: Checkpoint(LIVE, 0), data)
    job = StaticJob(name="static", scheme=scheme, plan=ObservationPlan(scheme), source=source, options={})
    budget = Budget("val/loss", max_drop, relative=False, mode=mode)
    protocol = Protocol(["validate"], latency=None)
    return Plan((job,), folder / "quantized", ["onnx", "openvino"], protocol, budget, limits)


def finished(folder: Path, *args: Any, **options: Any) -> Manifest:
    made = finish(plan(folder, *args, **options), Store(folder / "store")).manifest
    assert made is not None
    assert manifest.read(folder / "quantized" / "manifest.json") == made
    return made


def test_without_a_search_the_manifest_says_which_layer_hurts(tmp_path: Path) -> None:
    made = finished(tmp_path, None)
    assert {entry.status for entry in made.artifacts} == {"over_budget"}
    worst = made.sensitivity["static"][0]
    assert (worst.name, worst.op) == ("net.3.linear_1", "linear")
    assert worst.share > 0.9
    assert made.trials == ()


def test_a_search_leaves_the_bad_layer_float_and_exports_the_winner(tmp_path: Path) -> None:
    made = finished(tmp_path, Search(max_trials=6))
    assert {entry.status for entry in made.artifacts} == {"ok"}
    for entry in made.artifacts:
        assert [op.op for op in entry.quantized_ops] == ["linear", "linear"]
        assert ("net.3.linear_1", "chosen to stay float") in {(op.name, op.reason) for op in entry.float_ops}
    assert [(trial.float_ops, trial.within) for trial in made.trials] == [(("net.3.linear_1",), True)]
    assert made.trials[0].int8_share == pytest.approx(2 / 3, abs=1e-4)


def test_algorithms_learn_anew_for_every_trial(tmp_path: Path) -> None:
    scheme = Scheme(algorithms=("sequential",))
    made = finished(tmp_path, Search(max_trials=2), max_drop=1e-4, scheme=scheme)
    assert made.trials
    assert {step.algorithm for step in made.steps} == {"sequential"}


def test_a_killed_search_goes_on_with_the_same_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[str] = []

    def export_one(*args: Any, **options: Any) -> Any:
        exported.append(args[0].name)
        return original(*args, **options)

    original = base.export_one
    monkeypatch.setattr(trials, "export_one", export_one)
    keep = Store.complete
    monkeypatch.setattr(Store, "complete", lambda self: None)  # as if it was killed before
    first = finished(tmp_path, Search(max_trials=6))
    assert len(exported) == len(first.trials) > 0
    monkeypatch.setattr(Store, "complete", keep)
    again = finished(tmp_path, Search(max_trials=6))
    assert len(exported) == len(first.trials)
    assert [replace(trial, seconds=0) for trial in again.trials] == [replace(t, seconds=0) for t in first.trials]
    assert [entry.sha256 for entry in again.artifacts] == [entry.sha256 for entry in first.artifacts]


def test_no_winner_is_an_outcome(tmp_path: Path) -> None:
    made = finished(tmp_path, Search(max_trials=4), max_drop=0.0, mode=None)  # any change is a drop
    assert made.selected is None
    assert not any(trial.within for trial in made.trials)
    assert {entry.status for entry in made.artifacts} == {"over_budget"}
    assert len(made.trials) == 2  # one float, two float; the third stays INT8
