"""If a candidate is over the budget, operators are left float. Trials are real artifacts; a killed search continues."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console
from tiny import CLASSES, SIDE, Images, Tiny, images, trainer
from torch import Tensor, nn

from lq_plugin import (
    ArtifactExport,
    Budget,
    Int8Evaluation,
    Latency,
    Scheme,
    Search,
    StaticCandidate,
    pipeline,
    quantize,
    sensitivity,
    trials,
)
from lq_plugin.apps.train import outcome
from lq_plugin.artifacts import writing
from lq_plugin.callbacks.finishing import RunContext
from lq_plugin.checkpoints import LIVE, Checkpoint
from lq_plugin.checksums import of_file
from lq_plugin.coverage import Measured
from lq_plugin.errors import EvaluationError
from lq_plugin.evaluation import kernels
from lq_plugin.evaluation.compare import Protocol, Subject
from lq_plugin.evaluation.loop import Data
from lq_plugin.evaluation.placing import MeasuredPlacement
from lq_plugin.graph.observation import ObservationPlan
from lq_plugin.jobs import StaticJob
from lq_plugin.pipeline import finish
from lq_plugin.plan import Finished, Plan
from lq_plugin.report import manifest, table
from lq_plugin.report.manifest import Config, Entry, Manifest
from lq_plugin.source import Source
from lq_plugin.steps import Step
from lq_plugin.store import Store
from lq_plugin.trials import Trials

UNEVEN = 3000.0
PLAIN = Scheme(algorithms=())
ENTRY = Entry("static", "static", "onnxruntime", "onnx")


class OneBadLayer(Tiny):
    """Its second layer reads one channel that is far larger than the others and has little influence."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = nn.Linear(SIDE * SIDE, 16), nn.Linear(16, 16), nn.Linear(16, CLASSES)
        self.net = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), third)
        with torch.no_grad():
            first.weight[0] *= UNEVEN
            second.weight[:, 0] /= UNEVEN


class TwoBadLayers(OneBadLayer):
    """Its third layer reads such a channel too."""

    def __init__(self) -> None:
        super().__init__()
        second, third = self.net[3], self.net[5]
        assert isinstance(second, nn.Linear) and isinstance(third, nn.Linear)  # noqa: PT018
        with torch.no_grad():
            second.weight[1] *= UNEVEN
            second.bias[1] *= UNEVEN
            third.weight[:, 1] /= UNEVEN


def plan(
    folder: Path,
    limits: Search | None,
    max_drop: float = 0.003,
    scheme: Scheme = PLAIN,
    model: type[Tiny] = OneBadLayer,
    formats: Sequence[str] = ("onnx", "openvino"),
) -> Plan:
    torch.manual_seed(0)
    data = Data(loaders={"validate": Images(val_samples=64).val_dataloader()})
    source = Source(model(), None, lambda: Checkpoint(LIVE, 0), data)
    job = StaticJob(name="static", scheme=scheme, plan=ObservationPlan(scheme), source=source, options={})
    budget = Budget("val/loss", max_drop, relative=False, mode="min")
    protocol = Protocol(["validate"], latency=None)
    return Plan((job,), folder / "quantized", formats, protocol, budget, limits)


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


class Decided(dict[str, Measured]):
    """What was measured about every artifact."""

    def get(self, *_: Any) -> Any:
        return Measured(True, "measured here")


def test_a_search_leaves_the_bad_layer_float_and_exports_the_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []
    count = kernels.counted
    monkeypatch.setattr(
        kernels, "counted", lambda entry, folder: (counted.append(entry.label), count(entry, folder))[1]
    )
    compare = pipeline.compare

    def compared(subject: Subject, *rest: Any) -> Any:
        for entry in manifest.read(subject.folder / "manifest.json").artifacts:  # if the run is killed from here on
            assert {name: of_file(subject.path(entry) / name) for name in entry.sha256} == entry.sha256
        return compare(subject, *rest)

    monkeypatch.setattr(pipeline, "compare", compared)
    monkeypatch.setattr(pipeline, "_placing", lambda *_: MeasuredPlacement(Latency(threads=1), Decided()))
    monkeypatch.setattr(MeasuredPlacement, "saved", lambda *_: {})
    made = finished(tmp_path, Search(max_trials=6))
    assert counted == ["static/onnx", "static/openvino"] * 2  # before and after the search, and not in its trials
    assert {entry.status for entry in made.artifacts} == {"ok"}
    for entry in made.artifacts:
        assert entry.placement == "before the search for mixed precision: measured here"
        assert pipeline._won(replace(entry, path=None, placement=None), "measured here").placement is None
        assert [op.op for op in entry.quantized_ops] == ["linear", "linear"]
        assert ("net.3.linear_1", "chosen to stay float") in {(op.name, op.reason) for op in entry.float_ops}
    assert [(trial.float_ops, trial.within) for trial in made.trials] == [(("net.3.linear_1",), True)]
    assert made.trials[0].int8_share == pytest.approx(2 / 3, abs=1e-4)


def test_the_operators_of_a_candidate_are_ranked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [images(32)[:][0]]
    candidate = quantize(OneBadLayer().eval().net, batches, PLAIN)
    found = {"static": sensitivity(candidate, batches)}
    over, asked = [replace(ENTRY, status="over_budget")], pipeline._Run(plan(tmp_path, None), tmp_path, Store(tmp_path))
    evaluated = Finished({"static": Step(candidate)})
    monkeypatch.setattr(pipeline, "ranking", lambda *_: found["static"])
    assert pipeline._sensitivity(asked, evaluated, over) == found
    monkeypatch.setattr(pipeline, "ranking", lambda *_: pytest.fail("it is ranked already"))
    assert pipeline._sensitivity(asked, replace(evaluated, sensitivity=found), over) == found


def test_algorithms_learn_anew_for_every_trial(tmp_path: Path) -> None:
    scheme = Scheme(algorithms=("sequential",))
    made = finished(tmp_path, Search(max_trials=2), max_drop=1e-4, scheme=scheme)
    assert made.trials
    assert {step.algorithm for step in made.steps} == {"sequential"}
    assert {runtime for step in made.steps for runtime in step.before} == {entry.runtime for entry in made.artifacts}


def test_a_killed_search_goes_on_with_the_same_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[str] = []

    def export_one(*args: Any, **options: Any) -> Any:
        exported.append(args[0].name)
        return original(*args, **options)

    original = writing.export_one
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


def printed(made: Manifest, folder: Path) -> str:
    console = Console(file=io.StringIO(), width=400)
    table.show(made, folder, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_no_winner_is_an_outcome(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = finished(tmp_path, Search(max_trials=1), model=TwoBadLayers, formats=["onnx"])
    assert made.selected is None
    assert [trial.within for trial in made.trials] == [False]
    assert {entry.status for entry in made.artifacts} == {"over_budget"}
    evaluation = Int8Evaluation(search=Search())
    for trials_made, unmet, said in (
        (made.trials, "none of 1 trial", "1 trial found no artifact"),
        ((), "nothing could be tried", "the search tried nothing"),
        ((replace(made.trials[0], within=True),), "none of 1 trial", "only in the format that it tried"),
    ):
        evaluation.manifest = replace(made, trials=trials_made, config=Config(evaluation=evaluation.options()))
        assert unmet in str(evaluation.unmet)
        assert said in printed(evaluation.manifest, tmp_path)
    assert_said_once(evaluation, tmp_path, caplog)
    evaluation.manifest = replace(made, artifacts=tuple(replace(entry, status="ok") for entry in made.artifacts))
    assert evaluation.unmet is None


def assert_said_once(evaluation: Int8Evaluation, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning where the user's own code fits, and the error of a command."""
    exporter = ArtifactExport(["onnx"])
    exporter.folder, exporter.manifest = folder, evaluation.manifest
    own = trainer(folder, exporter, evaluation)
    for expected in ([evaluation.unmet], []):
        caplog.clear()
        evaluation.teardown(own, None, "fit")
        assert [record.getMessage() for record in caplog.records if record.name == "lq_plugin"] == expected
        own.callbacks.append(RunContext({}))  # as commands do
    with pytest.raises(EvaluationError, match="none of 1 trial"):
        outcome(own, [])


def test_a_trial_that_cannot_be_measured_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Store, "complete", lambda self: None)

    def failing(*_: Any) -> Any:
        raise OSError("no memory")

    monkeypatch.setattr(trials, "validated", failing)
    made = finished(tmp_path, Search(max_trials=1), formats=["onnx"])
    assert [(trial.drop, trial.within) for trial in made.trials] == [(None, False)]
    assert "trial 1: 67% of the operators in INT8, not measured" in capsys.readouterr().out
    assert not list((tmp_path / "store").glob("trials/*"))


class Mixer(nn.Module):
    """Multiplies two activations, which OpenVINO does on floats."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x @ self.first(x).transpose(1, 2) @ x)


class Recording(Trials):
    """Notes what would be tried."""

    tried: ClassVar[list[frozenset[str]]] = []

    def _is_within(self, float_ops: frozenset[str]) -> bool:
        self.tried.append(float_ops)
        return False


def test_only_operators_in_int8_on_the_runtime_of_the_trials_are_tried() -> None:
    batches = torch.randn(4, 2, 8, 8).unbind()
    candidate = quantize(Mixer().eval(), batches, PLAIN)
    assert isinstance(candidate, StaticCandidate)
    nothing: Any = None
    known = replace(ENTRY, runtime="openvino")
    for_openvino = Recording(candidate, nothing, sensitivity(candidate, batches), known, *[nothing] * 5)
    assert for_openvino.winner(Search()) is None
    assert {len(names) for names in Recording.tried} == {1}
    assert frozenset[str]().union(*Recording.tried) < candidate.placed("openvino").quantized.keys()
    assert len(candidate.united.quantized) == 4


def test_operators_that_save_least_time_for_their_error_are_left_float_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = torch.randn(4, 2, 8, 8).unbind()
    candidate = quantize(Mixer().eval(), batches, PLAIN)
    assert isinstance(candidate, StaticCandidate)
    nothing: Any = None
    subject = Subject(nothing, None, nothing, candidate, tmp_path, ())
    entry, ranked = replace(ENTRY, path="static/onnx"), sensitivity(candidate, batches)
    monkeypatch.setattr(Recording, "tried", [])
    for slow in (ranked[-1].node, ranked[1].node):
        saved = {each.node: -1.0 if each.node == slow else 1e9 for each in ranked}
        placing = MeasuredPlacement(Latency(threads=1), {})
        placing.decisions[placing._keys(candidate, "onnx").profile] = Measured(True, "", saved=saved)
        made = Recording(candidate, nothing, ranked, entry, subject, *[nothing] * 4, placing=placing)
        assert made.winner(Search(max_trials=1)) is None
        assert Recording.tried[-1] == {slow}
