"""A captured graph follows its module when tensors are replaced by others.

In-place changes and ``parameter.data = …`` reach the graph by themselves, because it shares the module's tensors. An
assigned buffer, a new Parameter, ``load_state_dict(assign=True)`` or Lightning's SWA, which gives BatchNorm new running
statistics, do not: the graph would keep the old tensors, and observers would see a model that no longer exists.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lq_plugin.graph.capture import CAPTURED_AS
from lq_plugin.graph.graph import Graph


def follow(graph: Graph, before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> bool:
    """Let a graph read the tensors that its module has now, instead of the former ones.

    Args:
        graph: as captured, before folding; changed.
        before: parameters and buffers that the module had when it was captured or last followed, by name.
        now: those that it has.

    Returns:
        Whether that was possible. The graph has to be captured again where tensors were added or removed, where one has
        another dtype or shape, or where different ones are shared.
    """
    if before.keys() != now.keys() or _sharing(before) != _sharing(now):
        return False
    changed = {name: tensor for name, tensor in now.items() if tensor is not before[name]}
    if any(_form(before[name]) != _form(tensor) for name, tensor in changed.items()):
        return False
    for target in {str(node.target) for node in graph.module.graph.nodes if node.op == "get_attr"}:
        tensor = changed.get(target.removeprefix(f"{CAPTURED_AS}."))
        if tensor is not None:
            _put(graph.module, target, tensor)
    return True


def _put(module: nn.Module, target: str, tensor: Tensor) -> None:
    path, _, name = target.rpartition(".")
    owner = module.get_submodule(path)
    delattr(owner, name)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(name, tensor)
    else:
        owner.register_buffer(name, tensor)


def _sharing(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name, the first one of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device, tensor.layout
