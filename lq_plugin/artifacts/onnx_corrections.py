"""Rewrites of an exported ONNX graph without which a runtime computes something else, on ``onnx_ir``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy

from lq_plugin.artifacts.onnx_values import (
    constant,
    in_place_of,
    is_dequantized,
    is_initializer,
    is_quantized,
    producer,
)
from lq_plugin.errors import require

if TYPE_CHECKING:
    import onnx_ir as ir

_CHANNELS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": -1}  # the dimension that has a scale for each
_NOTHING = 1e-30  # added to a value, it changes none; OpenVINO would remove a zero


def average_floats(model: ir.Model) -> None:
    """Read twice what is averaged, so that the average is computed in float, unless integers do as well.

    OpenVINO (2026.4) pads integers with 0 where it averages them, which is not what 0 is quantized to: 8 dB where torch
    has 44 for the same graph. A ``Pad`` before the average becomes part of it, and is as wrong. And what it averages of
    integers it rounds before anything else is computed: 35.6 dB where torch has 40.0 for an average with a divisor of
    its own, which is a factor after it.
    """
    ir = require("onnx_ir", "onnx", "formats: 'openvino'")
    for average in [node for node in model.graph if node.op_type == "AveragePool"]:
        padded = average.attributes.get_int("count_include_pad", 0) and any(average.attributes.get_ints("pads", []))
        if padded or any(reader.op_type != "QuantizeLinear" for reader in average.outputs[0].consumers()):
            (value,) = average.inputs
            assert value is not None
            same = ir.Value(name=f"{average.name}_floats", shape=value.shape, type=value.type)
            again = ir.Node("", "Max", [value, value], outputs=[same], name=f"{average.name}_twice")
            model.graph.insert_before(average, again)
            average.replace_input_with(0, same)


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


def keep_scales_in_place(model: ir.Model) -> None:
    """Add a bias to quantized convolutions and products that have none, where the result is not quantized at once.

    OpenVINO (2026.4) multiplies a sum of integers with the scale of its channel after what follows: after a
    normalization over several channels too, whose result this changes (3 dB where torch has 34 for a residual block of
    GroupNorm and convolutions without bias), and after a gather along two axes, which it then does not compile. It
    moves no scale past a bias, and adds that in the kernel.
    """
    ir = require("onnx_ir", "onnx", "formats: 'openvino'")
    for node in [node for node in model.graph if node.op_type in _CHANNELS and is_dequantized(node.inputs[0])]:
        (result,) = node.outputs
        weight = producer(node.inputs[1], "DequantizeLinear")
        is_stored = weight is not None and is_initializer(weight.inputs[0])
        if not is_stored or _has_bias(node) or is_quantized(result) or not result.consumers() or result.shape is None:
            continue
        size, name = result.shape[_CHANNELS[node.op_type]], f"{node.name}_nothing"
        if not isinstance(size, int):
            continue
        bias = ir.val(name, const_value=ir.tensor(numpy.full(size, _NOTHING, numpy.float32), name=name))
        model.graph.register_initializer(bias)
        if node.op_type in ("Gemm", "MatMul"):
            total = in_place_of(result, "product")
            model.graph.insert_after(
                node, ir.Node("", "Add", [result, bias], outputs=[total], name=f"{node.name}_bias")
            )
        else:
            node.resize_inputs(3)
            node.replace_input_with(2, bias)


def _has_bias(node: ir.Node) -> bool:
    """Whether a constant is added to what a node computes, in it or after it."""
    readers = node.outputs[0].consumers()
    added = len(readers) == 1 and readers[0].op_type == "Add" and any(map(is_initializer, readers[0].inputs))
    return added or (len(node.inputs) > 2 and node.inputs[2] is not None)


def keep_weights_apart(model: ir.Model) -> None:
    """Give transposed convolutions a weight of their own where it is also that of a convolution in float.

    OpenVINO (2026.4) keeps one of the two forms that kernels want of it, and computes the other operator wrongly. It
    stores equal weights once, so the last bit of one number differs.
    """
    ir = require("onnx_ir", "onnx", "formats: 'openvino'")
    for reader in [node for node in model.graph if node.op_type == "ConvTranspose"]:
        weight, name = reader.inputs[1], f"{reader.name}_weight"
        if weight is not None and (known := constant(weight)) is not None and len(weight.uses()) > 1:
            numbers = known.copy()
            numbers.flat[0] = numpy.nextafter(numbers.flat[0], numpy.inf)
            own = ir.val(name, const_value=ir.tensor(numbers, name=name))
            model.graph.register_initializer(own)
            reader.replace_input_with(1, own)
