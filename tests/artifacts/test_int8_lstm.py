"""LSTMs with fixed scales: on OpenVINO's INT8 kernels, and float with a reason where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov
import pytest
import torch
from torch import Tensor, nn
from zoo.recurrent import Configuration, Recurrent

import lq_plugin
from lq_plugin import Artifact, Scheme
from lq_plugin.artifacts import openvino
from lq_plugin.candidate import StaticCandidate
from lq_plugin.coverage import QuantizedOp
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.evaluation.kernels import counted
from lq_plugin.report.manifest import Entry
from lq_plugin.runtimes import RUNTIMES
from lq_plugin.search.cost import operations
from lq_plugin.search.sensitivity import sensitivity

PLAIN = Scheme(algorithms=())
BATCH, LENGTH, INPUTS, HIDDEN = 8, 12, 16, 32
OPTIONS: dict[str, dict[str, Any]] = {
    "forward": {"scheme": Scheme(algorithms=(), weight_symmetric=False), "batch_first": True},
    "bidirectional": {
        "scheme": Scheme(algorithms=(), weight_granularity="per_tensor", reduce_range=True),
        "num_layers": 2,
        "bidirectional": True,
        "bias": False,
    },
}
forward_only = pytest.mark.parametrize("made", ["forward"], indirect=True)


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
    artifact: Artifact

    def inputs(self, batch: int = BATCH, length: int = LENGTH) -> Tensor:
        return torch.randn((batch, length, INPUTS) if self.model.layer.batch_first else (length, batch, INPUTS))

    @property
    def entry(self) -> Entry:
        placed = Entry("static", "static", "openvino", "openvino")
        return placed.exported(self.artifact, self.artifact.path.parent)


@pytest.fixture(scope="module", params=OPTIONS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.manual_seed(0)
    options = dict(OPTIONS[request.param])
    scheme, model = options.pop("scheme"), Tagger(**options).eval()
    batches = [torch.randn(BATCH, BATCH, INPUTS) for _ in range(4)]  # of either order
    candidate = lq_plugin.quantize(model, batches, scheme, dynamic_dims={"x": [0, 1]})
    assert isinstance(candidate, StaticCandidate)
    artifact = lq_plugin.export(candidate, tmp_path_factory.mktemp("lstm"), ["openvino"])["openvino"]
    return Made(model, candidate, artifact)


def test_every_layer_and_direction_runs_in_int8(made: Made) -> None:
    entry = counted(made.entry, made.artifact.path)
    assert [op.op for op in entry.quantized_ops] == ["lstm", "linear"]
    assert entry.kernels is not None
    layers = 4 if made.model.layer.bidirectional else 1  # and directions
    assert {kind: len(names) for kind, names in entry.kernels.int8.items()} == {"FullyConnected": 1, "RNNSeq": layers}
    assert (entry.kernels.float, entry.kernels.fell_back) == ({}, {})


@pytest.mark.parametrize("shape", [(BATCH, LENGTH), (5, 9), (3, 1)])
def test_the_artifact_computes_what_the_converted_graph_does_and_is_close_to_the_model(
    made: Made, shape: tuple[int, int]
) -> None:
    sqnr, x = SignalToQuantizationNoise(), made.inputs(*shape)
    with torch.no_grad():
        wanted, emulated = made.model(x), made.candidate.in_torch("openvino")(x)
        given = lq_plugin.load(made.artifact.path)(x)
    sqnr.update(given, wanted)
    assert sqnr.compute() > 30
    for one, other in zip(given, emulated, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_an_lstm_is_ranked_by_what_it_costs(made: Made) -> None:
    batch = made.inputs()
    estimated, true = (
        {each.op: each.error for each in sensitivity(made.candidate, [batch], exhaustive=exhaustive)}
        for exhaustive in (False, True)
    )
    assert estimated.keys() == true.keys() == {"lstm", "linear"}
    for op, error in true.items():
        assert error / 3 < estimated[op] < 3 * error


def test_its_work_is_that_of_its_weights_in_every_step(made: Made) -> None:
    found, options = operations(made.candidate.graph), made.model.layer
    weights = sum(weight.numel() for weight in options.parameters() if weight.dim() == 2)
    assert found["lstm"] == BATCH * BATCH * weights
    assert found["linear"] == BATCH * BATCH * made.model.head.weight.numel()


@forward_only
def test_fp32_and_int8_are_charged_for_its_time(made: Made, tmp_path: Path) -> None:
    openvino.export(made.candidate.reference, tmp_path)
    for folder in (tmp_path, made.artifact.path):
        assert any("lstm" in each.nodes for each in openvino.profile(folder, [made.inputs()], 1))


@forward_only
def test_an_lstm_that_runs_in_float_is_listed(made: Made, tmp_path: Path) -> None:
    """Without the rounding of activations, OpenVINO has no INT8 kernel for it."""
    model = ov.Core().read_model(made.artifact.path / openvino.FILE)
    for node in model.get_ops():
        if node.get_type_name() == "FakeQuantize":
            node.output(0).replace(node.input_value(0))
    ov.save_model(model, tmp_path / openvino.FILE, compress_to_fp16=False)
    entry = counted(made.entry, tmp_path)
    assert QuantizedOp("layer.lstm", "lstm") not in entry.quantized_ops
    assert {op.name: op.reason.partition(",")[0] for op in entry.float_ops}["layer.lstm"] == "runs in float on openvino"


class WithHead(nn.Module):
    def __init__(self, layer: nn.Module, width: int = 6) -> None:
        super().__init__()
        self.layer, self.head = layer.eval(), nn.Linear(width, 3)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, h: Tensor | None = None, c: Tensor | None = None
    ) -> Tensor:
        given = [each for each in (lengths, h, c) if each is not None]
        return self.head(self.layer(x, *([lengths, h, c] if given else []))[0])


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


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch, in float
def test_an_lstm_with_a_projection_stays_float_everywhere() -> None:
    model = WithHead(nn.LSTM(4, 6, proj_size=2, batch_first=True), 2)
    candidate = lq_plugin.quantize(model, [torch.randn(3, 5, 4)], PLAIN)
    for runtime in RUNTIMES:
        assert {op.op: op.reason for op in candidate.placed(runtime).float_ops}["lstm"] == "it has a projection"


@forward_only
@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_other_runtimes_compute_it_in_float(made: Made, runtime: str) -> None:
    placed = made.candidate.placed(runtime)
    assert [op.op for op in placed.quantized.values()] == ["linear"]
    (left,) = placed.float_ops
    assert left.reason == f"{runtime} has an INT8 kernel for LSTMs only in dynamic quantization"


def test_a_skipped_lstm_is_not_observed() -> None:
    candidate = lq_plugin.quantize(Tagger(), [torch.randn(2, 5, INPUTS)], Scheme(algorithms=(), skip=("op:lstm",)))
    assert isinstance(candidate, StaticCandidate)
    assert [op.op for op in candidate.united.quantized.values()] == ["linear"]
    assert not [name for name in candidate.statistics if "." in name]


class Chain(nn.Module):
    """LSTMs whose layers have the same sizes, of which OpenVINO keeps one kernel with the scales of one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(INPUTS, INPUTS, num_layers=2), nn.LSTM(INPUTS, INPUTS, bidirectional=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = self.first(x)
        return y, self.second(3 * y)[0]


def test_layers_of_the_same_sizes_have_scales_of_their_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(LENGTH, BATCH, INPUTS)
    made = lq_plugin.quantize(Chain(), [x], PLAIN)
    given = lq_plugin.load(lq_plugin.export(made, tmp_path, ["openvino"])["openvino"].path)(x)
    for one, other in zip(given, made.in_torch("openvino")(x), strict=True):
        assert torch.allclose(one, other, atol=1e-4)
