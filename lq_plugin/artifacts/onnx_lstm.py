"""INT8 LSTMs in ONNX: ``com.microsoft.DynamicQuantizeLSTM`` of onnxruntime.

onnxruntime's own quantizer makes the same node, but spreads 7 bits over -64 to 64. Written here, the weights of an LSTM
become the same integers as in every other format, also where they were learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lq_plugin.errors import require
from lq_plugin.qparams import QuantSpec, integers_of

if TYPE_CHECKING:
    import onnx_ir as ir

_OPERANDS = 8  # of the float operator; scales and zero points follow them


def with_integer_lstms(model: ir.Model, names: Sequence[str], weights: QuantSpec) -> ir.Model:
    """Return a copy of a model with some of its ``LSTM`` nodes in INT8; the model itself if there are none.

    Args:
        model: a model in which the weights of these nodes are initializers.
        names: names of the nodes.
        weights: which integers their weights become.
    """
    if not names:
        return model
    made = model.clone()
    for name in names:
        _replace(made.graph, made.graph.node(name), weights)
    made.opset_imports.setdefault("com.microsoft", 1)
    return made


def _replace(graph: ir.Graph, lstm: ir.Node, weights: QuantSpec) -> None:
    """Turn a float node into the INT8 one: same operands, weights as integers, then their scales and zero points."""
    given = list(lstm.inputs)
    lstm.op_type, lstm.domain, lstm.name = "DynamicQuantizeLSTM", "com.microsoft", f"{lstm.name}_quant"
    lstm.attributes.pop("layout", None)  # time comes first in all nodes, and this one knows no other layout
    lstm.resize_inputs(_OPERANDS + 4)
    for number, weight in enumerate(given[1:3]):
        assert weight is not None
        values = _integers(graph, weight, weights)
        for position, value in zip(
            (1 + number, _OPERANDS + 2 * number, _OPERANDS + 2 * number + 1), values, strict=True
        ):
            lstm.replace_input_with(position, value)
        if not weight.uses():
            graph.initializers.pop(str(weight.name))


def _integers(graph: ir.Graph, weight: ir.Value, spec: QuantSpec) -> list[ir.Value]:
    """A weight of shape ``(directions, 4 * hidden, inputs)`` as integers with the last two swapped; scales, zeros."""
    assert weight.const_value is not None
    directions = [integers_of(each, spec, 0) for each in torch.from_numpy(weight.const_value.numpy().copy())]
    integers, scale = (torch.stack(parts) for parts in zip(*directions, strict=True))
    arrays = {"quantized": integers.mT, "scale": scale, "zero_point": torch.zeros_like(scale, dtype=torch.int8)}
    return [_initializer(graph, f"{weight.name}_{name}", array) for name, array in arrays.items()]


def _initializer(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    """Add an initializer; equal layers of one name share it."""
    library = require("onnx_ir", "onnx", "formats: 'onnx'")
    if name not in graph.initializers:
        tensor = library.tensor(array.contiguous().numpy(), name=name)
        graph.initializers.add(
            library.Value(name=name, type=library.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        )
    return graph.initializers[name]
