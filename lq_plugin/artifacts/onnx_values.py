"""Values of an ONNX graph, on ``onnx_ir``: what makes them, what is known of them, and another in place of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lq_plugin.errors import require

if TYPE_CHECKING:
    import onnx_ir as ir


def is_initializer(value: ir.Value | None) -> bool:
    """Whether a value is stored with the model."""
    return value is not None and value.is_initializer()


def constant(value: ir.Value | None) -> Any:
    """Return the array of a value that is known, else ``None``."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    """Return the node that makes a value, if it is of a kind."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == kind else None


def is_dequantized(value: ir.Value | None) -> bool:
    """Whether a value is made of integers."""
    return producer(value, "DequantizeLinear") is not None


def is_quantized(value: ir.Value) -> bool:
    """Whether every reader of a value quantizes it, after an activation that is computed with the product."""
    readers = value.consumers()
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        readers = readers[0].outputs[0].consumers()
    return bool(readers) and all(node.op_type == "QuantizeLinear" for node in readers)


def in_place_of(result: ir.Value, label: str) -> ir.Value:
    """Return a new value that takes a result's name and readers; the result is kept as ``<name>_<label>``.

    Nodes that are made afterwards may read the result, and compute the new value of it.
    """
    library = require("onnx_ir", "onnx", "formats: 'onnx'")
    value: ir.Value = library.Value(name=result.name, shape=result.shape, type=result.type)
    result.replace_all_uses_with(value, replace_graph_outputs=True)
    result.name = f"{result.name}_{label}"
    return value
