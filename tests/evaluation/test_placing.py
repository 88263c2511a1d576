"""Decisions on placement: recorded before they are acted on, followed by every export, and repeated by the next run."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lq_plugin
from lq_plugin import Latency, Scheme, StaticCandidate, exporting
from lq_plugin.artifacts.base import FORMATS
from lq_plugin.artifacts.writing import export_one
from lq_plugin.coverage import Duration, Measured
from lq_plugin.errors import ConfigError, EvaluationError
from lq_plugin.evaluation import latency, placing, profiling
from lq_plugin.evaluation.latency import Timing
from lq_plugin.evaluation.placing import MeasuredPlacement
from lq_plugin.evaluation.profiling import profiled
from lq_plugin.search.placements import charged
from lq_plugin.store import STORE, Store

REASON = "faster in float on this machine (measured)"
RUNTIMES = ("onnx", "openvino")
OPTIONS = Latency(threads=1)


class Blocks(nn.Module):
    """Convolutions with an activation that has no INT8 kernel on onnxruntime, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.second(nn.functional.hardswish(self.first(x))))
        return self.head(x.mean((2, 3))).relu()


@pytest.fixture(scope="module")
def candidate() -> StaticCandidate:
    torch.manual_seed(0)
    made = lq_plugin.quantize(Blocks().eval(), [torch.randn(4, 3, 8, 8) for _ in range(2)], Scheme(algorithms=()))
    assert isinstance(made, StaticCandidate)
    return made


@pytest.fixture(scope="module")
def folders(candidate: StaticCandidate, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """FP32 and INT8 in each format that has a profiler."""
    found = {}
    for name in RUNTIMES:
        floats = tmp_path_factory.mktemp(name)
        write = FORMATS[name].export
        assert write is not None
        write(candidate.reference, floats)
        found[name] = [floats, export_one(candidate, tmp_path_factory.mktemp("int8") / name, name).path]
    return found


def reasons(float_ops: Sequence[Any]) -> dict[str, str]:
    return {op["name"].rpartition(".")[2]: op["reason"] for op in float_ops}


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_profile_names_every_layer_in_float_and_in_int8(
    name: str, candidate: StaticCandidate, folders: dict[str, list[Path]]
) -> None:
    profile = FORMATS[name].profile
    assert profile is not None
    operators = candidate.placed(FORMATS[name].runtime).quantized
    layers = {node for node, op in operators.items() if op.op in ("conv2d", "linear")}
    for folder in folders[name]:
        durations = profile(folder, candidate.graph.resized(1), 1)
        found = charged(durations, operators.keys())
        assert found.keys() >= layers
        assert sum(found.values()) == pytest.approx(sum(each.microseconds for each in durations))
        assert all(microseconds >= 0 for microseconds in found.values())


def test_a_profile_is_made_in_a_process_of_its_own(candidate: StaticCandidate, folders: dict[str, list[Path]]) -> None:
    floats, int8 = profiled("onnx", folders["onnx"], candidate.graph.resized(1), 1)
    assert {"conv2d"} in [each.nodes for each in floats]
    assert {"conv2d"} in [each.nodes for each in int8]


@pytest.mark.parametrize(
    ("changed", "value", "said"),
    [
        (sys, shutil.which("false"), "profiling ended with 1: no message"),
        (profiling, 0.001, "profiling did not end within 0.001 s, and was ended"),
    ],
)
def test_a_profile_that_fails_says_why(
    changed: Any, value: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changed, "executable" if changed is sys else "_LONGEST", value)
    with pytest.raises(EvaluationError, match=said):
        profiled("onnx", [tmp_path], [torch.zeros(1)], 1)


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Microseconds and milliseconds as given here; notes what is measured."""
    done: list[str] = []
    operators = {"conv2d": (9.0, 20.0), "conv2d_1": (9.0, 20.0), "linear": (9.0, 1.0)}

    def profiled(format_name: str, folders: Sequence[Path], *_: Any) -> list[list[Duration]]:
        done.append("profile")
        return [[Duration(frozenset({name}), us[n]) for name, us in operators.items()] for n in range(len(folders))]

    def measure(_: Any, lanes: dict[str, Any], *rest: Any) -> dict[str, Timing]:
        done.append("latency")
        return {name: Timing(median) for name, median in zip(lanes, (2.0, 3.0, 1.0), strict=False)}

    monkeypatch.setattr(placing, "profiled", profiled)
    monkeypatch.setattr(latency, "measure", measure)
    return done


def test_export_leaves_float_what_is_faster_and_remembers_it(
    candidate: StaticCandidate, tmp_path: Path, measuring: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_one(placed: StaticCandidate, *rest: Any) -> Any:
        floats = placed.faster_in_float.get("onnxruntime", frozenset())
        kept = [set(each.float_ops) for each in Store(tmp_path / STORE).decisions().values() if each.float_ops]
        assert kept == ([floats] if floats else [])  # before it is acted on
        return original(placed, *rest)

    original = exporting.export_one
    monkeypatch.setattr(exporting, "export_one", export_one)
    artifact = lq_plugin.export(candidate, tmp_path, ["onnx"], threads=1, placement="auto")["onnx"]
    assert measuring == ["latency", "profile", "latency"]  # before, by operator, and with what that proposes
    assert [op["op"] for op in artifact.quantized_ops] == ["linear"]
    said = reasons(artifact.float_ops)
    assert {name for name, reason in said.items() if reason == REASON} == {"conv2d", "conv2d_1", "mean"}
    (decision,) = [each for each in Store(tmp_path / STORE).decisions().values() if each.float_ops]
    assert decision.int8
    assert "1.000 ms with 3 operators in float, 3.000 without; FP32 takes 2.000 ms a call" in decision.reason
    again = lq_plugin.export(candidate, tmp_path, ["onnx"], threads=1, placement="auto")["onnx"]
    assert measuring == ["latency", "profile", "latency"]
    assert again.files == artifact.files
    x = torch.randn(2, 3, 8, 8)
    wanted = candidate.reference.module(x)[0]
    assert (lq_plugin.load(again.path)(x) - wanted).norm() < 0.02 * wanted.norm()


def test_export_keeps_the_artifact_whose_placement_cannot_be_measured(
    candidate: StaticCandidate,
    tmp_path: Path,
    measuring: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(placing, "profiled", profiled)
    monkeypatch.setattr(profiling, "_LONGEST", 0.001)
    artifact = lq_plugin.export(candidate, tmp_path, ["onnx"], threads=1, placement="auto")["onnx"]
    assert {op["op"] for op in artifact.quantized_ops} > {"conv2d", "linear"}
    assert lq_plugin.load(artifact.path)(torch.zeros(1, 3, 8, 8)).shape == (1, 5)
    (record,) = [record for record in caplog.records if record.name == "lq_plugin"]
    assert "the placement of static/onnx cannot be decided on. EvaluationError" in record.getMessage()
    assert "did not end within 0.001 s" in record.getMessage()
    assert Store(tmp_path / STORE).decisions() == {}  # the next call tries again


def test_one_runtimes_decision_leaves_the_others_alone(candidate: StaticCandidate) -> None:
    decider = MeasuredPlacement(OPTIONS, {})
    digest = decider._keys(candidate, "onnx").placement
    decider.decisions[digest] = Measured(True, "", ("conv2d",))
    placed = decider.recalled(candidate, ["onnx", "openvino", "pt2"])
    assert placed.faster_in_float == {"onnxruntime": {"conv2d"}}
    assert "conv2d" not in placed.placed("onnxruntime").quantized
    assert placed.placed("openvino") == candidate.placed("openvino")
    assert decider.known(placed, "onnx") == decider.decisions[digest]
    other = MeasuredPlacement(replace(OPTIONS, batch_size=8), decider.decisions)
    assert other.known(candidate, "onnx") is None  # it was measured with one sample


@pytest.mark.parametrize(
    ("times", "float_ops", "int8", "said"),
    [
        ((2.0, 1.0), (), True, "measured here, 1.000 ms; FP32 takes 2.000 ms"),
        (
            (2.0, 3.0),
            (),
            False,
            "by its profile, no operator would be faster in float; FP32 takes 2.000 ms a call .*, so INT8 is slower",
        ),
        (
            (2.0, 3.0, 2.9),
            (),
            False,
            "in 1 trial, no operator was faster in float; .* so INT8 is slower",
        ),  # within the noise
        ((2.0, 3.0, 2.5), ("a",), False, "2.500 ms with 1 operator in float, 3.000 without; .* so INT8 is slower"),
        ((2.0, 3.0, 2.5, 1.5), ("b", "c"), True, r"1.500 ms with 2 operators in float.*\(threads: 1\)$"),
    ],
)
def test_only_what_is_faster_by_more_than_the_noise_is_chosen(
    times: tuple[float, ...], float_ops: tuple[str, ...], int8: bool, said: str
) -> None:
    proposed = {"one": frozenset({"a"}), "two": frozenset({"b", "c"})}
    lanes = dict(zip(("FP32", "as placed", *proposed), times, strict=False))
    made = placing._decision(lanes, {name: ops for name, ops in proposed.items() if name in lanes}, OPTIONS)
    assert (made.float_ops, made.int8) == (float_ops, int8)
    assert re.search(said, made.reason)


def test_nothing_is_measured_where_int8_is_known_to_be_faster(
    candidate: StaticCandidate, tmp_path: Path, measuring: list[str]
) -> None:
    decider = MeasuredPlacement(OPTIONS, {})
    assert decider.decided(candidate, "onnx", tmp_path, before=(2.0, 1.0)) is candidate
    assert measuring == []
    known = decider.known(candidate, "onnx")
    assert known is not None
    assert known.float_ops == ()


def test_an_unknown_placement_is_refused(candidate: StaticCandidate, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"placement: 'atuo' is unknown. Did you mean 'auto'"):
        lq_plugin.export(candidate, tmp_path, placement="atuo")
    with pytest.raises(ConfigError, match=r"placement: 'measured' is unknown"):
        lq_plugin.ArtifactExport(placement="measured")
