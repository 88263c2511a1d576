"""What a node of a graph is: its operator, arguments and tensor, and the module that it was captured in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

_INSERTED = "lq_"  # prefix of the names of nodes inserted after preparation
INSERTED_BY = "lq_inserted_by"  # key of a node's meta: the algorithm that inserted it


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """A node's positional arguments, of which the operator's schema says what they are."""
    return node.args


def attribute(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The tensor that a ``get_attr`` node reads."""
    path, _, name = str(node.target).rpartition(".")
    tensor = getattr(module.get_submodule(path), name)
    assert isinstance(tensor, Tensor)
    return tensor


def is_constant(argument: object) -> bool:
    """Whether an argument of a node is a parameter, a buffer or another constant of the graph."""
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def is_float(argument: object) -> bool:
    """Whether an argument of a node is a tensor in float32."""
    value = argument.meta.get("val") if isinstance(argument, fx.Node) else None
    return isinstance(value, Tensor) and value.dtype == torch.float32


def result_dtype(node: fx.Node) -> torch.dtype | None:
    """Type of a node's result, of the first one where there are several."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, list | tuple) else value
    return first.dtype if isinstance(first, Tensor) else None


def operator_type(node: fx.Node) -> str:
    """Name of the operator that a node calls, such as ``"conv2d"`` for ``aten.conv2d.default``."""
    return _operator_type(node.target)


def insert(graph: fx.Graph, target: Any, args: tuple[Any, ...], name: str | None = None) -> fx.Node:
    """Insert a call into a prepared graph without changing the names of other values: statistics are found by name."""
    return graph.create_node("call_function", target, args, name=name or f"{_INSERTED}{_operator_type(target)}")


def constant(module: fx.GraphModule, name: str, value: Tensor, like: fx.Node, node_name: str | None = None) -> fx.Node:
    """Insert a node that reads ``value``, described like the node it stands in for."""
    module.register_buffer(name, value.detach().clone(memory_format=torch.contiguous_format))
    node = module.graph.create_node("get_attr", name, name=node_name)
    fake = next(n.meta["val"].fake_mode for n in module.graph.nodes if isinstance(n.meta.get("val"), FakeTensor))
    node.meta = {**like.meta, "val": fake.from_tensor(value, static_shapes=True)}
    return node


def call(graph: fx.Graph, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
    """Insert a call of an operator, described like the node it stands in for or follows, with its own result."""
    node = graph.call_function(target, args)
    node.meta = {**like.meta, "val": target(*fx.map_arg(args, lambda given: given.meta["val"]))}
    return node


def is_inserted(node: fx.Node) -> bool:
    """Whether a node was inserted after preparation."""
    return node.name.startswith(_INSERTED)


def module_path(node: fx.Node) -> str:
    """Dotted name, below the target, of the module that a node was captured in; ``""`` for the target itself."""
    return _paths(node)[-1] if _paths(node) else ""


def module_stack(node: fx.Node) -> list[str]:
    """Dotted names of all modules that a node was captured in, outermost first."""
    return [path for path in _paths(node) if path]


def _paths(node: fx.Node) -> list[str]:
    stack = (path.split("@")[0] for path, _ in node.meta.get("nn_module_stack", {}).values())
    return [path.removeprefix("target").removeprefix(".") for path in stack if path.split(".")[0] == "target"]


def _operator_type(target: Any) -> str:
    packet = getattr(target, "overloadpacket", None)
    return str(packet.__name__ if packet is not None else getattr(target, "__name__", target))
