"""Where quantize/dequantize pairs go: which operators are quantized, at which inputs and outputs, for which runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field

import torch
from torch import fx

from lq_plugin import patterns
from lq_plugin.coverage import FloatOp, QuantizedOp
from lq_plugin.errors import UnsupportedError
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.nodes import arguments, attribute, module_path, module_stack, operator_type
from lq_plugin.graph.recurrent import OPERATORS as OPERATORS_OF_LAYERS
from lq_plugin.scheme import Scheme

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


CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
ELEMENTWISE = ("add", "mul", "cat")
POOLINGS = ("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean")

RECURRENT = ("lstm", "gru", "rnn")

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
    Operator("lstm", ()): (OPERATORS_OF_LAYERS["lstm"].default,),
    Operator("gru", ()): (OPERATORS_OF_LAYERS["gru"].default,),
    Operator("rnn", ()): (OPERATORS_OF_LAYERS["rnn"].default,),
    Operator("max_pool1d"): (aten.max_pool1d.default,),
    Operator("max_pool2d"): (aten.max_pool2d.default,),
    Operator("max_pool3d"): (aten.max_pool3d.default,),
}
OPERATORS: dict[object, Operator] = {target: operator for operator, targets in _OPERATORS.items() for target in targets}
OPERATOR_NAMES = tuple(operator.name for operator in _OPERATORS)

# Products with a constant weight, and look-ups: what dynamic quantization covers wherever it is done.
PRODUCTS = frozenset({"linear", "matmul", "addmm", "embedding"})

# Activations a kernel can compute on its result before it is quantized. Others come out as float operators.
CLIPPING = frozenset({"relu", "relu6", "hardtanh", "clamp", "clamp_min"})
POINTWISE = CLIPPING | {"hardswish", "hardsigmoid", "silu", "gelu", "sigmoid", "tanh", "leaky_relu", "elu"}

# Operators that hand values on unchanged: what leaves them has the scale of what went in.
PASSING = frozenset(
    "view _unsafe_view reshape flatten unflatten permute transpose t squeeze unsqueeze expand contiguous clone slice "
    "select alias detach movedim narrow split unbind getitem chunk split_with_sizes max_pool1d max_pool2d max_pool3d "
    "_to_copy dropout pixel_shuffle repeat roll upsample_nearest1d upsample_nearest2d upsample_nearest3d".split()
)
_UNLISTED = PASSING | frozenset("arange full zeros ones sym_size index_select constant_pad_nd pad".split())


@dataclass(frozen=True)
class Rules:
    """What one runtime needs for its INT8 kernels.

    Args:
        fuses: activations that its kernels compute on a convolution's result before quantizing it.
        quantized_outputs: operators whose kernel is taken only when the result is quantized too.
        dynamic: operators that it computes on integers with a scale from each batch.
        dynamic_around_float_layers: whether a dynamic artifact is worth having where recurrent layers stay float.
    """

    fuses: frozenset[str]
    quantized_outputs: frozenset[str] = frozenset()
    dynamic: frozenset[str] = frozenset()
    dynamic_around_float_layers: bool = True


RUNTIMES: dict[str, Rules] = {
    "onnxruntime": Rules(CLIPPING, frozenset({*CONVOLUTIONS, *ELEMENTWISE, *POOLINGS}), PRODUCTS | {"lstm", "gru"}),
    "openvino": Rules(POINTWISE, dynamic=PRODUCTS, dynamic_around_float_layers=False),
    "torch": Rules(POINTWISE),
}


@dataclass(frozen=True)
class Placement:
    """Where quantize/dequantize pairs go in a folded graph, by the names of its nodes.

    Args:
        inputs: for each quantized operator, the values quantized on their way in.
        weights: for each quantized operator with a weight, the weight's node and its channel axis.
        outputs: nodes whose result is quantized for all of its users.
        scales: for each quantized value, the value whose statistic it uses.
        quantized: every quantized operator, by node.
        float_ops: what computes on floats and stays float.
    """

    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    weights: dict[str, tuple[str, int]] = field(default_factory=dict)
    outputs: frozenset[str] = frozenset()
    scales: dict[str, str] = field(default_factory=dict)
    quantized: dict[str, QuantizedOp] = field(default_factory=dict)
    float_ops: tuple[FloatOp, ...] = ()


def place(graph: Graph, scheme: Scheme, runtime: str) -> Placement:
    """Decide where quantize/dequantize pairs go for one runtime.

    Args:
        graph: a folded graph.
        scheme: what to skip.
        runtime: a key of ``RUNTIMES``.

    Raises:
        ConfigError: a pattern of the scheme matches nothing.
        UnsupportedError: nothing in the graph can be quantized.
    """
    if scheme.method == "static":  # those of dynamic schemes are about layers, see eager/swap.py
        check_patterns(graph, scheme)
    rules = RUNTIMES[runtime]
    chosen, refused = _choose(graph.module.graph, scheme, rules)
    _refuse_poor(chosen, refused, scheme, runtime)
    inputs = {
        node: () if scheme.method == "dynamic" else tuple(_activations(node, operator))
        for node, operator in chosen.items()
    }
    outputs = {
        tail
        for node, operator in chosen.items()
        if operator.name in rules.quantized_outputs
        if not (tail := _chain(node, rules)[-1]).users or not all(tail in inputs.get(user, ()) for user in tail.users)
    }
    fused = {tail for node in chosen for tail in _chain(node, rules)[1:]}
    quantized_values = {value for values in inputs.values() for value in values} | outputs
    return Placement(
        inputs={node.name: tuple(value.name for value in values) for node, values in inputs.items()},
        weights={
            node.name: (arguments(node)[operator.weight].name, operator.channel_axis)
            for node, operator in chosen.items()
            if operator.weight is not None
        },
        outputs=frozenset(node.name for node in outputs),
        scales={value.name: _origin(value).name for value in quantized_values},
        quantized={node.name: QuantizedOp(display_name(node), operator.name) for node, operator in chosen.items()},
        float_ops=tuple(
            FloatOp(display_name(node), operator_type(node), reason)
            for node, reason in refused.items()
            if node not in fused
        ),
    )


def _choose(graph: fx.Graph, scheme: Scheme, rules: Rules) -> tuple[dict[fx.Node, Operator], dict[fx.Node, str]]:
    """Say of everything that computes on floats how it is quantized, or why it stays float."""
    chosen: dict[fx.Node, Operator] = {}
    refused: dict[fx.Node, str] = {}
    convolutional = _convolutional_values(graph)
    for node in filter(_computes_on_floats, graph.nodes):
        operator = _operator(node)
        if operator is not None:
            reason = _refusal(node, operator, scheme, rules, convolutional)
            if reason is None:
                chosen[node] = operator
            else:
                refused[node] = reason
        elif operator_type(node) not in _UNLISTED:
            refused[node] = _no_form(node)
    return chosen, refused


def _refuse_poor(
    chosen: Mapping[fx.Node, Operator], refused: Mapping[fx.Node, str], scheme: Scheme, runtime: str
) -> None:
    """Refuse a placement that leaves the heavy work float."""
    if not any(o.weight is not None or o.name in ("matmul", "bmm", *RECURRENT) for o in chosen.values()):
        raise UnsupportedError(_nothing_to_quantize(refused, scheme.method))
    recurrent = [display_name(node) for node in refused if operator_type(node) in RECURRENT]
    if scheme.method == "dynamic" and recurrent and not RUNTIMES[runtime].dynamic_around_float_layers:
        raise UnsupportedError(
            f"target: {recurrent} would stay float, for {runtime} has no INT8 form of recurrent layers."
        )


def display_name(node: fx.Node) -> str:
    """Name of an operator for people: the module it was captured in and its own name in the graph."""
    path = module_path(node)
    return f"{path}.{node.name}" if path else node.name


def check_patterns(graph: Graph, scheme: Scheme) -> None:
    """Check that every pattern of the scheme matches something.

    Raises:
        ConfigError: a pattern that matches nothing, with the nearest names that would.
    """
    present = {OPERATORS[n.target].name for n in graph.module.graph.nodes if n.target in OPERATORS}
    patterns.check_modules(scheme, graph.modules)
    patterns.check_types(scheme, present, OPERATOR_NAMES)


def _refusal(
    node: fx.Node, operator: Operator, scheme: Scheme, rules: Rules, convolutional: Set[fx.Node]
) -> str | None:
    """Why an operator stays float, or ``None`` when it is quantized."""
    excluded = patterns.exclusion(scheme, operator.name, module_stack(node))
    if excluded is not None:
        return excluded
    if scheme.method == "dynamic" and operator.name in CONVOLUTIONS:
        return "dynamic INT8 convolutions are slower than float ones"
    if (operator.weight is not None or operator.name in RECURRENT) and not _has_finite_constants(node):
        return "its weights hold nan or infinity"
    if operator.name in RECURRENT or scheme.method == "dynamic":
        return _dynamic_refusal(node, operator, scheme, rules)
    if operator.weight is not None and not _is_constant(node.args[operator.weight]):
        return "its weight is computed in the forward"
    if any(isinstance(value, fx.Node) for value in node.kwargs.values()):
        return "takes a tensor by keyword"
    values = list(_activations(node, operator))
    if operator.activations and (not values or any(not _is_float(value) for value in values)):
        return "an input is a number or not float32"
    policy = _POLICIES.get(operator.name)
    return policy(node, values, convolutional) if policy is not None else None


def _dynamic_refusal(node: fx.Node, operator: Operator, scheme: Scheme, rules: Rules) -> str | None:
    if scheme.method != "dynamic":
        return "no static INT8 form of this operator"
    if operator.name not in rules.dynamic:
        return "no dynamic INT8 form of this operator"
    if operator.name in PRODUCTS and (operator.weight is None or not _is_constant(node.args[operator.weight])):
        return "none of its factors is constant"
    if _dtype(node) != torch.float32:
        return "it does not compute in float32"
    return None


def _operator(node: fx.Node) -> Operator | None:
    """How a node is quantized; a product with a constant matrix is like a linear layer."""
    operator = OPERATORS.get(node.target)
    if operator is not None and operator.name == "matmul" and _is_constant(node.args[1]):
        weight = node.args[1]
        if isinstance(weight, fx.Node) and weight.meta["val"].dim() == 2:
            return Operator("matmul", weight=1, channel_axis=1)
    return operator


def _no_form(node: fx.Node) -> str:
    if operator_type(node) in POINTWISE:
        return "no INT8 form of this operator, and no quantized operator before it to compute it"
    return "no INT8 form of this operator"


def _between_convolutions(node: fx.Node, values: list[fx.Node], convolutional: Set[fx.Node]) -> str | None:
    if any(map(_is_constant, values)):
        return "an input is a constant"
    required = any if operator_type(node) == "mul" else all
    if required(value in convolutional for value in values):
        return None
    return "not between convolutions: INT8 would cost accuracy and gain no speed"


def _sum_or_product(node: fx.Node, values: list[fx.Node], convolutional: Set[fx.Node]) -> str | None:
    return "an input is a number" if len(values) < 2 else _between_convolutions(node, values, convolutional)


def _after_convolution(node: fx.Node, values: list[fx.Node], convolutional: Set[fx.Node]) -> str | None:
    return None if values[0] in convolutional else "not after a convolution"


_POLICIES: dict[str, Callable[[fx.Node, list[fx.Node], Set[fx.Node]], str | None]] = {
    "add": _sum_or_product,
    "mul": _sum_or_product,
    "cat": _between_convolutions,
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d", *POOLINGS), _after_convolution),
}


def _convolutional_values(graph: fx.Graph) -> Set[fx.Node]:
    """Values that come from a convolution through activations, poolings, sums and the like alone."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        operator = OPERATORS.get(node.target)
        if operator is not None and operator.name in ELEMENTWISE:
            values = list(_activations(node, operator))
            moving = [value for value in values if not _is_constant(value)]
            policy = _POLICIES[operator.name]
            convolutional = moving[0] in found if len(moving) == 1 else policy(node, values, found) is None
        elif operator_type(node) in POINTWISE | PASSING | set(POOLINGS):
            convolutional = bool(node.args) and node.args[0] in found
        else:
            convolutional = operator is not None and operator.name in CONVOLUTIONS
        if convolutional:
            found.add(node)
    return found


def _activations(node: fx.Node, operator: Operator) -> Iterable[fx.Node]:
    for position in operator.activations:
        argument = node.args[position]
        for value in argument if isinstance(argument, list | tuple) else (argument,):
            if isinstance(value, fx.Node):
                yield value


def _chain(node: fx.Node, rules: Rules) -> list[fx.Node]:
    """An operator and the activations that its kernel computes on its result."""
    chain = [node]
    while len(chain[-1].users) == 1:
        (user,) = chain[-1].users
        if operator_type(user) not in rules.fuses or user.args[0] is not chain[-1]:
            break
        chain.append(user)
    return chain


def _origin(value: fx.Node) -> fx.Node:
    """The value whose range a value has: what went into the operators that only hand it on."""
    while operator_type(value) in PASSING and value.op == "call_function" and _is_float(value.args[0]):
        value = value.args[0]  # type: ignore[assignment]
    return value


def _has_finite_constants(node: fx.Node) -> bool:
    module = node.graph.owning_module
    assert module is not None
    constants = [attribute(module, value) for value in node.all_input_nodes if _is_constant(value)]
    return all(constant.isfinite().all() for constant in constants if isinstance(constant, torch.Tensor))


def _is_constant(argument: object) -> bool:
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def _is_float(argument: object) -> bool:
    value = argument.meta.get("val") if isinstance(argument, fx.Node) else None
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def _computes_on_floats(node: fx.Node) -> bool:
    dtype = _dtype(node) if node.op == "call_function" else None
    return dtype is not None and dtype.is_floating_point


def _dtype(node: fx.Node) -> torch.dtype | None:
    """Type of a node's result, of the first one where there are several."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, list | tuple) else value
    return first.dtype if isinstance(first, torch.Tensor) else None


def _nothing_to_quantize(refused: Mapping[fx.Node, str], method: str) -> str:
    reasons = "; ".join(f"{display_name(node)}: {reason}" for node, reason in list(refused.items())[:5])
    allowed = "convolutions, linear layers, matrix products and embeddings"
    if method == "dynamic":
        allowed = "linear layers and, where asked, embeddings"
    return (
        f"target: nothing in it can be quantized. Quantizable are {allowed}. It has: "
        f"{reasons or 'no operator on float tensors'}. Choose another target, or relax skip and only."
    )
