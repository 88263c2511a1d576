"""Where the channels of a linear operator's input can be scaled, and which operator can absorb the scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from lq_plugin.graph.graph import Graph
from lq_plugin.graph.nodes import arguments, attribute, operator_type
from lq_plugin.graph.operators import (
    CONVOLUTIONS,
    ELEMENTWISE,
    MAX_POOLINGS,
    POINTWISE,
    POOLINGS,
    QUANTIZATION_AGNOSTIC,
)
from lq_plugin.graph.placement import Placement
from lq_plugin.graph.rewriting import put_constant

aten = torch.ops.aten
_LINEAR = ("linear", "matmul", "addmm")
# Operators that can scale the channels of their result: positions of the constants whose first axis is the channels.
_ABSORBING = {aten.layer_norm.default: (2, 3), aten.rms_norm.default: (2,), aten.linear.default: (1, 2)}
_HOMOGENEOUS = (aten.relu.default, aten.leaky_relu.default)  # f(x / s) = f(x) / s
_INTEGERS = CONVOLUTIONS | ELEMENTWISE | POOLINGS | MAX_POOLINGS  # INT8 kernels whose results are integers
_ON_ONE_VALUE = POINTWISE | QUANTIZATION_AGNOSTIC
_ELEMENTWISE = frozenset("clone contiguous detach alias dropout _to_copy view _unsafe_view reshape expand".split())
_ALONG_A_DIMENSION = frozenset("select slice narrow squeeze unsqueeze".split())


@dataclass(frozen=True)
class Reader:
    """An operator that multiplies a value by a constant matrix.

    Args:
        name: the name of its node.
        value: the name of the value.
        weight: position of the weight among its arguments.
        axis: the weight's axis of input channels.
    """

    name: str
    value: str
    weight: int
    axis: int


@dataclass(frozen=True)
class Site:
    """Where channels can be scaled.

    Args:
        readers: in the graph's order. They read one value; if there is an absorber, also views of it.
        absorber: the operator that computes the value, if its constants can absorb the scale.
    """

    readers: tuple[Reader, ...]
    absorber: str | None = None


def sites(graph: Graph, placement: Placement, fixed: Set[str] = frozenset()) -> list[Site]:
    """Return where the channels of linear operators' inputs can be scaled, in the graph's order.

    Weights that several operators share are left out. So are values that an INT8 kernel outputs as integers: a
    multiplication would put floats between two INT8 kernels.

    Args:
        graph: a folded float graph.
        placement: which operators are quantized.
        fixed: names of operators whose weights must stay as they are.
    """
    nodes = {node.name: node for node in graph.module.graph.nodes}
    readers = list(_readers(nodes, placement, fixed))
    own = set() if not placement.weight_spec.per_channel else {name for name in nodes if name not in fixed}
    absorbers: dict[str, fx.Node] = {}
    for reader in readers:
        absorber = _absorber(nodes[reader.value], {nodes[each.name] for each in readers}, own)
        if absorber is not None:
            absorbers[reader.value] = absorber
    grouped: dict[str, list[Reader]] = {}
    for reader in readers:
        source = absorbers.get(reader.value)
        grouped.setdefault(reader.value if source is None else source.name, []).append(reader)
    made = {absorber.name for absorber in absorbers.values()}
    return [Site(tuple(each), source if source in made else None) for source, each in grouped.items()]


def _readers(nodes: Mapping[str, fx.Node], placement: Placement, fixed: Set[str]) -> Iterator[Reader]:
    for name, node in nodes.items():
        if name not in placement.weights or placement.quantized[name].op not in _LINEAR or name in fixed:
            continue
        weight, axis = placement.weights[name]
        (value,) = placement.inputs[name]
        if not _is_made_in_integers(nodes[value], placement) and not is_shared(nodes[weight]):
            yield Reader(name, value, node.args.index(nodes[weight]), 1 - axis)


def _is_made_in_integers(value: fx.Node, placement: Placement) -> bool:
    """Whether a value comes from an INT8 convolution, pooling or sum, directly or through activation functions."""
    while value.name not in placement.quantized and operator_type(value) in _ON_ONE_VALUE and value.all_input_nodes:
        value = value.all_input_nodes[0]
    made = placement.quantized.get(value.name)
    return made is not None and made.op in _INTEGERS


def is_shared(weight: fx.Node) -> bool:
    """Whether several operators read a constant."""
    module = weight.graph.owning_module
    assert module is not None
    memory = attribute(module, weight).data_ptr()
    readers = [n for n in weight.graph.nodes if n.op == "get_attr" and attribute(module, n).data_ptr() == memory]
    return sum(len(reader.users) for reader in readers) > 1


def _absorber(value: fx.Node, readers: Set[fx.Node], own: Set[str]) -> fx.Node | None:
    """The operator that can scale the channels of a value, if only the given operators read it."""
    source = value
    while _keeps_channels(source):
        source = source.args[0]  # type: ignore[assignment]
    if not _is_read_by_alone(source, readers):
        return None
    while source.target in _HOMOGENEOUS and len(source.all_input_nodes[0].users) == 1:
        source = source.all_input_nodes[0]
    return source if source.target in _ABSORBING and _takes_a_scale(source, own) else None


def _keeps_channels(node: fx.Node) -> bool:
    """Whether an operator only views or copies its input, with the last dimension unchanged."""
    given, result = _shape(node.args[0] if node.op == "call_function" and node.args else None), _shape(node)
    if not given or not result or not isinstance(given[-1], int) or given[-1] != result[-1]:
        return False
    kind, last = operator_type(node), len(given) - 1
    if kind in _ALONG_A_DIMENSION:
        rank = len(given) + (kind == "unsqueeze")
        return _position(node.args[1:2], rank) != rank - 1
    if kind == "permute":
        order = node.args[1]
        return isinstance(order, list | tuple) and _position(order[-1:], len(given)) == last
    if kind == "transpose":
        return last not in (_position(node.args[1:2], len(given)), _position(node.args[2:3], len(given)))
    return kind in _ELEMENTWISE


def _shape(argument: object) -> tuple[object, ...]:
    """Shape of a tensor in the graph; empty for anything else."""
    value = argument.meta.get("val") if isinstance(argument, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _position(dims: Sequence[object], rank: int) -> int:
    """The given dimension, counted from the front; the last one if it is not a number."""
    (dim,) = dims or (None,)
    return dim % rank if isinstance(dim, int) else rank - 1


def _is_read_by_alone(value: fx.Node, readers: Set[fx.Node]) -> bool:
    """Whether only the given operators read a value, directly or through views."""
    return bool(value.users) and all(
        (user in readers and user.args.count(value) == 1)
        or (_keeps_channels(user) and _is_read_by_alone(user, readers))
        for user in value.users
    )


def _takes_a_scale(node: fx.Node, own: Set[str]) -> bool:
    """Whether an operator's constants can absorb a scale of its result's last dimension.

    Args:
        node: a norm or a linear layer.
        own: names of the operators whose weight has one scale for each output channel.
    """
    if node.target is aten.linear.default:
        weight = arguments(node)[1]
        return weight.op == "get_attr" and not is_shared(weight) and node.name in own
    constants = [constant for constant in arguments(node)[2:4] if isinstance(constant, fx.Node)]
    return len(arguments(node)[1]) == 1 and all(constant.op == "get_attr" for constant in constants)


def divide_channels(module: fx.GraphModule, absorber: fx.Node, scale: Tensor) -> None:
    """Divide the channels of an operator's result by changing its constants; a norm without a weight gets one.

    Args:
        module: changed in place.
        absorber: the node of a :class:`Site`'s absorber.
        scale: one for each channel.
    """
    for position in _ABSORBING[absorber.target]:  # type: ignore[index]
        known = absorber.args[position] if position < len(absorber.args) else None
        if isinstance(known, fx.Node):
            value = attribute(module, known)
            put_constant(module, absorber, position, value / scale.view(-1, *(1,) * (value.dim() - 1)))
        elif position == 2 and absorber.target is not aten.linear.default:
            put_constant(module, absorber, position, 1 / scale)
