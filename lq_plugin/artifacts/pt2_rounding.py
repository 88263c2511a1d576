"""One operator for each quantize/dequantize pair of a graph, for eager torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from lq_plugin.noise import muted

ROUND = torch.ops.aten.fake_quantize_per_tensor_affine.default


def rounding_at_once(module: fx.GraphModule) -> fx.GraphModule:
    """Return the graph with one operator for each quantize/dequantize pair, for eager torch; tensors are shared.

    Numbers are the same bit by bit, infinities included. Not a number differs for int8: the pair makes it zero, one
    operator the lowest value (torch 2.13, x86). torch computes a pair as seven operators over the whole tensor, which
    took half of ResNet-18's time (3x224x224, batch 50: 3.3 s a batch on one core of an AMD EPYC).
    """
    with muted():
        made = fx.GraphModule(module, copy.deepcopy(module.graph))
    for node in list(made.graph.nodes):
        users = list(node.users)
        if _is_pair(node, users):
            value, *qparams, _ = node.args
            with made.graph.inserting_before(node):
                rounded = made.graph.call_function(ROUND, (value, *qparams))
            for user in users:
                user.replace_all_uses_with(rounded)
                made.graph.erase_node(user)
            made.graph.erase_node(node)
    made.recompile()
    return made


def _is_pair(node: fx.Node, users: Sequence[fx.Node]) -> bool:
    """Whether a node quantizes, and every user dequantizes what it made as it was made."""
    pairs = torch.ops.quantized_decomposed
    if node.target is not pairs.quantize_per_tensor.default or node.kwargs or not users:
        return False
    qparams: list[Any] = list(node.args[1:])
    _, zero_point, lowest, highest, dtype = qparams
    fits: bool = torch.iinfo(dtype).min <= lowest <= zero_point <= highest <= torch.iinfo(dtype).max
    return fits and all(
        user.target is pairs.dequantize_per_tensor.default and user.args == (node, *qparams) and not user.kwargs
        for user in users
    )
