"""Changes to a copy of a folded graph: replaced constants and inserted operators. Values keep their names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from lq_plugin.graph.folding import strip_unused
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.nodes import INSERTED_BY, constant, insert
from lq_plugin.identity import graph_digest


def put_constant(module: fx.GraphModule, node: fx.Node, position: int, value: Tensor) -> None:
    """Let an operator read another constant.

    Args:
        module: changed in place.
        node: the operator.
        position: of the argument in the operator's schema; missing arguments before it become ``None``.
        value: the new constant.
    """
    args = [*node.args, *[None] * (position + 1 - len(node.args))]
    with module.graph.inserting_before(node):
        args[position] = constant(module, f"lq_{node.name}_{position}", value, node)
    node.args = tuple(args)


def insert_before(
    module: fx.GraphModule, consumer: fx.Node, target: Any, value: fx.Node, factor: Tensor, algorithm: str
) -> fx.Node:
    """Insert an operator on a value and a constant, such as a multiplication, whose result has the value's shape.

    Args:
        module: changed in place. Nothing reads the result yet.
        consumer: the operator that will read it; the new one is listed in its module.
        target: the operator to insert.
        value: its first argument.
        factor: the constant that is its second argument.
        algorithm: the algorithm that inserts it, given as the reason why the new operator stays float.
    """
    with module.graph.inserting_before(consumer):
        known = constant(module, f"lq_{value.name}_{consumer.name}", factor, consumer)
    return inserted(module, consumer, target, (value, known), algorithm)


def inserted(
    module: fx.GraphModule,
    consumer: fx.Node,
    target: Any,
    args: tuple[fx.Node, ...],
    algorithm: str,
    name: str | None = None,
) -> fx.Node:
    """Insert an operator on nodes; see :func:`insert_before`. The result has the shape of the first of them."""
    with module.graph.inserting_before(consumer):
        result = insert(module.graph, target, args, name)
    result.meta = {**consumer.meta, "val": args[0].meta["val"], INSERTED_BY: algorithm}
    return result


def rewritten(graph: Graph) -> Graph:
    """Return a graph whose module was changed: without unused nodes and constants, and with its new digest."""
    graph.module.graph.eliminate_dead_code()
    strip_unused(graph.module)
    graph.module.graph.lint()
    graph.module.recompile()
    return replace(graph, digest=graph_digest(graph.module))
