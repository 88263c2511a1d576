"""LSTMs with fixed scales: on OpenVINO's INT8 kernels, and float with a reason where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo.recurrent import Configuration, Recurrent

import lq_plugin
from lq_plugin import Artifact, Scheme
from lq_plugin.artifacts import openvino
from lq_plugin.candidate import StaticCandidate
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.evaluation.kernels import counted
from lq_plugin.report.manifest import Entry
from lq_plugin.runtimes import RUNTIMES
from lq_plugin.search.sensitivity import sensitivity

PLAIN = Scheme(algorithms=())
LENGTH, INPUTS, HIDDEN = 12, 16, 32


class Tagger(nn.Module):
    """Returns all that an LSTM gives, of its output what a linear layer makes of it."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = nn.LSTM(INPUTS, HIDDEN, **options)
        self.head = nn.Linear(HIDDEN * (2 if self.layer.bidirectional else 1), 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (hidden, cell) = self.layer(x)
        return self.head(y), hidden, cell


@dataclass(frozen=True)
class Made:
    model: Tagger
    candidate: StaticCandidate
    batch: Tensor
    artifact: Artifact

    @property
    def entry(self) -> Entry:
        placed = Entry("static", "static", "openvino", "openvino")
        return placed.exported(self.artifact, self.artifact.path.parent)


def made_of(folder: Path, scheme: Scheme = PLAIN, length: int = LENGTH, dynamic: bool = True, **options: Any) -> Made:
    torch.manual_seed(0)
    model = Tagger(**options).eval()
    dims = {"x": [0, 1]} if dynamic else None
    candidate = lq_plugin.quantize(model, [torch.randn(8, length, INPUTS) for _ in range(4)], scheme, dynamic_dims=dims)
    assert isinstance(candidate, StaticCandidate)
    artifact = lq_plugin.export(candidate, folder, ["openvino"])["openvino"]
    return Made(model, candidate, torch.randn(*((5, 9) if dynamic else (8, length)), INPUTS), artifact)


@pytest.fixture(scope="module", params=[False, True], ids=["forward", "bidirectional"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("lstm")
    return made_of(folder, num_layers=2, bidirectional=request.param, batch_first=not request.param)


def check_kernels(made: Made, layers: int) -> None:
    """Each layer and direction is computed on integers, and so is the linear layer."""
    entry = counted(made.entry, made.artifact.path)
    assert [op.op for op in entry.quantized_ops] == ["lstm", "linear"]
    assert entry.kernels is not None
    assert {kind: len(names) for kind, names in entry.kernels.int8.items()} == {"FullyConnected": 1, "RNNSeq": layers}
    assert (entry.kernels.float, entry.kernels.fell_back) == ({}, {})


def check_outputs(made: Made, least_sqnr: float) -> None:
    """The artifact computes what the converted graph does, which is close to the model."""
    sqnr = SignalToQuantizationNoise()
    with torch.no_grad():
        wanted, emulated = made.model(made.batch), made.candidate.in_torch("openvino")(made.batch)
        given = lq_plugin.load(made.artifact.path)(made.batch)
    sqnr.update(given, wanted)
    assert sqnr.compute() > least_sqnr
    for one, other in zip(given, emulated, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_every_layer_and_direction_runs_in_int8_and_stays_close(made: Made) -> None:
    check_kernels(made, 4 if made.model.layer.bidirectional else 2)
    check_outputs(made, 35)


@pytest.mark.parametrize(
    "options",
    [
        {"dynamic": False, "bias": False, "scheme": Scheme(algorithms=(), reduce_range=True)},
        {"dynamic": False, "length": 1, "scheme": Scheme(algorithms=(), weight_granularity="per_tensor")},
        {"scheme": Scheme(algorithms=(), weight_symmetric=False)},
    ],
    ids=["no biases, 7 bits", "one step, one scale", "asymmetric"],
)
def test_other_lstms_run_in_int8_too(options: dict[str, Any], tmp_path: Path) -> None:
    made = made_of(tmp_path, batch_first=True, **options)
    check_kernels(made, 1)
    check_outputs(made, 30)


def test_an_lstm_is_ranked_by_what_it_costs(made: Made) -> None:
    batch = torch.randn(8, LENGTH, INPUTS)
    estimated, true = (
        {each.op: each.error for each in sensitivity(made.candidate, [batch], exhaustive=exhaustive)}
        for exhaustive in (False, True)
    )
    assert estimated.keys() == true.keys() == {"lstm", "linear"}
    for op, error in true.items():
        assert error / 3 < estimated[op] < 3 * error


def test_an_lstm_that_runs_in_float_is_counted(made: Made, tmp_path: Path) -> None:
    """As if OpenVINO had found no INT8 kernel: what it loads is the float model."""
    openvino.export(made.candidate.reference, tmp_path)
    entry = counted(made.entry, tmp_path)
    assert entry.kernels is not None
    assert entry.kernels.fell_back["lstm"] == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"state": True}, "its initial states are given"), ({"packed": True}, "its sequences are packed")],
)
def test_a_layer_without_an_int8_form_stays_float_and_says_why(options: dict[str, bool], reason: str) -> None:
    plain = dict.fromkeys(("bidirectional", "packed", "state"), False)
    configuration = Configuration("lstm", 1, batch_first=True, bias=True, **{**plain, **options})
    model = WithHead(Recurrent(configuration))
    candidate = lq_plugin.quantize(model, [configuration.call(3, 5)], PLAIN, dynamic_dims=configuration.dynamic_dims)
    assert {op.op: op.reason for op in candidate.placed("openvino").float_ops}["lstm"] == reason


class WithHead(nn.Module):
    def __init__(self, layer: nn.Module, width: int = 6) -> None:
        super().__init__()
        self.layer, self.head = layer.eval(), nn.Linear(width, 3)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, h: Tensor | None = None, c: Tensor | None = None
    ) -> Tensor:
        given = [each for each in (lengths, h, c) if each is not None]
        return self.head(self.layer(x, *([lengths, h, c] if given else []))[0])


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch, in float
def test_an_lstm_with_a_projection_stays_float_everywhere() -> None:
    model = WithHead(nn.LSTM(4, 6, proj_size=2, batch_first=True), 2)
    candidate = lq_plugin.quantize(model, [torch.randn(3, 5, 4)], PLAIN)
    for runtime in RUNTIMES:
        assert {op.op: op.reason for op in candidate.placed(runtime).float_ops}["lstm"] == "it has a projection"


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_other_runtimes_compute_it_in_float(made: Made, runtime: str) -> None:
    placed = made.candidate.placed(runtime)
    assert [op.op for op in placed.quantized.values()] == ["linear"]
    (left,) = placed.float_ops
    assert left.reason == f"{runtime} has an INT8 kernel for LSTMs only in dynamic quantization"


@pytest.mark.parametrize("patterns", [{"skip": ["layer"]}, {"skip": ["op:lstm"]}, {"only": ["head"]}])
def test_a_skipped_lstm_is_not_observed(patterns: dict[str, list[str]]) -> None:
    candidate = lq_plugin.quantize(Tagger(), [torch.randn(2, 5, INPUTS)], Scheme(algorithms=(), **patterns))
    assert isinstance(candidate, StaticCandidate)
    assert [op.op for op in candidate.united.quantized.values()] == ["linear"]
    assert not [name for name in candidate.statistics if "." in name]
