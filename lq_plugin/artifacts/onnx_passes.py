"""Rewrites of an exported ONNX graph that let a runtime use its INT8 kernels, on ``onnx_ir``.

A pass changes a model in place and keeps the names of inputs and outputs, and of every node that computes something:
calls find their tensors by name, and the coverage its operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lq_plugin.errors import require

if TYPE_CHECKING:
    import onnx_ir as ir

Pass = Callable[["ir.Model"], None]


def split_biased_gemm(model: ir.Model) -> None:
    """Split a quantized ``Gemm`` with a bias into ``Gemm`` and ``Add`` where its result is not quantized.

    onnxruntime computes a ``Gemm`` on integers only without a bias, or with a result that is quantized too. A bias
    that ``Gemm`` scales (``torch.addmm(…, beta=0.5)``) stays where it is.
    """
    ir = require("onnx_ir", "onnx", "formats: 'onnx'")
    for gemm in [node for node in model.graph if node.op_type == "Gemm" and len(node.inputs) == 3]:
        (result,) = gemm.outputs
        scaled = gemm.attributes.get_float("beta", 1.0) != 1.0
        if scaled or not _is_dequantized(gemm.inputs[0]) or _is_quantized(result):
            continue
        total = ir.Value(name=result.name, shape=result.shape, type=result.type)
        add = ir.Node("", "Add", [None, gemm.inputs[2]], outputs=[total], name=f"{gemm.name}_bias")
        result.replace_all_uses_with(total, replace_graph_outputs=True)
        result.name = f"{result.name}_product"
        add.replace_input_with(0, result)  # not before the other uses of the result were replaced
        gemm.resize_inputs(2)
        model.graph.insert_after(gemm, add)


def omit_zero_points(model: ir.Model) -> None:
    """Leave out the zero points of weights that are all zero, which is what their absence means.

    The exporter stores equal ones once. OpenVINO (2026.4) computes layers in float whose weights differ in rank and
    share a zero point, such as a U-Net's convolutions and transposed convolutions: 3.8 times the time of NNCF's U-Net,
    and the same time with this pass. onnxruntime (1.32) wants zero points: it finds a quantized ``Gemm`` by them.
    """
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and len(node.inputs) == 3 and _is_initializer(node.inputs[0]):
            zeros = _constant(node.inputs[2])
            if zeros is not None and not zeros.any():
                node.resize_inputs(2)


def remove_unused(model: ir.Model) -> None:
    """Remove the nodes and initializers that other passes have replaced."""
    require("onnx_ir.passes.common", "onnx", "formats: 'onnx'").RemoveUnusedNodesPass()(model)


def _is_initializer(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


def _constant(value: ir.Value | None) -> Any:
    """The array of a value that is known, else ``None``."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _is_dequantized(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def _is_quantized(value: ir.Value) -> bool:
    """Whether every reader of a value quantizes it, after an activation that is computed with the product."""
    readers = value.consumers()
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        readers = readers[0].outputs[0].consumers()
    return bool(readers) and all(node.op_type == "QuantizeLinear" for node in readers)


# In the order in which they are applied, by the runtime that executes the model. OpenVINO splits every Gemm itself; the
# pass decides its names only.
PASSES: Mapping[str, tuple[Pass, ...]] = {
    "onnxruntime": (split_biased_gemm,),
    "openvino": (split_biased_gemm, omit_zero_points, remove_unused),
}
