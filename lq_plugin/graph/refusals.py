"""Why operators stay float: those for which no INT8 form exists, or none that is worth it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set

import torch
from torch import fx

from lq_plugin.graph import int8_lstm
from lq_plugin.graph.nodes import attribute, is_constant, is_float, operator_type, result_dtype
from lq_plugin.graph.operators import (
    CONVOLUTIONS,
    ELEMENTWISE,
    MAX_POOLINGS,
    OPERATORS,
    POINTWISE,
    POOLINGS,
    PRODUCTS,
    QUANTIZATION_AGNOSTIC,
    RECURRENT,
    Operator,
    kind_of,
    values_of,
)
from lq_plugin.runtimes import Runtime


def _of_its_constants(node: fx.Node, operator: Operator) -> str | None:
    if (operator.weight is not None or operator.name in RECURRENT) and not _has_finite_constants(node):
        return "its weights hold nan or infinity"
    return None


def static_refusal(node: fx.Node, operator: Operator, convolutional: Set[fx.Node], rules: Runtime) -> str | None:
    """Return why an operator stays float on a runtime where scales are fixed ahead of time, if so."""
    return (
        _of_its_constants(node, operator)
        or _formless(node, operator, convolutional)
        or rules.stays_float.get(kind_of(node, operator))
        or rules.stays_float.get(operator.name)
    )


def _formless(node: fx.Node, operator: Operator, convolutional: Set[fx.Node]) -> str | None:
    if operator.name == "lstm":
        return int8_lstm.refusal(node)
    if operator.name in RECURRENT:
        return "no static INT8 form of this operator"
    if operator.weight is not None and not is_constant(node.args[operator.weight]):
        return "its weight is computed in the forward"
    if any(isinstance(value, fx.Node) for value in node.kwargs.values()):
        return "takes a tensor by keyword"
    values = list(values_of(node, operator))
    if operator.activations and (not values or any(not is_float(value) for value in values)):
        return "an input is a number or not float32"
    policy = _POLICIES.get(operator.name)
    return policy(node, values, convolutional) if policy is not None else None


def dynamic_refusal(node: fx.Node, operator: Operator, rules: Runtime) -> str | None:
    """Return why an operator stays float on a runtime that computes scales in every call, if so."""
    if operator.name in CONVOLUTIONS:
        return "dynamic INT8 convolutions are slower than float ones"
    if reason := _of_its_constants(node, operator):
        return reason
    if operator.name not in rules.dynamic:
        return "no dynamic INT8 form of this operator"
    if operator.name in PRODUCTS and (operator.weight is None or not is_constant(node.args[operator.weight])):
        return "none of its factors is constant"
    if result_dtype(node) != torch.float32:
        return "it does not compute in float32"
    return None


def no_form(node: fx.Node) -> str:
    """Return why an operator that is not listed stays float."""
    if operator_type(node) in POINTWISE:
        return "no INT8 form of this operator, and no quantized operator before it to compute it"
    return "no INT8 form of this operator"


def _between_convolutions(node: fx.Node, values: list[fx.Node], convolutional: Set[fx.Node]) -> str | None:
    if any(map(is_constant, values)):
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
    **dict.fromkeys(MAX_POOLINGS | POOLINGS, _after_convolution),
}


def convolutional_values(nodes: Iterable[fx.Node]) -> Set[fx.Node]:
    """Values that come from a convolution through activations, poolings, sums and the like alone."""
    found: set[fx.Node] = set()
    for node in nodes:
        operator = OPERATORS.get(node.target)
        if operator is not None and operator.name in ELEMENTWISE:
            values = list(values_of(node, operator))
            moving = [value for value in values if not is_constant(value)]
            policy = _POLICIES[operator.name]
            convolutional = moving[0] in found if len(moving) == 1 else policy(node, values, found) is None
        elif operator_type(node) in POINTWISE | QUANTIZATION_AGNOSTIC | POOLINGS:
            convolutional = bool(node.args) and node.args[0] in found
        else:
            convolutional = operator is not None and operator.name in CONVOLUTIONS
        if convolutional:
            found.add(node)
    return found


def _has_finite_constants(node: fx.Node) -> bool:
    module = node.graph.owning_module
    assert module is not None
    constants = [attribute(module, value) for value in node.all_input_nodes if is_constant(value)]
    return all(constant.isfinite().all() for constant in constants if isinstance(constant, torch.Tensor))
