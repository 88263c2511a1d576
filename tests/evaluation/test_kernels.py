"""What runtimes compute with is read from their own graphs, and operators that fell back to float are found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lq_plugin
from lq_plugin import Artifact, cpu
from lq_plugin.coverage import FloatOp, QuantizedOp
from lq_plugin.evaluation.kernels import counted
from lq_plugin.report.manifest import Entry, Kernels

RUNTIMES = ("onnx", "openvino")


class Pictures(nn.Module):
    """Down by convolutions, up by a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3))
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.up(F.relu(self.down(x)))))


class Attention(nn.Module):
    """Five linear layers, no two of them alike, and the two products of attention, which stay float."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(-1, 6, 4, 8).transpose(1, 2) for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 6, 32)
        return self.head(self.norm(x + self.out(attended)))


SHAPES = {Pictures: (3, 8, 8), Attention: (6, 32)}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[type[nn.Module], dict[str, Artifact]]:
    torch.manual_seed(0)
    made = {}
    for kind, shape in SHAPES.items():
        candidate = lq_plugin.quantize(kind().eval(), [torch.randn(4, *shape) for _ in range(2)])
        made[kind] = lq_plugin.export(candidate, tmp_path_factory.mktemp(kind.__name__), RUNTIMES)
    return made


def entry_of(artifact: Artifact) -> Entry:
    entry = Entry(artifact.candidate, artifact.method, artifact.runtime, artifact.format)
    return entry.exported(artifact, artifact.path.parent)


def kernels_of(entry: Entry, artifact: Artifact) -> Kernels:
    kernels = counted(entry, artifact.path).kernels
    assert kernels is not None
    return kernels


def numbers(kernels: Kernels) -> tuple[dict[str, int], dict[str, int]]:
    int8, float32 = ({kind: len(set(names)) for kind, names in by.items()} for by in (kernels.int8, kernels.float))
    return int8, float32


# Without VNNI it computes transposed convolutions in float.
PICTURES_ON_OPENVINO = (
    ({"Convolution": 3, "Deconvolution": 1}, {}) if cpu.has_vnni() else ({"Convolution": 3}, {"Deconvolution": 1})
)


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        (Pictures, "onnx", ({"QLinearConv": 3}, {"ConvTranspose": 1})),
        (Pictures, "openvino", PICTURES_ON_OPENVINO),
        (Attention, "onnx", ({"MatMulIntegerToFloat": 5}, {"FusedMatMul": 1, "MatMul": 1})),
        (Attention, "openvino", ({"FullyConnected": 5}, {})),
    ],
)
def test_kernels_are_counted_by_what_they_compute_on(
    kind: type[nn.Module], name: str, expected: tuple[dict[str, int], dict[str, int]], artifacts: Any
) -> None:
    artifact = artifacts[kind][name]
    found = kernels_of(entry_of(artifact), artifact)
    assert numbers(found) == expected
    # onnxruntime has no INT8 kernel for transposed convolutions, so none was placed in INT8. Nor were the
    # products of two activations; OpenVINO generates code for them together with the softmax.
    assert found.fell_back == {}


def test_float_kernels_are_a_fallback_only_of_operators_placed_in_int8(artifacts: Any) -> None:
    artifact = artifacts[Attention]["onnx"]
    entry = entry_of(artifact)
    placed = replace(entry, quantized_ops=(*entry.quantized_ops, *(QuantizedOp(name, "matmul") for name in "ab")))
    assert kernels_of(placed, artifact).fell_back == {"matmul": 2}
    one_skipped = replace(placed, float_ops=(*entry.float_ops, FloatOp("c", "bmm", "skipped by 'op:bmm'")))
    assert kernels_of(one_skipped, artifact).fell_back == {"matmul": 1}


def test_operators_that_run_in_float_are_listed_by_their_names(artifacts: Any) -> None:
    """As if the transposed convolution, for which onnxruntime has no INT8 kernel, had been placed in INT8."""
    artifact = artifacts[Pictures]["onnx"]
    entry = entry_of(artifact)
    (left,) = (op for op in entry.float_ops if op.name == "up.conv_transpose2d")
    placed = replace(
        entry,
        quantized_ops=(*entry.quantized_ops, QuantizedOp(left.name, left.op)),
        float_ops=tuple(op for op in entry.float_ops if op != left),
    )
    found = counted(placed, artifact.path)
    assert found.quantized_ops == entry.quantized_ops
    listed = {op.name: op.reason for op in found.float_ops}
    assert listed[left.name] == "runs in float on onnxruntime, which chose no INT8 kernel for it"
    assert found.kernels is not None
    assert found.kernels.fell_back == {}


def test_an_artifact_whose_kernels_cannot_be_read_says_so(
    artifacts: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = entry_of(artifacts[Attention]["openvino"])
    assert counted(entry, tmp_path) == entry
    assert "static/openvino: its kernels are not known (" in caplog.text


@pytest.mark.parametrize("name", ["pt2", "torch"])
def test_formats_of_torch_have_no_kernels_to_read(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = Entry("static", "static", "torch", name)
    assert counted(entry, tmp_path) == entry
    assert caplog.text == ""
