"""Rewrites of an exported ONNX graph that let a runtime use its INT8 kernels, on ``onnx_ir``.

A pass changes a model in place and keeps the names of inputs and outputs, and of every node that computes something:
calls find their tensors by name, and the coverage its operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lq_plugin.artifacts.onnx_corrections import (
    average_floats,
    keep_extremes_apart,
    keep_scales_in_place,
    keep_weights_apart,
)
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
        if scaled or not is_dequantized(gemm.inputs[0]) or is_quantized(result):
            continue
        total, bias = in_place_of(result, "product"), gemm.inputs[2]
        gemm.resize_inputs(2)
        add = ir.Node("", "Add", [result, bias], outputs=[total], name=f"{gemm.name}_bias")
        model.graph.insert_after(gemm, add)


def omit_zero_points(model: ir.Model) -> None:
    """Leave out the zero points of weights that are all zero, which is what their absence means.

    The exporter stores equal ones once. OpenVINO (2026.4) computes layers in float whose weights differ in rank and
    share a zero point, such as a U-Net's convolutions and transposed convolutions: 3.8 times the time of NNCF's U-Net,
    and the same time with this pass. onnxruntime (1.32) wants zero points: it finds a quantized ``Gemm`` by them.
    """
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and len(node.inputs) == 3 and is_initializer(node.inputs[0]):
            zeros = constant(node.inputs[2])
            if zeros is not None and not zeros.any():
                node.resize_inputs(2)


def pad_in_convolutions(model: ir.Model) -> None:
    """Let convolutions pad with zeros themselves, also where their input is quantized after the padding.

    A ``Pad`` is a float operator between two quantized ones: a mobile CNN with "same" padding took 2.0 to 2.5 times as
    long as with the runtimes' own tools, and the same time with this pass. Zero is exact in every scale, so it does
    not matter whether values are padded before they are quantized or afterwards.
    """
    ir = require("onnx_ir", "onnx", "formats: 'onnx'")
    for pad in [node for node in model.graph if node.op_type == "Pad"]:
        amounts, path = _zeros_around(pad), _with_pair(pad)
        readers = path[-1].outputs[0].uses()
        kept = not readers or any(node.outputs[0].is_graph_output() for node in path)
        if amounts is None or kept or not all(_is_padding(use.node) and use.idx == 0 for use in readers):
            continue
        for convolution, _ in readers:
            own = convolution.attributes.get_ints("pads", [0] * len(amounts))
            sums = [left + right for left, right in zip(own, amounts, strict=True)]
            convolution.attributes["pads"] = ir.AttrInt64s("pads", sums)
        (source, *_), (padded,) = pad.inputs, pad.outputs
        assert source is not None
        for node in path[1:]:
            node.outputs[0].shape = source.shape
        padded.replace_all_uses_with(source)


def transpose_keys(model: ir.Model) -> None:
    """Transpose the keys of attention by one ``Transpose``.

    The exporter swaps the last two dimensions of the keys of ``scaled_dot_product_attention`` by a detour through three
    dimensions, with up to eight nodes around a second ``Transpose``. The first one puts the heads first. onnxruntime
    (1.32) merges the two only if no ``Reshape`` is between them.
    """
    ir = require("onnx_ir", "onnx", "formats: 'onnx'")
    for last in [node for node in model.graph if node.op_type == "Reshape"]:
        keys = _swapped(last)
        if keys is None:
            continue
        order, before = [0, 1, 3, 2], producer(keys, "Transpose")
        if before is not None:
            order, keys = [before.attributes.get_ints("perm", [3, 2, 1, 0])[axis] for axis in order], before.inputs[0]
        result = in_place_of(last.outputs[0], "reshaped")
        node = ir.node("Transpose", [keys], {"perm": order}, outputs=[result], name=f"{last.name}_keys")
        model.graph.insert_before(last, node)


def average_globally(model: ir.Model) -> None:
    """Compute the mean over all positions of a quantized image by ``GlobalAveragePool``.

    The exporter writes it, and adaptive pooling to one position too, as a ``ReduceMean``, for which onnxruntime (1.32)
    has no INT8 kernel: four inverted residuals with squeeze-and-excite took 1.15 ms, and 0.64 ms with this pass.
    """
    ir = require("onnx_ir", "onnx", "formats: 'onnx'")
    for mean in [node for node in model.graph if node.op_type == "ReduceMean" and len(node.inputs) == 2]:
        value, axes = mean.inputs
        if not is_dequantized(value) or not _are_all_positions(axes, value):
            continue
        averaged = in_place_of(mean.outputs[0], "mean")
        if mean.attributes.get_int("keepdims", 1):
            new = [ir.Node("", "GlobalAveragePool", [value], outputs=[averaged], name=mean.name)]
        else:
            pool = ir.node("GlobalAveragePool", [value], num_outputs=1, name=mean.name)
            pool.outputs[0].name, pool.outputs[0].type = f"{averaged.name}_pool", averaged.type
            new = [pool, ir.Node("", "Squeeze", [*pool.outputs, axes], outputs=[averaged], name=f"{mean.name}_squeeze")]
        model.graph.insert_after(mean, new)


def keep_sums_apart(model: ir.Model) -> None:
    """Write ``Add`` as ``Sum``, which computes the same, where onnxruntime would merge it into a slower kernel.

    onnxruntime (1.32) computes

    - a residual connection and the ``LayerNormalization`` after it in one kernel, which takes six times as long as two
      (195 against 30 microseconds for 128 tokens of width 384, one thread): an encoder of six layers took 1.34 times as
      long as with this pass in INT8, and 1.13 times in float.
    - ``MatMul`` and its bias as a float ``Gemm`` if all sizes are known, even if the factors are dequantized integers:
      with a batch of fixed size, all layers of an encoder were float.
    - such a bias and the ``Gelu`` after it in one kernel, which takes 1.35 times as long as two (1.14 against 0.84 ms
      for 1024 tokens of width 1536).

    A dynamically quantized product is float here and keeps its bias, which its kernel adds. Beside a ``Gemm`` an
    ``Add`` stays: onnxruntime would merge the two into a float ``Gemm`` if it were a ``Sum``.
    """
    ir = require("onnx_ir", "onnx", "formats: 'onnx'")
    for add in [node for node in model.graph if node.op_type == "Add"]:
        if any(producer(value, "Gemm") for value in add.inputs):
            continue
        if not _is_residual(add) and not any(_is_integer_product(value) for value in add.inputs):
            continue
        total = in_place_of(add.outputs[0], "added")
        model.graph.insert_before(add, ir.Node("", "Sum", add.inputs, outputs=[total], name=add.name))


def transpose_integers(model: ir.Model) -> None:
    """Give each ``MatMul`` a ``DequantizeLinear`` of its own, of integers that are transposed already.

    The exporter transposes a dequantized weight once for all products with it, and with several onnxruntime (1.32)
    multiplies floats: an encoder with equal layers took 1.22 times as long as with onnxruntime's own tool, and 0.83
    times with this pass. The products share the integers, so the file does not grow.
    """
    library = require("onnx_ir", "onnx", "formats: 'onnx'")
    transposed: dict[ir.Value, ir.Value] = {}
    for product in [node for node in model.graph if node.op_type == "MatMul"]:
        turn = producer(product.inputs[1], "Transpose")
        weight = producer(turn.inputs[0], "DequantizeLinear") if turn is not None else None
        if turn is None or weight is None or not _is_matrix(weight.inputs[0]):
            continue
        integers, scale, *zero_point = weight.inputs
        assert integers is not None
        if integers not in transposed:
            transposed[integers] = _transposed(model.graph, integers)
        name = f"{product.outputs[0].name}_weight"
        floats = library.Value(name=name, shape=turn.outputs[0].shape, type=turn.outputs[0].type)
        axis = {"axis": 1 - weight.attributes.get_int("axis", 1) % 2}  # without effect where the scale is a number
        inputs = [transposed[integers], scale, *zero_point]
        own = library.node("DequantizeLinear", inputs, axis, outputs=[floats], name=name)
        model.graph.insert_before(product, own)
        product.replace_input_with(1, floats)


def share_equal_constants(model: ir.Model) -> None:
    """Let layers with equal weights read one constant by one ``DequantizeLinear``.

    The exporter does it for constants of up to 1024 numbers. OpenVINO (2026.4) computes layers in float that dequantize
    the same integers separately: a transformer of six equal layers, whose scales have 1536 numbers, took 1.53 times the
    time of NNCF's, with 6 of its 36 products in float.
    """
    library, passes = (require(name, "onnx", "formats: 'onnx'") for name in ("onnx_ir", "onnx_ir.passes.common"))
    for value in model.graph.initializers.values():
        if value.const_value is None:
            continue
        numbers = value.const_value.numpy()
        if not numbers.flags.c_contiguous:  # a transposed float weight, which the pass refuses (onnx-ir 1.1)
            value.const_value = library.tensor(numbers.copy(order="C"), name=value.name)
    passes.DeduplicateHashedInitializersPass(size_limit=2**40)(model)
    passes.CommonSubexpressionEliminationPass()(model)


def remove_unused(model: ir.Model) -> None:
    """Remove the nodes and initializers that other passes have replaced."""
    require("onnx_ir.passes.common", "onnx", "formats: 'onnx'").RemoveUnusedNodesPass()(model)


_FAR = 2**31 - 1  # a slice that ends here or later takes everything


def _swapped(last: ir.Node) -> ir.Value | None:
    """The value whose last two dimensions are swapped by the nodes that end in this ``Reshape``, or ``None``."""
    swap = producer(last.inputs[0], "Transpose")
    first = producer(swap.inputs[0], "Reshape") if swap is not None else None
    if swap is None or first is None or list(swap.attributes.get_ints("perm", [])) != [0, 2, 1]:
        return None
    value = first.inputs[0]
    if value is None or value.shape is None or len(value.shape) != 4:
        return None
    *others, rows, columns = value.shape
    computed = [-1, (-2, -1), (-1, None)], [(None, -2), (-1, None), (-2, -1)]
    known = [-1, rows, columns], [*others, columns, rows]
    return value if (_sizes(first.inputs[1], value), _sizes(last.inputs[1], value)) in (computed, known) else None


def _sizes(shape: ir.Value | None, of: ir.Value) -> list[Any]:
    """The parts of a shape: numbers, and slices of the shape of a value."""
    numbers, joined = constant(shape), producer(shape, "Concat")
    if numbers is not None:
        return list(numbers.tolist())
    return [size for part in joined.inputs for size in _part(part, of)] if joined is not None else []


def _part(part: ir.Value | None, of: ir.Value) -> list[Any]:
    """Numbers, or a slice of the shape of a value; ``[None]`` for anything else."""
    numbers, cut = constant(part), producer(part, "Slice")
    if numbers is not None:
        return list(numbers.tolist())
    shape, *limits = cut.inputs if cut is not None else (None,)
    whole, bounds = producer(shape, "Shape"), [constant(limit) for limit in limits]
    if whole is None or whole.inputs[0] is not of or "end" in whole.attributes:
        return [None]
    start = whole.attributes.get_int("start", 0)
    if start != 0 or len(bounds) != 2 or any(bound is None for bound in bounds):
        return [None]
    return [tuple(None if abs(bound.item()) >= _FAR else bound.item() for bound in bounds)]


def _transposed(graph: ir.Graph, integers: ir.Value) -> ir.Value:
    """Integers as products read them: stored so, or, where anything else reads them, transposed when a model is opened.

    onnxruntime computes what depends on constants alone when it opens a model. So no integers are stored twice, such
    as those of a head that is tied to an embedding.
    """
    library = require("onnx_ir", "onnx", "formats: 'onnx'")
    name = f"{integers.name}_transposed"
    if _only_multiplied(integers):
        value: ir.Value = library.val(name, const_value=library.tensor(constant(integers).T.copy(), name=name))
        graph.register_initializer(value)
        return value
    turn: ir.Node = library.node("Transpose", [integers], {"perm": [1, 0]}, num_outputs=1, name=name)
    turn.outputs[0].name, turn.outputs[0].type = name, integers.type
    turn.outputs[0].shape = library.Shape(reversed(constant(integers).shape))
    graph.insert_before(graph[0], turn)
    return turn.outputs[0]


def _only_multiplied(integers: ir.Value) -> bool:
    """Whether nothing reads integers but products with their transpose."""
    values = [integers]
    for kind in ("DequantizeLinear", "Transpose", "MatMul"):
        readers = [node for value in values for node in value.consumers()]
        if any(node.op_type != kind for node in readers):
            return False
        values = [node.outputs[0] for node in readers]
    return True


def _is_matrix(value: ir.Value | None) -> bool:
    return is_initializer(value) and constant(value).ndim == 2


def _zeros_around(pad: ir.Node) -> list[int] | None:
    """How many zeros a ``Pad`` adds to an image, as a convolution's ``pads``; ``None`` where it does anything else."""
    counts, fill, axes = (*pad.inputs, None, None)[1:4]
    amounts, number = constant(counts), constant(fill)
    if amounts is None or axes is not None or pad.attributes.get_string("mode", "constant") != "constant":
        return None
    if fill is not None and (number is None or number.any()):
        return None
    before, after = amounts.reshape(2, -1).tolist()
    if any(before[:2] + after[:2]) or min(before + after) < 0:  # channels, samples; negative ones cut off
        return None
    return [*before[2:], *after[2:]]


def _are_all_positions(axes: ir.Value | None, value: ir.Value | None) -> bool:
    """Whether axes are all dimensions but the first two (samples, channels) of a value of known rank."""
    numbers = constant(axes)
    if numbers is None or value is None or value.shape is None:
        return False
    rank = len(value.shape)
    return rank > 2 and sorted(number % rank for number in numbers.tolist()) == list(range(2, rank))


def _with_pair(node: ir.Node) -> list[ir.Node]:
    """A node and the pair that quantizes its result and dequantizes it with the same scale, if it is all that does."""
    path = [node]
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        readers = path[-1].outputs[0].consumers()
        if len(readers) != 1 or readers[0].op_type != kind:
            return [node]
        path.append(readers[0])
    return path if path[1].inputs[1:] == path[2].inputs[1:] else [node]


def _is_padding(node: ir.Node) -> bool:
    return node.op_type == "Conv" and node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"


def _is_residual(add: ir.Node) -> bool:
    """Whether an ``Add`` of two computed values is read by one ``LayerNormalization`` alone."""
    readers = [(use.node.op_type, use.idx) for use in add.outputs[0].uses()]
    return readers == [("LayerNormalization", 0)] and not any(is_initializer(value) for value in add.inputs)


def _is_integer_product(value: ir.Value | None) -> bool:
    product = producer(value, "MatMul")
    return product is not None and is_dequantized(product.inputs[0])


# In the order in which they are applied, by the runtime that executes the model. OpenVINO splits every Gemm itself; the
# pass decides its names only.
PASSES: Mapping[str, tuple[Pass, ...]] = {
    "onnxruntime": (
        split_biased_gemm,
        pad_in_convolutions,
        average_globally,
        transpose_keys,
        keep_sums_apart,
        transpose_integers,
        remove_unused,
    ),
    "openvino": (
        split_biased_gemm,
        pad_in_convolutions,
        transpose_keys,
        average_floats,
        keep_extremes_apart,
        keep_scales_in_place,
        omit_zero_points,
        share_equal_constants,
        keep_weights_apart,
        remove_unused,
    ),
}
