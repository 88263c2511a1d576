"""Pairs of layers whose channels in between can be scaled without changing the graph's outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from lq_plugin.graph.channels import is_shared
from lq_plugin.graph.nodes import arguments, attribute, is_constant, operator_type
from lq_plugin.graph.operators import CONVOLUTIONS, MAX_POOLINGS, POOLINGS, TRANSPOSED_CONVOLUTIONS

aten = torch.ops.aten
_LAYERS = CONVOLUTIONS | {"linear"}
_GROUPS = 6  # position of this argument, in plain and in transposed convolutions
# f(x * s) = f(x) * s for positive s, value by value.
_POINTWISE = frozenset("relu leaky_relu prelu clone contiguous".split())
_SPATIAL = (MAX_POOLINGS | POOLINGS | frozenset("adaptive_avg_pool3d upsample_nearest2d".split())) - {"mean"}
_VIEWS = frozenset("view _unsafe_view reshape flatten squeeze unsqueeze".split())
_PADDINGS = frozenset({"constant_pad_nd", "pad"})
_CLAMPS = (aten.minimum.default, aten.clamp.Tensor)


@dataclass(frozen=True)
class Pair:
    """Two layers and the operators between them, in order.

    Args:
        first: the layer whose output channels may be divided by scales.
        between: positively homogeneous operators, each the only user of the one before it.
        second: the layer whose input channels are then multiplied by the same scales.
        repeat: how many inputs of the second layer each channel of the first one becomes when it is flattened.
        clamp: the operator in between that clamps each channel at a limit of its own, if there is one.
    """

    first: fx.Node
    between: tuple[fx.Node, ...]
    second: fx.Node
    repeat: int
    clamp: fx.Node | None

    @property
    def values(self) -> frozenset[str]:
        """Names of the values that scales change."""
        return frozenset(node.name for node in (self.first, *self.between))


@dataclass(frozen=True)
class Kernel:
    """The weight of a layer of any kind.

    Args:
        weight: float64, of shape ``(groups, outputs of a group, inputs of a group, positions)``.
        bias: float64, of shape ``(outputs,)``, if there is one.
    """

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, layer: fx.Node) -> Kernel:
        """Read the weight and the bias of a layer."""
        _, weight, bias = (*arguments(layer), None)[:3]
        tensor = _tensor(weight).double()
        by_group = tensor.reshape(groups(layer), -1, tensor.shape[1], tensor[0, 0].numel())
        if is_transposed(layer):
            by_group = by_group.transpose(1, 2)
        return cls(by_group, None if bias is None else _tensor(bias).double())

    def as_weight(self, layer: fx.Node) -> Tensor:
        """Return the weight in the layer's own shape."""
        own = _tensor(arguments(layer)[1])
        by_group = self.weight.transpose(1, 2) if is_transposed(layer) else self.weight
        return by_group.reshape(own.shape).to(own.dtype)

    def with_outputs_divided(self, scales: Tensor) -> Kernel:
        """Divide every output channel by its scale."""
        count, outputs = self.weight.shape[:2]
        bias = None if self.bias is None else self.bias / scales
        return Kernel(self.weight / scales.view(count, outputs, 1, 1), bias)

    def with_inputs_multiplied(self, scales: Tensor) -> Kernel:
        """Multiply every input channel by its scale."""
        count, _, inputs = self.weight.shape[:3]
        return Kernel(self.weight * scales.view(count, 1, inputs, 1), self.bias)

    def columns(self, gains: Tensor) -> Tensor:
        """Return the squared error that an error of one in each input causes in the outputs, times their gains."""
        count, outputs = self.weight.shape[:2]
        return (self.weight.square().sum(3) * gains.view(count, outputs, 1)).sum(1).flatten()


def pairs(module: fx.GraphModule) -> list[Pair]:
    """Return all pairs of a folded graph, in the graph's order.

    Layers that share their weight with another operator are left out: it is stored once.
    """
    found = (_pair(node) for node in module.graph.nodes if _is_layer(node))
    return [
        pair
        for pair in found
        if pair is not None and not any(is_shared(arguments(layer)[1]) for layer in (pair.first, pair.second))
    ]


def is_transposed(layer: fx.Node) -> bool:
    """Whether the input channels come first in a layer's weight."""
    return operator_type(layer) in TRANSPOSED_CONVOLUTIONS


def groups(layer: fx.Node) -> int:
    """How many groups a layer has."""
    args = arguments(layer)
    return int(args[_GROUPS]) if operator_type(layer) in CONVOLUTIONS and len(args) > _GROUPS else 1


def channel_axis(layer: fx.Node, value: Tensor) -> int:
    """Axis of the channels in an input or output of a layer."""
    return value.dim() - _tensor(arguments(layer)[1]).dim() + 1


def clamp_limits(clamp: fx.Node) -> Tensor:
    """The constant that clamps each channel."""
    return _tensor(_limit(clamp))


def _pair(first: fx.Node) -> Pair | None:
    """Follow a layer's output until another layer reads it; ``None`` where something else does."""
    axis, repeat = channel_axis(first, first.meta["val"]), 1
    between: list[fx.Node] = []
    clamp, node = None, first
    while len(node.users) == 1:
        (user,) = node.users
        if not user.args or user.args[0] is not node:
            return None
        if _is_layer(user):
            alike = channel_axis(user, node.meta["val"]) == axis
            return Pair(first, tuple(between), user, repeat, clamp) if alike else None
        flattened = _flattened(user, node, axis)
        if _is_clamp(user, node, axis) and clamp is None and repeat == 1:
            clamp = user
        elif flattened:
            repeat *= flattened
        elif not _keeps_channels(user, node, axis):
            return None
        between.append(user)
        node = user
    return None


def _is_layer(node: fx.Node) -> bool:
    if operator_type(node) not in _LAYERS or node.op != "call_function" or node.kwargs:
        return False
    value, *constants = (*arguments(node), None)[:3]
    return _is_float(value) and all(
        (constant is None and position == 1) or (is_constant(constant) and bool(_tensor(constant).isfinite().all()))
        for position, constant in enumerate(constants)
    )


def _keeps_channels(node: fx.Node, value: fx.Node, axis: int) -> bool:
    """Whether an operator is positively homogeneous and computes each channel from that channel alone."""
    kind, rank = operator_type(node), value.meta["val"].dim()
    if kind in _POINTWISE:
        return _are_fixed(node.args[1:])
    if node.kwargs:
        return False
    if kind in _SPATIAL:
        return bool(axis == rank - _spatial_dims(kind) - 1)
    if kind in ("clamp", "clamp_min"):
        return [*node.args[1:], None][:2] == [0, None]
    if kind == "mean":
        dims = node.args[1] if len(node.args) > 1 else None
        return isinstance(dims, list | tuple) and bool(dims) and all(int(dim) % rank > axis for dim in dims)
    if kind in _PADDINGS:
        mode, fill = _padding(node)
        return mode == "constant" and fill == 0 and len(node.args[1]) // 2 < rank - axis  # type: ignore[arg-type]
    return False


def _flattened(node: fx.Node, value: fx.Node, axis: int) -> int:
    """How many values each channel becomes in a view; 0 if the view does not keep the order of the channels."""
    if operator_type(node) not in _VIEWS:
        return 0
    given, made = value.meta["val"].shape, node.meta["val"].shape
    before = [str(size) for size in given[:axis]] == [str(size) for size in made[:axis]]
    if not before or len(made) <= axis or not all(isinstance(n, int) for n in (*given[axis:], *made[axis:])):
        return 0
    if _product(given[axis:]) != _product(made[axis:]):
        return 0
    if made[axis] == given[axis]:
        return 1
    return int(made[axis] // given[axis]) if len(made) == axis + 1 else 0


def _is_clamp(node: fx.Node, value: fx.Node, axis: int) -> bool:
    """Whether an operator clamps each channel at a positive limit of its own, and from below at zero or not at all."""
    if node.target not in _CLAMPS or not is_constant(_limit(node)):
        return False
    limits, rank = clamp_limits(node), value.meta["val"].dim()
    by_channel = (1,) * axis + (value.meta["val"].shape[axis],) + (1,) * (rank - axis - 1)
    if (1,) * (rank - limits.dim()) + tuple(limits.shape) != by_channel:
        return False
    if not bool((limits > 0).all() & limits.isfinite().all()):
        return False
    low = arguments(node)[1] if node.target is aten.clamp.Tensor else None
    return low is None or (is_constant(low) and not bool(_tensor(low).any()))


def _limit(clamp: fx.Node) -> Any:
    return [*arguments(clamp), None, None][2 if clamp.target is aten.clamp.Tensor else 1]


def _padding(node: fx.Node) -> tuple[object, object]:
    """Mode and fill value of a padding."""
    given = [*node.args[2:], None, None]
    mode, fill = ("constant", given[0]) if operator_type(node) == "constant_pad_nd" else (given[0], given[1])
    return "constant" if mode is None else mode, 0 if fill is None else fill


def _spatial_dims(kind: str) -> int:
    return int(kind[-2])


def _are_fixed(args: Iterable[object]) -> bool:
    return all(not isinstance(argument, fx.Node) or is_constant(argument) for argument in args)


def _is_float(argument: object) -> bool:
    value = argument.meta.get("val") if isinstance(argument, fx.Node) else None
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _tensor(constant: fx.Node) -> Tensor:
    module = constant.graph.owning_module
    assert module is not None
    return attribute(module, constant)


def _product(sizes: Iterable[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product
