"""Recurrent layers in a graph: whole, for every length, with the numbers of the module."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo.recurrent import Configuration, Recurrent, covering

import lq_plugin
from lq_plugin.artifacts import onnx
from lq_plugin.artifacts.writing import export_one
from lq_plugin.errors import UnsupportedError
from lq_plugin.graph.capture import capture
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.prepare import prepare

SIZES = ((3, 5), (2, 7), (4, 3))


def captured(module: nn.Module, configuration: Configuration) -> Graph:
    return prepare(module, (), configuration.call(3, 5), configuration.dynamic_dims)


def assert_same(module: nn.Module, configuration: Configuration, graph: Graph, run: object) -> None:
    for batch, steps in SIZES:
        call = configuration.call(batch, steps)
        flat = [tensor.contiguous() for tensor in graph.signature.flatten((), call)]
        with torch.no_grad():
            given = graph.signature.unflatten(run(flat))  # type: ignore[operator]
            for got, wanted in zip(tree_leaves(given), tree_leaves(module(**call)), strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("configuration", covering(2), ids=str)
def test_a_graph_computes_what_the_layer_does_at_every_size(configuration: Configuration, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Recurrent(configuration).eval()
    graph = captured(module, configuration)
    operators = [str(node.target) for node in graph.module.graph.nodes if node.op == "call_function"]
    assert operators.count(f"lq_plugin.{configuration.kind}.default") == 1
    assert_same(module, configuration, graph, lambda flat: graph.module(*flat))
    onnx.export(graph, tmp_path)
    assert_same(module, configuration, graph, onnx.load(tmp_path, 1))


@pytest.mark.parametrize(("total", "enforce_sorted"), [(True, False), (False, True)])
def test_packing_knows_the_total_length_and_sorted_batches(total: bool, enforce_sorted: bool, tmp_path: Path) -> None:
    configuration = Configuration("gru", 1, True, True, packed=True, state=False, bias=True)
    module = Recurrent(configuration, total, enforce_sorted).eval()
    x = torch.randn(3, 5, 4)
    graph = prepare(module, (x, torch.tensor([4, 2, 1])), {}, {"x": [1]})
    onnx.export(graph, tmp_path)
    run, given = onnx.load(tmp_path, 1), (torch.randn(3, 6, 4), torch.tensor([5, 5, 2]))
    for results in (graph.module(*given), run(given)):
        with torch.no_grad():
            for got, wanted in zip(results, tree_leaves(module(*given)), strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_capturing_leaves_torch_as_it_was() -> None:
    before = nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward, torch.nn.utils.rnn._VF
    capture(nn.LSTM(2, 3), [torch.randn(4, 2, 2)])
    with pytest.raises(lq_plugin.errors.CaptureError):
        capture(Broken(), [torch.randn(4, 2)])
    assert before == (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward, torch.nn.utils.rnn._VF)


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Stepwise(nn.Module):
    """Cells, one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.LSTMCell(4, 6), nn.GRUCell(6, 6), nn.RNNCell(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)[0]))


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_cells_are_linear_layers_of_a_graph(method: str, tmp_path: Path) -> None:
    module, x = Stepwise().eval(), torch.randn(8, 4)
    artifact = lq_plugin.export(lq_plugin.quantize(module, [x], method), tmp_path, ["onnx"])["onnx"]
    assert [op["op"] for op in artifact.quantized_ops] == ["linear"] * 6
    with torch.no_grad():
        torch.testing.assert_close(lq_plugin.load(artifact.path)(x), module(x), rtol=0, atol=0.05)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projection_stays_in_torch_and_onnx_says_why(tmp_path: Path) -> None:
    module = nn.Sequential(nn.LSTM(4, 6, proj_size=3), First(), nn.Linear(3, 2)).eval()
    x = torch.randn(5, 2, 4)
    graph = prepare(module, [x])
    with torch.no_grad():
        torch.testing.assert_close(graph.module(x)[0], module(x))
    candidate = lq_plugin.quantize(module, [x], "dynamic")
    with pytest.raises(UnsupportedError, match="an LSTM with proj_size, which does not exist in ONNX"):
        export_one(candidate, tmp_path / "onnx", "onnx")
    made = lq_plugin.export(candidate, tmp_path, ["torch"])["torch"]
    assert {op["op"]: op["reason"] for op in made.float_ops} == {"lstm": "torch has no INT8 kernel for proj_size"}


class First(nn.Module):
    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return x[0]


class Stateful(nn.Module):
    """Takes and returns states, whose batch is their second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, 2, batch_first=True)

    def forward(self, x: Tensor, states: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output, states = self.lstm(x, states)
        return output, states


@pytest.mark.parametrize("batch", [1, 7])
def test_states_follow_the_batch(batch: int) -> None:
    torch.manual_seed(0)
    model, states = Stateful().eval(), torch.zeros(2, batch, 5)
    graph = capture(model, [torch.randn(batch, 4, 3), (states, states)])
    assert [given["shape"] for _, given in graph.signature.tensors()] == [[None, 4, 3], [2, None, 5], [2, None, 5]]
    tensors = graph.resized(3)
    assert [tensor.shape for tensor in tensors] == [(3, 4, 3), (2, 3, 5), (2, 3, 5)]
    expected, (hidden, _) = model(tensors[0], tensors[1:])
    found, found_hidden, _ = graph.module(*tensors)
    assert torch.equal(found, expected)
    assert torch.equal(found_hidden, hidden)
