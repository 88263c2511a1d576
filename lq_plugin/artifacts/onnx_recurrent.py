"""Recurrent layers of a graph as the ``LSTM``, ``GRU`` and ``RNN`` nodes of ONNX, one for each layer.

Weights are in ONNX's order of gates and are initializers, which is what onnxruntime's dynamic quantizer looks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lq_plugin.errors import UnsupportedError, require
from lq_plugin.graph.graph import Graph, duplicate
from lq_plugin.graph.nodes import attribute
from lq_plugin.graph.recurrent import OPERATORS

PREFIX = "onnx_"  # of the module that computes a recurrent operator of the graph
# Positions in torch of the gates that ONNX wants: torch has i f g o and r z n, ONNX has i o f g and z r n.
_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}


def with_onnx_layers(graph: Graph) -> Graph:
    """Return the graph with a node for each recurrent layer, in the form of ONNX; the given one is not changed."""
    kinds = {operator.default: kind for kind, operator in OPERATORS.items()}
    if not any(node.target in kinds for node in graph.module.graph.nodes):
        return graph
    made = duplicate(graph)
    for node in list(made.module.graph.nodes):
        if node.target in kinds:
            weights = [attribute(made.module, weight) for weight in node.args[3]]
            name = f"{PREFIX}{node.name}"
            made.module.add_submodule(name, _Layers(kinds[node.target], weights, *node.args[4:]))
            with made.module.graph.inserting_before(node):
                node.replace_all_uses_with(made.module.graph.call_module(name, node.args[:3]))
            made.module.graph.erase_node(node)
    made.module.graph.eliminate_dead_code()
    made.module.recompile()
    return made


def translations() -> dict[Any, Callable[..., Any]]:
    """Return how the exporter writes ``lq_plugin::onnx_layer``."""
    op = require("onnxscript", "onnx", "formats: 'onnx'").opset18

    def layer(
        x: Any, w: Any, r: Any, b: Any, lengths: Any, hidden: Any, cell: Any, kind: str, size: int, nonlinearity: str
    ) -> Any:
        options = {"hidden_size": size, "direction": "bidirectional" if w.shape[0] == 2 else "forward"}
        if lengths is not None:
            lengths = op.Cast(lengths, to=6)  # int32
        if kind == "lstm":
            return op.LSTM(x, w, r, b, lengths, hidden, cell, **options)
        if kind == "gru":
            output, last = op.GRU(x, w, r, b, lengths, hidden, linear_before_reset=1, **options)
        else:
            activations = [nonlinearity.capitalize()] * w.shape[0]
            output, last = op.RNN(x, w, r, b, lengths, hidden, activations=activations, **options)
        return output, last, op.Identity(last)

    def int8_lstm_layer(
        x: Any, w: Any, r: Any, s: Any, b: Any, hidden: Any, cell: Any, scale: float, zero_point: int, reverse: bool
    ) -> Any:
        options = {"hidden_size": r.shape[2], "direction": "reverse" if reverse else "forward"}
        w, r = (op.DequantizeLinear(weight, s, axis=1) for weight in (w, r))
        return op.LSTM(x, w, r, b, None, hidden, cell, **options)

    return {
        torch.ops.lq_plugin.onnx_layer.default: layer,
        torch.ops.lq_plugin.int8_lstm_layer.default: int8_lstm_layer,
    }


class _Layers(nn.Module):
    """What a recurrent operator of a graph computes, layer by layer."""

    def __init__(
        self,
        kind: str,
        weights: Sequence[Tensor],
        has_biases: bool,
        layers: int,
        bidirectional: bool,
        batch_first: bool,
        nonlinearity: str,
    ) -> None:
        super().__init__()
        self.kind, self.layers, self.batch_first, self.nonlinearity = kind, layers, batch_first, nonlinearity
        self.directions, self.size = 2 if bidirectional else 1, weights[1].shape[1]
        each = 4 if has_biases else 2
        if len(weights) != each * layers * self.directions:
            raise UnsupportedError(
                "target: it has an LSTM with proj_size, which does not exist in ONNX. torch's formats keep it in float."
            )
        groups = [weights[start : start + each] for start in range(0, len(weights), each)]  # of a layer's direction
        for layer in range(layers):
            here = groups[layer * self.directions : (layer + 1) * self.directions]
            self.register_buffer(f"w{layer}", torch.stack([self._ordered(group[0]) for group in here]))
            self.register_buffer(f"r{layer}", torch.stack([self._ordered(group[1]) for group in here]))
            biases = [torch.cat([self._ordered(bias) for bias in group[2:]]) for group in here] if has_biases else None
            self.register_buffer(f"b{layer}", torch.stack(biases) if biases else None)

    def _ordered(self, tensor: Tensor) -> Tensor:
        gates = tensor.detach().chunk(len(_GATES[self.kind]))
        return torch.cat([gates[position] for position in _GATES[self.kind]])

    def forward(self, x: Tensor, lengths: Tensor | None, states: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        x = x.transpose(0, 1) if self.batch_first else x
        last = []
        for layer in range(self.layers):
            here = slice(layer * self.directions, (layer + 1) * self.directions)
            hidden, cell = ([state[here] for state in states] + [None, None])[:2]
            w, r, b = (getattr(self, f"{name}{layer}") for name in "wrb")
            y, *ends = torch.ops.lq_plugin.onnx_layer(
                x, w, r, b, lengths, hidden, cell, self.kind, self.size, self.nonlinearity
            )
            # One direction needs no copy of the whole sequence.
            x = y.squeeze(1) if self.directions == 1 else y.permute(0, 2, 1, 3).flatten(2)
            last.append(ends)
        output = x.transpose(0, 1) if self.batch_first else x
        return output, torch.cat([hidden for hidden, _ in last]), torch.cat([cell for _, cell in last])


def _shapes(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    hidden: Tensor | None,
    cell: Tensor | None,
    kind: str,
    size: int,
    nonlinearity: str,
) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch, _ = x.shape
    last = x.new_empty(w.shape[0], batch, size)
    return x.new_empty(steps, w.shape[0], batch, size), last, torch.empty_like(last)


torch.library.define(
    "lq_plugin::onnx_layer",
    "(Tensor x, Tensor w, Tensor r, Tensor? b, Tensor? lengths, Tensor? hidden, Tensor? cell, str kind, int size, "
    "str nonlinearity) -> (Tensor, Tensor, Tensor)",
)
torch.library.register_fake("lq_plugin::onnx_layer", _shapes)
