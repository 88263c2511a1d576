"""Attention in the form in which ONNX has it: with a dimension for its heads."""

from __future__ import annotations

import torch
from torch import fx

from lq_plugin.graph.graph import Graph, duplicate
from lq_plugin.graph.nodes import arguments

aten = torch.ops.aten
_ATTENTION = aten.scaled_dot_product_attention.default
_HEADS = 1


def with_heads(graph: Graph) -> Graph:
    """Return the graph with one head in each attention that has none; the given one is not changed.

    The exporter (torch 2.13) takes no attention over three dimensions (samples, positions, features).
    """
    if not any(map(_lacks_heads, graph.module.graph.nodes)):
        return graph
    made = duplicate(graph, share_tensors=True)
    for node in list(made.module.graph.nodes):
        if _lacks_heads(node):
            _add_head(made.module.graph, node)
    made.module.recompile()
    return made


def _lacks_heads(node: fx.Node) -> bool:
    return node.target is _ATTENTION and bool(node.meta["val"].dim() == 3)


def _add_head(graph: fx.Graph, node: fx.Node) -> None:
    query, key, value, *others = arguments(node)
    mask = others[0] if others else None
    with graph.inserting_before(node):
        query, key, value = (
            graph.call_function(aten.unsqueeze.default, (each, _HEADS)) for each in (query, key, value)
        )
        if mask is not None and mask.meta["val"].dim() == 3:
            others[0] = graph.call_function(aten.unsqueeze.default, (mask, _HEADS))
        attention = graph.call_function(_ATTENTION, (query, key, value, *others), node.kwargs)
        result = graph.call_function(aten.squeeze.dim, (attention, _HEADS))
    node.replace_all_uses_with(result)
    graph.erase_node(node)
