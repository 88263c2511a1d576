"""The operators that are quantized and how, and the families of operators that placement and runtimes speak of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from lq_plugin.graph.nodes import arguments, is_constant
from lq_plugin.graph.recurrent import OPERATORS as OPERATORS_OF_LAYERS

aten = torch.ops.aten


@dataclass(frozen=True)
class Operator:
    """How one operator is quantized.

    Args:
        name: the operator type, as users write it in ``op:conv2d``.
        activations: positions of the arguments that are quantized as activations.
        weight: position of the constant weight.
        channel_axis: axis of the weight's output channels.
    """

    name: str
    activations: tuple[int, ...] = (0,)
    weight: int | None = None
    channel_axis: int = 0


CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
TRANSPOSED_CONVOLUTIONS = frozenset(name for name in CONVOLUTIONS if "transpose" in name)
MATRIX_PRODUCTS = frozenset({"linear", "matmul", "addmm", "bmm"})
ELEMENTWISE = frozenset({"add", "mul", "cat"})
MAX_POOLINGS = frozenset({"max_pool1d", "max_pool2d", "max_pool3d"})
POOLINGS = frozenset({"avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean"})
RECURRENT = frozenset({"lstm", "gru", "rnn"})

# Products with a constant weight, and look-ups: what dynamic quantization covers wherever it is done.
PRODUCTS = frozenset({"linear", "matmul", "addmm", "embedding"})

# Activations a kernel can compute on its result before it is quantized. Others come out as float operators.
CLIPPING = frozenset({"relu", "relu6", "hardtanh", "clamp", "clamp_min"})
POINTWISE = CLIPPING | {"hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "tanh", "leaky_relu", "elu"}

# They pass values on unchanged: their output has the scale of their input.
QUANTIZATION_AGNOSTIC = MAX_POOLINGS | frozenset(
    "view _unsafe_view reshape flatten unflatten permute transpose t squeeze unsqueeze expand contiguous clone slice "
    "select index_select alias detach movedim narrow split unbind getitem chunk split_with_sizes "
    "_to_copy dropout pixel_shuffle repeat roll upsample_nearest1d upsample_nearest2d upsample_nearest3d".split()
)
# They compute nothing on floats that INT8 could do, and are not listed as float operators.
UNLISTED = QUANTIZATION_AGNOSTIC | frozenset("arange full zeros ones triu tril sym_size constant_pad_nd pad".split())

_OPERATORS: dict[Operator, tuple[object, ...]] = {
    Operator("conv1d", weight=1): (aten.conv1d.default, aten.conv1d.padding),
    Operator("conv2d", weight=1): (aten.conv2d.default, aten.conv2d.padding),
    Operator("conv3d", weight=1): (aten.conv3d.default, aten.conv3d.padding),
    Operator("conv_transpose1d", weight=1, channel_axis=1): (aten.conv_transpose1d.default,),
    Operator("conv_transpose2d", weight=1, channel_axis=1): (aten.conv_transpose2d.input,),
    Operator("conv_transpose3d", weight=1, channel_axis=1): (aten.conv_transpose3d.input,),
    Operator("linear", weight=1): (aten.linear.default,),
    Operator("matmul", (0, 1)): (aten.matmul.default, aten.mm.default),
    Operator("addmm", (1,), weight=2, channel_axis=1): (aten.addmm.default,),
    Operator("bmm", (0, 1)): (aten.bmm.default,),
    Operator("embedding", (), weight=0): (aten.embedding.default,),
    Operator("add", (0, 1)): (aten.add.Tensor,),
    Operator("mul", (0, 1)): (aten.mul.Tensor,),
    Operator("cat"): (aten.cat.default,),
    Operator("avg_pool1d"): (aten.avg_pool1d.default,),
    Operator("avg_pool2d"): (aten.avg_pool2d.default,),
    Operator("avg_pool3d"): (aten.avg_pool3d.default,),
    Operator("adaptive_avg_pool1d"): (aten.adaptive_avg_pool1d.default,),
    Operator("adaptive_avg_pool2d"): (aten.adaptive_avg_pool2d.default,),
    Operator("mean"): (aten.mean.dim,),
    Operator("lstm"): (OPERATORS_OF_LAYERS["lstm"].default,),
    Operator("gru", ()): (OPERATORS_OF_LAYERS["gru"].default,),
    Operator("rnn", ()): (OPERATORS_OF_LAYERS["rnn"].default,),
    Operator("max_pool1d"): (aten.max_pool1d.default,),
    Operator("max_pool2d"): (aten.max_pool2d.default,),
    Operator("max_pool3d"): (aten.max_pool3d.default,),
}
OPERATORS: dict[object, Operator] = {target: operator for operator, targets in _OPERATORS.items() for target in targets}
OPERATOR_NAMES = tuple(operator.name for operator in _OPERATORS)


def operator_of(node: fx.Node) -> Operator | None:
    """How a node is quantized; a product with a constant matrix is like a linear layer."""
    operator = OPERATORS.get(node.target)
    if operator is not None and operator.name == "matmul":
        weight = node.args[1]
        if isinstance(weight, fx.Node) and weight.op == "get_attr" and weight.meta["val"].dim() == 2:
            return Operator("matmul", weight=1, channel_axis=1)
    return operator


def values_of(node: fx.Node, operator: Operator) -> Iterator[fx.Node]:
    """Yield the arguments of a node that are quantized as activations."""
    for position in operator.activations:
        argument = node.args[position]
        for value in argument if isinstance(argument, list | tuple) else (argument,):
            if isinstance(value, fx.Node):
                yield value


def kind_of(node: fx.Node, operator: Operator) -> str:
    """The operator's type, with "grouped", "partial" or "of activations" where the choice of kernels depends on it."""
    if operator.name == "mean":
        return operator.name if _is_over_all_positions(node) else f"partial {operator.name}"
    if operator.name in TRANSPOSED_CONVOLUTIONS:
        weight = arguments(node)[1].meta["val"]
        outputs = node.meta["val"].shape[1 - weight.dim()]
        return operator.name if weight.shape[1] == outputs else f"grouped {operator.name}"
    factors = operator.name in ("matmul", "bmm") and not any(map(is_constant, node.args))
    return f"{operator.name} of activations" if factors else operator.name


def _is_over_all_positions(mean: fx.Node) -> bool:
    """Whether a mean is over all dimensions but the first two: samples and channels."""
    value, dims, *_ = arguments(mean)
    rank = value.meta["val"].dim()
    return rank > 2 and sorted(dim % rank for dim in dims or range(rank)) == list(range(2, rank))
