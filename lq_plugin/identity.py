"""Identity is content: digests of graphs and weights, equal in every process and on every device.

A name, a step or a version counter says nothing about content: weights change without a step, two files have one name,
and ``parameter.data.copy_(…)`` changes no version. So digests are of bytes, read before any arithmetic (folding rounds
differently from one machine to another), and without names, which depend on what was traced before.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

aten = torch.ops.aten
# They compute nothing, and their messages contain names of symbols.
_CHECKS = (aten._assert_tensor_metadata.default, aten._assert_scalar.default, aten._assert_async.msg)


def graph_digest(module: fx.GraphModule) -> str:
    """Return a sha256 of a captured graph's structure and of the tensors that it reads.

    Args:
        module: a captured graph before folding. 25 ms for the 47 MB of a ResNet-18.
    """
    total = hashlib.sha256(structure_digest(module).encode())
    for tensor in _tensors(module):
        _add(total, tensor)
    return total.hexdigest()


def structure_digest(module: fx.GraphModule) -> str:
    """Return a sha256 of what a captured graph computes: operators, wiring, constants and the types of its tensors.

    The values of parameters and buffers, names, devices and the shapes of the inputs do not count.
    """
    return hashlib.sha256("\n".join(_lines(module)).encode()).hexdigest()


def weights_digest(module: nn.Module) -> str:
    """Return a sha256 of a module's parameters and buffers, with their names."""
    return tensors_digest(state_tensors(module))


def code_digest(classes: Iterable[type]) -> str:
    """Return a sha256 of the source files that define classes; one without a file, as in a notebook, counts by name."""
    total = hashlib.sha256()
    names = {each.__module__ for each in classes}
    for name in sorted(names):
        file = getattr(sys.modules.get(name), "__file__", None)
        total.update(Path(file).read_bytes() if file and Path(file).is_file() else name.encode())
    return total.hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a sha256 of tensors and their names."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name}\n".encode())
        if not nn.parameter.is_lazy(tensor):
            _add(total, tensor)
    return total.hexdigest()


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and buffers by the names that a copy without ``torch.compile`` gives them."""
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {re.sub(r"(^|(?<=\.))_orig_mod\.", "", name): tensor for name, tensor in named}


def _add(total: Any, tensor: Tensor) -> None:
    dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
    content = dense.detach().cpu().contiguous().flatten()
    total.update(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    total.update(content.view(torch.uint8).numpy())


def _lines(module: fx.GraphModule) -> Iterator[str]:
    """One line for each node that counts."""
    numbers: dict[fx.Node, int] = {}
    read: dict[str, int] = {}
    for node in _counting(module):
        numbers[node] = len(numbers)
        if node.op == "placeholder":
            yield f"input {getattr(node.meta.get('val'), 'dtype', None)}"
        elif node.op == "get_attr":
            target = str(node.target)
            yield f"read {read.setdefault(target, len(read))} {_described(_attribute(module, target))}"
        else:
            target = node.target if isinstance(node.target, str) else _name(node.target)
            yield f"{node.op} {target} {_written(node.args, numbers)} {_written(node.kwargs, numbers)}"


def _counting(module: fx.GraphModule) -> Iterator[fx.Node]:
    """All nodes but checks, each attribute where it is first read: a graph lists them in the order of their names."""
    listed: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr" or node.target in _CHECKS:
            continue
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source not in listed:
                listed.add(source)
                yield source
        yield node


def _tensors(module: fx.GraphModule) -> Iterator[Tensor]:
    """The tensors that a graph reads, in the order in which it first does; those of its branches too."""
    names = dict.fromkeys(str(node.target) for node in _counting(module) if node.op == "get_attr")
    for attribute in (_attribute(module, name) for name in names):
        if isinstance(attribute, Tensor):
            yield attribute
        elif isinstance(attribute, fx.GraphModule):
            yield from _tensors(attribute)


def _attribute(module: fx.GraphModule, target: str) -> Any:
    path, _, name = target.rpartition(".")
    return getattr(module.get_submodule(path), name)


def _described(attribute: Any) -> str:
    if isinstance(attribute, fx.GraphModule):  # a branch of torch.cond
        return structure_digest(attribute)
    if isinstance(attribute, Tensor):
        return f"{attribute.dtype} {list(attribute.shape)}"
    return type(attribute).__qualname__


def _name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', type(target).__qualname__)}"


def _written(value: Any, numbers: Mapping[fx.Node, int]) -> str:
    """An argument as text that is the same in every process."""
    if isinstance(value, fx.Node):
        return f"%{numbers[value]}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_written(item, numbers) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_written(item, numbers)}' for name, item in value.items())}}}"
    if isinstance(value, slice):
        return f"slice{_written((value.start, value.stop, value.step), numbers)}"
    if isinstance(value, torch.device):
        return "device"
    plain = value is None or isinstance(value, bool | int | float | complex | str)
    named = isinstance(value, torch.dtype | torch.layout | torch.memory_format)
    return repr(value) if plain or named else type(value).__qualname__
