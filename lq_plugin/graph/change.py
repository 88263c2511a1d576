"""What an algorithm has changed in a graph, as tensors and builtins, and a graph changed in the same way again.

Algorithms replace constants, insert multiplications and give operators other arguments. Only these nodes are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from lq_plugin.graph.graph import Graph, duplicate
from lq_plugin.graph.nodes import INSERTED_BY, constant
from lq_plugin.graph.rewriting import inserted, rewritten

aten = torch.ops.aten
# Operators that algorithms put into a graph.
_OPERATORS = {str(target): target for target in (aten.mul.Tensor, aten.hardtanh.default, aten.clamp.default)}
_Written = Mapping[str, Any]


def difference(before: Graph, after: Graph) -> dict[str, Any]:
    """Return what makes one graph of another, as tensors and builtins.

    Args:
        before: a graph.
        after: made of it by an algorithm.

    Raises:
        ValueError: more was changed than can be written down.
    """
    known = {node.name: node for node in before.module.graph.nodes}
    if after is before:
        return {"digest": after.digest, "nodes": []}
    nodes, later = list[dict[str, Any]](), None
    for node in reversed(after.module.graph.nodes):
        if node.name in known:
            later = node.name
        written = _written(node, known.get(node.name), before, after)
        if written is not None:
            nodes.insert(0, {**written, "name": node.name, "before": later})
    return {"digest": after.digest, "nodes": nodes}


def changed(before: Graph, change: Mapping[str, Any]) -> Graph:
    """Return a graph that was changed as :func:`difference` says; the graph itself is not.

    Raises:
        ValueError: this gives another graph than it did before.
    """
    if not change["nodes"] and change["digest"] == before.digest:
        return before
    made = duplicate(before, share_tensors=True)
    nodes = {node.name: node for node in made.module.graph.nodes}
    for written in change["nodes"]:
        name, operator = written["name"], written.get("operator")
        if "tensor" in written:
            nodes[name] = _read_constant(made.module, nodes[written["before"]], written)
            continue
        if name not in nodes:
            nodes[name] = _inserted(made.module, nodes, written)
        if operator is not None:
            nodes[name].target = _OPERATORS[operator]
        nodes[name].args = _args(written["args"], nodes[name], nodes)
    result = rewritten(made)
    if result.digest != change["digest"]:
        raise ValueError("it gives another graph")
    return result


def _written(node: fx.Node, known: fx.Node | None, before: Graph, after: Graph) -> _Written | None:
    """What is new in a node; ``None`` for nothing."""
    if node.op == "get_attr":
        read = _attribute(after.module, node)
        if known is not None and _same(read, _attribute(before.module, known)):
            return None
        if not isinstance(read, Tensor):
            raise ValueError(f"{node.name} reads a branch, which cannot be written down")
        return {"tensor": read, "attribute": str(node.target)}
    if known is None:
        operator = _operator(node)
        return {"operator": operator, "algorithm": node.meta.get(INSERTED_BY), "args": _plain(node.args, ())}
    if node.target == known.target and _names(node.args) == _names(known.args):
        return None
    new_operator = None if node.target == known.target else _operator(node)
    return {"operator": new_operator, "args": _plain(node.args, known.args)}


def _operator(node: fx.Node) -> str:
    if (name := str(node.target)) not in _OPERATORS:
        raise ValueError(f"{name} is not an operator that algorithms insert")
    return name


def _attribute(module: fx.GraphModule, node: fx.Node) -> Any:
    """What a ``get_attr`` node reads: a tensor, or a branch of ``torch.cond``."""
    path, _, name = str(node.target).rpartition(".")
    return getattr(module.get_submodule(path), name)


def _same(one: Any, other: Any) -> bool:
    """Whether nodes read the same; of branches, which a copy of a graph copies, only tensors are ever changed."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return not isinstance(one, Tensor) and not isinstance(other, Tensor)
    return one is other or (one.dtype == other.dtype and torch.equal(one, other))


def _names(args: Any) -> Any:
    """Arguments that can be compared with those of another graph."""
    return fx.map_arg(args, lambda node: ("node", node.name))


def _plain(args: tuple[Any, ...], known: tuple[Any, ...]) -> list[Any]:
    """Arguments as builtins; what an operator had before is not written down."""
    return [
        {"same": place}
        if place < len(known) and _names(argument) == _names(known[place])
        else {"node": argument.name}
        if isinstance(argument, fx.Node)
        else {"value": _literal(argument)}
        for place, argument in enumerate(args)
    ]


def _literal(argument: Any) -> Any:
    if argument is not None and not isinstance(argument, bool | int | float):
        raise ValueError(f"an argument of type {type(argument).__name__} cannot be written down")
    return argument


def _args(written: list[Any], node: fx.Node, nodes: Mapping[str, fx.Node]) -> tuple[Any, ...]:
    def arg(each: _Written) -> Any:
        if "same" in each:
            return node.args[each["same"]]
        return nodes[each["node"]] if "node" in each else _literal(each["value"])

    return tuple(map(arg, written))


def _read_constant(module: fx.GraphModule, consumer: fx.Node, written: _Written) -> fx.Node:
    with module.graph.inserting_before(consumer):
        made = constant(module, written["attribute"], written["tensor"], consumer, written["name"])
    return _named(made, written["name"])


def _inserted(module: fx.GraphModule, nodes: Mapping[str, fx.Node], written: _Written) -> fx.Node:
    """Insert an operator on its first argument; its others follow."""
    consumer, value, operator = nodes[written["before"]], nodes[written["args"][0]["node"]], written["operator"]
    made = inserted(module, consumer, _OPERATORS[operator], (value,), written["algorithm"], written["name"])
    return _named(made, written["name"])


def _named(node: fx.Node, name: str) -> fx.Node:
    if node.name != name:
        raise ValueError(f"{node.name} should be named {name}")
    return node
