"""Quantized convolutions over one dimension, written over two, as inductor computes them right.

Inductor (torch 2.13) packs the weight of a quantized ``conv1d`` for two dimensions, and then takes the size of its
kernel to be 1: the result has another shape than it expects. A residual sum or a flatten after it does not compile.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from lq_plugin.graph.folding import strip_unused
from lq_plugin.graph.nodes import arguments, attribute, operator_type
from lq_plugin.noise import muted

aten = torch.ops.aten
_CONVOLUTIONS: dict[Any, Any] = {
    aten.conv1d.default: aten.conv2d.default,
    aten.conv1d.padding: aten.conv2d.padding,
}
# What inductor computes in a convolution's kernel, or looks for beside one.
_BESIDE = ("relu", "hardtanh", "silu", "hardswish", "quantize_per_tensor", "dequantize_per_tensor")
_NEW = -2  # position of the new dimension


def over_two_dimensions(module: fx.GraphModule) -> fx.GraphModule:
    """Return a converted graph whose quantized ``conv1d`` are ``conv2d``, with a dimension of size 1.

    The dimension is added before a value is quantized and removed after it is dequantized, so that the pairs stay next
    to the convolutions, and stays from one convolution to the next.
    """
    with muted():
        made = fx.GraphModule(module, copy.deepcopy(module.graph))
    squeezed: dict[fx.Node, fx.Node] = {}  # what has the new dimension, by the same value without it
    for node in list(made.graph.nodes):
        if node.target in _CONVOLUTIONS and _is_quantized(node, squeezed):
            with made.graph.inserting_before(node):
                squeezed |= _replaced(node, _over_two(made, node, squeezed))
        elif operator_type(node) in _BESIDE and arguments(node)[0] in squeezed:
            with made.graph.inserting_before(node):
                wide = made.graph.call_function(node.target, (squeezed[node.args[0]], *node.args[1:]), node.kwargs)
                squeezed |= _replaced(node, wide)
    made.graph.eliminate_dead_code()
    strip_unused(made)  # the weights without the new dimension
    made.recompile()
    return made


def _is_quantized(convolution: fx.Node, squeezed: dict[fx.Node, fx.Node]) -> bool:
    """Whether a convolution reads integers, of weights too."""
    value, weight = arguments(convolution)[:2]
    read = (operator_type(node) for node in (squeezed.get(value, value), weight))
    return all(name in ("dequantize_per_tensor", "dequantize_per_channel") for name in read)


def _replaced(node: fx.Node, wide: fx.Node) -> dict[fx.Node, fx.Node]:
    """Put a value with the new dimension in a node's place; return it by the value without it, which is read now."""
    narrow = node.graph.call_function(aten.squeeze.dim, (wide, _NEW))
    node.replace_all_uses_with(narrow)
    node.graph.erase_node(node)
    return {narrow: wide}


def _over_two(module: fx.GraphModule, node: fx.Node, squeezed: dict[fx.Node, fx.Node]) -> fx.Node:
    """A convolution on its input and weight with the new dimension."""
    value, weight, *others = arguments(node)
    integers = weight.args[0]
    name = f"lq_{integers.target}_over_two".replace(".", "_")
    module.register_buffer(name, attribute(module, integers).unsqueeze(_NEW))
    kernel = module.graph.call_function(weight.target, (module.graph.get_attr(name), *weight.args[1:]), weight.kwargs)
    for position, neutral in enumerate((1, 0, 1), start=1):
        if position < len(others) and not isinstance(others[position], str):
            others[position] = [neutral, *others[position]]
    if value not in squeezed:
        squeezed |= _wide_pair(module.graph, value, squeezed)
    return module.graph.call_function(_CONVOLUTIONS[node.target], (squeezed[value], kernel, *others), node.kwargs)


def _wide_pair(graph: fx.Graph, dequantized: Any, squeezed: Mapping[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    """The same pair, of the value before it with the new dimension; several pairs may share their integers."""
    quantized = dequantized.args[0]
    integers = squeezed.get(quantized)
    if integers is None:
        wide = graph.call_function(aten.unsqueeze.default, (quantized.args[0], _NEW))
        integers = graph.call_function(quantized.target, (wide, *quantized.args[1:]), quantized.kwargs)
    floats = graph.call_function(dequantized.target, (integers, *dequantized.args[1:]), dequantized.kwargs)
    return {quantized: integers, dequantized: floats}
