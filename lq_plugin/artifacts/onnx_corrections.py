"""Rewrites of an exported ONNX graph without which a runtime computes something else, on ``onnx_ir``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy

from lq_plugin.artifacts.onnx_values import constant, in_place_of
from lq_plugin.errors import require

if TYPE_CHECKING:
    import onnx_ir as ir


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
