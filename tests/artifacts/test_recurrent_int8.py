"""INT8 recurrent layers, in torch and on onnxruntime, in every configuration."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from zoo.recurrent import Configuration, Recurrent, covering

import lq_plugin
from lq_plugin.artifacts import onnx_gru
from lq_plugin.artifacts.base import export_one
from lq_plugin.errors import UnsupportedError
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise

LEAST_SQNR = 25.0  # dB


def operators(graph: Any) -> Iterator[str]:
    """Operator types of a graph and of the steps inside it."""
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from operators(attribute.g)


def counted(folder: Path) -> Counter[str]:
    return Counter(operators(onnx.load(folder / "model.onnx").graph))


@pytest.fixture(autouse=True)
def integer_grus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the INT8 form of a GRU, however fast it is."""
    monkeypatch.setattr(onnx_gru, "LEAST_SPEEDUP", 0.0)
    monkeypatch.setattr(onnx_gru, "_SECONDS", 0.0)


@pytest.mark.parametrize("configuration", covering(3, ("lstm", "gru")), ids=str)
def test_int8_is_close_to_float_and_really_int8(configuration: Configuration, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Recurrent(configuration).eval()
    example = configuration.call(3, 5)
    candidate = lq_plugin.quantize(module, [example], "dynamic", dynamic_dims=configuration.dynamic_dims)
    artifacts = lq_plugin.export(candidate, tmp_path, ["onnx"])
    assert artifacts.keys() == {"onnx", "torch"}
    for artifact in artifacts.values():
        assert [op["op"] for op in artifact.quantized_ops] == [configuration.kind]
        loaded = lq_plugin.load(artifact.path, factory=lambda: Recurrent(configuration))
        sqnr = SignalToQuantizationNoise()
        for batch, steps in ((3, 5), (2, 8), (5, 3)):
            call = configuration.call(batch, steps)
            with torch.no_grad():
                sqnr.update(loaded(**call), module(**call))
        assert sqnr.compute() > LEAST_SQNR, artifact.format
    found = counted(tmp_path / "onnx")
    directions = 2 if configuration.bidirectional else 1
    if configuration.kind == "lstm":
        assert (found["DynamicQuantizeLSTM"], found["LSTM"]) == (configuration.layers, 0)
    else:
        assert (found["Scan"], found["GRU"]) == (configuration.layers * directions, 0)
        assert found["DynamicQuantizeMatMul"] == 2 * configuration.layers * directions


class WithHead(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


def test_a_gru_that_is_no_faster_stays_float_with_the_measured_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_gru, "LEAST_SPEEDUP", float("inf"))
    candidate = lq_plugin.quantize(WithHead(nn.GRU(4, 6, batch_first=True)), [torch.randn(3, 5, 4)], "dynamic")
    artifact = lq_plugin.export(candidate, tmp_path, ["onnx"])["onnx"]
    assert [op["op"] for op in artifact.quantized_ops] == ["linear"]
    (reason,) = [op["reason"] for op in artifact.float_ops if op["op"] == "gru"]
    measured = re.fullmatch(
        r"measured here, INT8 is no faster: (\d+\.\d\d)× at batch 1, (\d+\.\d\d)× at batch 3", reason
    )
    assert measured
    assert all(float(ratio) > 0 for ratio in measured.groups())
    assert (counted(artifact.path)["GRU"], counted(artifact.path)["Scan"]) == (1, 0)


def test_a_plain_rnn_is_listed_and_the_rest_is_quantized(tmp_path: Path) -> None:
    candidate = lq_plugin.quantize(WithHead(nn.RNN(4, 6)), [torch.randn(5, 3, 4)], "dynamic")
    for artifact in lq_plugin.export(candidate, tmp_path, ["onnx"]).values():
        assert [op["op"] for op in artifact.quantized_ops] == ["linear"]
        (reason,) = [op["reason"] for op in artifact.float_ops if op["op"] == "rnn"]
        assert "INT8" in reason


def test_openvino_refuses_what_it_would_leave_float(tmp_path: Path) -> None:
    candidate = lq_plugin.quantize(WithHead(nn.LSTM(4, 6)), [torch.randn(5, 3, 4)], "dynamic")
    with pytest.raises(UnsupportedError, match="openvino has no INT8 form of recurrent layers"):
        export_one(candidate, tmp_path / "openvino", "openvino")
    assert lq_plugin.export(candidate, tmp_path).keys() == {"onnx", "torch"}


@pytest.mark.parametrize("pattern", ["layer", "op:lstm"])
def test_a_skipped_layer_stays_float_in_every_format(pattern: str, tmp_path: Path) -> None:
    scheme = lq_plugin.Scheme("dynamic", skip=[pattern])
    candidate = lq_plugin.quantize(WithHead(nn.LSTM(4, 6)), [torch.randn(5, 3, 4)], scheme)
    artifacts = lq_plugin.export(candidate, tmp_path, ["onnx"])
    reasons = {"onnx": "skipped by 'layer'", "torch": f"skipped by {pattern!r}"}  # a graph knows a layer by its path
    for name, reason in reasons.items():
        assert [op["op"] for op in artifacts[name].quantized_ops] == ["linear"]
        assert [op["reason"] for op in artifacts[name].float_ops if op["op"] == "lstm"] == [reason]
