"""Rewrites of an exported ONNX graph without which a runtime computes something else, on ``onnx_ir``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lq_plugin.artifacts.onnx_values import in_place_of
from lq_plugin.errors import require

if TYPE_CHECKING:
    import onnx_ir as ir


def average_values_alone(model: ir.Model) -> None:
    """Average without the padding, and multiply that by what the average makes of ones.

    OpenVINO (2026.4) pads integers with 0 where it averages them, which is not what 0 is quantized to: 8 dB where torch
    has 44 for the same graph. A ``Pad`` before the average becomes part of it, and is as wrong.
    """
    ir = require("onnx_ir", "onnx", "formats: 'openvino'")
    for average in [node for node in model.graph if node.op_type == "AveragePool"]:
        attributes = dict(average.attributes)
        counted = average.attributes.get_int("count_include_pad", 0)
        if not counted or not any(average.attributes.get_ints("pads", [])):
            continue
        (value, *_), (result,) = average.inputs, average.outputs
        one = ir.node("Constant", [], {"value_floats": [1.0]}, name=f"{average.name}_one")
        first = ir.node("Constant", [], {"value_ints": [1, 1]}, name=f"{average.name}_first")
        sizes = ir.node("Shape", [value], {"start": 2}, name=f"{average.name}_sizes")
        shape = ir.node("Concat", [*first.outputs, *sizes.outputs], {"axis": 0}, name=f"{average.name}_shape")
        ones = ir.node("Expand", [*one.outputs, *shape.outputs], name=f"{average.name}_ones")
        shares = ir.Node("", "AveragePool", ones.outputs, attributes.values(), name=f"{average.name}_shares")
        product = in_place_of(result, "values")
        multiply = ir.Node("", "Mul", [result, *shares.outputs], outputs=[product], name=f"{average.name}_product")
        average.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 0)
        for node in (one, first, sizes, shape, ones, shares):
            for number, output in enumerate(node.outputs):
                output.name = f"{node.name}_{number}"
        model.graph.insert_after(average, [one, first, sizes, shape, ones, shares, multiply])


def keep_extremes_apart(model: ir.Model) -> None:
    """Read the result of a ``ReduceMax`` or ``ReduceMin`` twice, so that nothing else is computed in its kernel.

    OpenVINO (2026.4) quantizes such a result in the kernel, and collects it in memory of the quantized type until then:
    12 dB where torch has 43 for the same graph (attention over channels).
    """
    ir = require("onnx_ir", "onnx", "formats: 'openvino'")
    for extreme in [node for node in model.graph if node.op_type in ("ReduceMax", "ReduceMin")]:
        (result,) = extreme.outputs
        both = in_place_of(result, "once")
        kind = extreme.op_type.removeprefix("Reduce")
        again = ir.Node("", kind, [result, result], outputs=[both], name=f"{extreme.name}_twice")
        model.graph.insert_after(extreme, again)
