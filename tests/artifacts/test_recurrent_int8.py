"""INT8 recurrent layers, in torch and on onnxruntime, in every configuration."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from zoo.recurrent import HIDDEN, INPUTS, Configuration, Recurrent, covering

import lq_plugin
from lq_plugin.artifacts import onnx_gru
from lq_plugin.artifacts.writing import export_one
from lq_plugin.coverage import QuantizedOp
from lq_plugin.errors import ArtifactError, ConfigError, UnsupportedError
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.evaluation.kernels import counted as with_kernels
from lq_plugin.qparams import QuantSpec
from lq_plugin.report.manifest import Entry

LEAST_SQNR = 25.0  # dB
WEIGHTS = QuantSpec(bits=7, symmetric=True, per_channel=True)  # 8 may saturate without VNNI


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


class Tagging(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = Recurrent(Configuration(kind, 1, False, True, False, False, True))
        self.last = nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x)[0])


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_nothing_is_refused_where_the_runtime_would_end_the_process(kind: str, method: str, tmp_path: Path) -> None:
    candidate = lq_plugin.quantize(Tagging(kind), [torch.randn(4, 6, INPUTS)], lq_plugin.Scheme(method, algorithms=[]))
    loaded = lq_plugin.load(lq_plugin.export(candidate, tmp_path, ["onnx"])["onnx"].path)
    with pytest.raises(ArtifactError, match="a tensor is empty"):
        loaded(torch.randn(0, 6, INPUTS))


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


def gru_of_onnx(inputs: int, hidden: int, directions: int, bias: bool, packed: bool, state: bool) -> ir.Model:
    """A model of one ``GRU`` node, its weights drawn as torch draws them."""
    draw = np.random.default_rng(0)
    shapes = {"w": (directions, 3 * hidden, inputs), "r": (directions, 3 * hidden, hidden)}
    shapes |= {"b": (directions, 6 * hidden)} if bias else {}
    weights = {name: draw.uniform(-1, 1, shape).astype(np.float32) / hidden**0.5 for name, shape in shapes.items()}
    given = {"x": ("f", ["t", "n", inputs]), "lengths": ("i", ["n"]), "h": ("f", [directions, "n", hidden])}
    names = ["x", "w", "r", "b" if bias else "", "lengths" if packed else "", "h" if state else ""]
    node = onnx.helper.make_node(
        "GRU",
        names,
        ["y", "last"],
        "gru",
        hidden_size=hidden,
        linear_before_reset=1,
        direction="forward" if directions == 1 else "bidirectional",
    )
    types = {"f": onnx.TensorProto.FLOAT, "i": onnx.TensorProto.INT32}
    values = {name: onnx.helper.make_tensor_value_info(name, types[t], shape) for name, (t, shape) in given.items()}
    outputs = [onnx.helper.make_tensor_value_info(name, types["f"], None) for name in ("y", "last")]
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = onnx.helper.make_graph([node], "g", [values[n] for n in names if n in values], outputs, initializers)
    opsets = [onnx.helper.make_opsetid("", 18)]
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))


def outputs_of(model: ir.Model, feed: dict[str, Any]) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    proto = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)


@pytest.mark.parametrize(
    ("directions", "bias", "packed", "state"), list(itertools.product((1, 2), *[(True, False)] * 3))
)
def test_the_input_product_of_a_narrow_gru_stays_float_and_is_more_accurate(
    directions: int, bias: bool, packed: bool, state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gru_of_onnx(16, 64, directions, bias, packed, state)
    draw = np.random.default_rng(1)
    feed: dict[str, Any] = {"x": draw.standard_normal((12, 3, 16), np.float32)}
    feed |= {"lengths": np.array([12, 5, 1], np.int32)} if packed else {}
    feed |= {"h": draw.uniform(-1, 1, (directions, 3, 64)).astype(np.float32)} if state else {}
    wanted = outputs_of(model, feed)

    def sqnr(made: ir.Model) -> float:
        metric = SignalToQuantizationNoise()
        for one, other in zip(outputs_of(made, feed), wanted, strict=True):
            metric.update(torch.from_numpy(one), torch.from_numpy(other))
        return metric.compute().item()

    def counts(made: ir.Model) -> tuple[Counter[str], Counter[str]]:
        """Operators around the scans, and in their steps."""
        around = Counter(node.op_type for node in made.graph)
        return around, Counter(node.op_type for node in made.graph.all_nodes()) - around

    in_part = onnx_gru.with_integer_grus(model, ["gru"], WEIGHTS)
    around, steps = counts(in_part)
    assert (around["MatMul"], around["DynamicQuantizeMatMul"], around["GRU"]) == (directions, 0, 0)
    assert (steps["MatMul"], steps["DynamicQuantizeMatMul"]) == (0, directions)
    monkeypatch.setattr(onnx_gru, "_NARROW", float("inf"))
    whole = onnx_gru.with_integer_grus(model, ["gru"], WEIGHTS)
    around, steps = counts(whole)
    assert (around["MatMul"], around["DynamicQuantizeMatMul"]) == (0, directions)
    assert (steps["MatMul"], steps["DynamicQuantizeMatMul"]) == (0, directions)
    assert sqnr(in_part) > sqnr(whole) + 8  # 9 to 15 dB


@pytest.mark.parametrize(("inputs", "narrow"), [(16, True), (17, False)])
def test_an_input_is_narrow_up_to_a_quarter_of_the_hidden_size(inputs: int, narrow: bool) -> None:
    model = gru_of_onnx(inputs, 64, 1, bias=True, packed=False, state=False)
    assert onnx_gru.is_narrow(model.graph.node("gru")) is narrow


class WithHead(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


def test_of_two_layers_only_the_first_has_a_narrow_input_and_that_is_listed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 4), nn.GRU(4, 16, 2, batch_first=True, bidirectional=True)).eval()
    candidate = lq_plugin.quantize(network, [torch.randn(3, 7, 5)], lq_plugin.Scheme("dynamic", skip=["0"]))
    artifact = export_one(candidate, tmp_path / "onnx", "onnx")
    assert [op["name"] for op in artifact.quantized_ops] == ["1.gru"]
    left, skipped = artifact.float_ops
    assert (left["name"], left["op"], skipped["op"]) == ("1.gru", "input product of gru", "linear")
    assert left["reason"].startswith("its input is narrow (4 wide, hidden size 16): ")
    found = counted(artifact.path)
    assert (found["Scan"], found["MatMul"], found["DynamicQuantizeMatMul"]) == (4, 3, 6)
    entry = Entry("dynamic", "dynamic", "onnxruntime", "onnx").exported(artifact, tmp_path)
    entry = with_kernels(entry, artifact.path)
    kernels = entry.kernels
    assert kernels is not None
    assert [op.name for op in entry.quantized_ops] == ["1.gru"]
    assert {kind: len(names) for kind, names in kernels.int8.items()} == {"DynamicQuantizeMatMul": 6}
    assert {kind: len(names) for kind, names in kernels.float.items()} == {"MatMul": 3}
    assert kernels.fell_back == {}


@pytest.mark.parametrize("threads", [0, -1])
def test_too_few_threads_are_refused(threads: int, tmp_path: Path) -> None:
    candidate = lq_plugin.quantize(nn.Linear(4, 2), [torch.randn(3, 4)], "dynamic")
    with pytest.raises(ConfigError, match=rf"threads: {threads} is too small. Allowed: 1 or more, or None"):
        lq_plugin.export(candidate, tmp_path, ["onnx"], threads=threads)


def test_a_gru_that_is_no_faster_stays_float_with_the_measured_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_gru, "LEAST_SPEEDUP", float("inf"))
    candidate = lq_plugin.quantize(WithHead(nn.GRU(4, 6, batch_first=True)), [torch.randn(3, 5, 4)], "dynamic")
    artifact = lq_plugin.export(candidate, tmp_path, ["onnx"], threads=1)["onnx"]
    assert [op["op"] for op in artifact.quantized_ops] == ["linear"]
    (reason,) = [op["reason"] for op in artifact.float_ops if op["op"] == "gru"]
    measured = re.fullmatch(
        r"measured here, INT8 is no faster: (\d+\.\d\d)× at batch 1, (\d+\.\d\d)× at batch 3 \(threads: 1\)", reason
    )
    assert measured
    assert all(float(ratio) > 0 for ratio in measured.groups())
    assert (counted(artifact.path)["GRU"], counted(artifact.path)["Scan"]) == (1, 0)
    entry = Entry("dynamic", "dynamic", "onnxruntime", "onnx").exported(artifact, tmp_path)
    placed = replace(entry, quantized_ops=(*entry.quantized_ops, QuantizedOp("layer", "gru")), float_ops=())
    found = [with_kernels(each, artifact.path) for each in (entry, placed)]
    assert [each.kernels and each.kernels.fell_back for each in found] == [{}, {"gru": 1}]


def test_a_plain_rnn_is_listed_and_the_rest_is_quantized(tmp_path: Path) -> None:
    candidate = lq_plugin.quantize(WithHead(nn.RNN(4, 6)), [torch.randn(5, 3, 4)], "dynamic")
    for artifact in lq_plugin.export(candidate, tmp_path, ["onnx"]).values():
        assert [op["op"] for op in artifact.quantized_ops] == ["linear"]
        (reason,) = [op["reason"] for op in artifact.float_ops if op["op"] == "rnn"]
        assert "INT8" in reason


def test_openvino_refuses_what_it_would_leave_float(tmp_path: Path) -> None:
    candidate = lq_plugin.quantize(WithHead(nn.LSTM(4, 6)), [torch.randn(5, 3, 4)], "dynamic")
    with pytest.raises(UnsupportedError, match="recurrent layers have no dynamic INT8 form here for openvino"):
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
