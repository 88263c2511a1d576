"""Structures: how tensors are nested in a value, as plain data.

A *structure* is nested builtins: ``{"tensor": index, "dtype": "float32", "shape": [None, 3]}`` (``None`` is a dynamic
dimension), ``{"constant": value}``, ``{"object": value}`` for a constant of another class, such as an enum member, of
which only the name is stored, or a kind of container with its keys, ``{"dict": [[key, structure], ...]}``; the
kinds are those of :func:`~lq_plugin.graph.nesting.children`. Of dataclasses and named tuples, the names of the fields
are stored, not the class: nothing has to be imported to call an artifact. An output may hold ``{"int": index}``
too: a number that follows from the sizes of the inputs, such as ``x.shape[0]``, which the graph gives as a tensor
without dimensions; and ``{"dropped": class name}``: an object that no graph can return, such as a cache, which is
``None`` in the artifact's output.

It corresponds to a treespec of pytree, with more in it: constants, dtypes and shapes, and kinds in place of classes.
"""

from __future__ import annotations

import enum
import functools
from collections import OrderedDict, namedtuple
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lq_plugin.errors import ArtifactError, CaptureError
from lq_plugin.graph.nesting import NAMED, Record, children

Structure = dict[str, Any]
CONSTANTS = (type(None), bool, int, float, str)
IN_ORDER = ("list", "tuple")  # kinds whose keys are positions
OF_CONSTANTS = ("constant", "object")  # kinds of values that hold nothing
LONGEST_NAME = 200  # characters of the name of a constant or a class; a file with a longer one is refused
_OBJECTS = (torch.dtype, torch.device, torch.layout, torch.memory_format, range, slice, bytes, complex)


@dataclass(frozen=True)
class Named:
    """A constant of which only the name is known, because it was read from a file."""

    name: str

    def __repr__(self) -> str:
        return self.name


def name_of(value: Any) -> str | None:
    """Return the name of a constant whose class is not a plain one; ``None`` for anything else."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"[:LONGEST_NAME]
    return repr(value)[:LONGEST_NAME] if isinstance(value, (*_OBJECTS, Named)) else None


def flatten(value: Any, where: str, tensors: list[Tensor], of_output: bool = False) -> Structure:
    """Append the tensors of a value to a list, and return the value's structure.

    Args:
        value: an argument or an output.
        where: what it is called in errors; what is in it is named as in ``dynamic_dims``: ``"batch.ids"``.
        tensors: the list; indices in the structure are positions in it.
        of_output: what cannot be recorded is dropped.

    Raises:
        CaptureError: ``value`` holds something that is neither a tensor, a plain container nor a constant.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return {
            "tensor": len(tensors) - 1,
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": [size if isinstance(size, int) else None for size in value.shape],
        }
    if isinstance(value, torch.SymInt):  # of an output, while it is captured
        size: Any = value
        tensors.append(torch.scalar_tensor(size, dtype=torch.int64))
        return {"int": len(tensors) - 1}
    if type(value) in CONSTANTS:
        return {"constant": value}
    if name_of(value) is not None:
        return {"object": value}
    opened = children(value)
    if opened is None and of_output:
        return {"dropped": type(value).__name__[:LONGEST_NAME]}
    if opened is None:
        raise CaptureError(
            f"{where}: a graph can neither take nor return a {type(value).__name__}. Allowed: tensors, None, bool, "
            "int, float, str, enum members, and list, tuple, dict, named tuple or dataclass of them. Choose as target "
            "a submodule whose forward takes and returns such values."
        )
    kind, items = opened
    if not all(type(key) in (str, int, bool) for key, _ in items):
        raise CaptureError(f"{where}: the keys of a dict must be str, int or bool, got {[key for key, _ in items]!r}.")
    return {kind: [[key, flatten(item, f"{where}.{key}", tensors, of_output)] for key, item in items]}


def dropped(structure: Structure, name: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the class of everything that was dropped from an output."""
    ((kind, content), *_) = structure.items()
    if kind == "dropped":
        yield name, content
    elif isinstance(content, list):
        for key, item in content:
            yield from dropped(item, f"{name}.{key}")


def flatten_as(structure: Structure, value: Any, where: str) -> Iterator[Tensor]:
    """Yield the tensors of a value of a known structure.

    Raises:
        ArtifactError: it has another structure, dtype, fixed dimension or constant.
    """
    ((kind, content), *_) = structure.items()
    if kind == "tensor":
        yield _checked_tensor(structure, value, where)
    elif kind == "constant":
        if type(value) is not type(content) or value != content:
            raise ArtifactError(
                f"argument {where}: given {value!r}, but the graph was captured with the constant {content!r}, "
                "which is fixed in it. Capture again with the other value to get an artifact for it."
            )
    elif kind == "object":
        if name_of(value) != name_of(content):
            raise ArtifactError(
                f"argument {where}: given {value!r}, but the graph was captured with the constant {name_of(content)}, "
                "which is fixed in it. Capture again with the other value to get an artifact for it."
            )
    elif kind in IN_ORDER:
        if not isinstance(value, list | tuple) or len(value) != len(content):
            got = f"{len(value)} items" if isinstance(value, list | tuple) else type(value).__name__
            raise ArtifactError(f"argument {where}: expected a {kind} of {len(content)} items, got {got}.")
        for (index, item), element in zip(content, value, strict=True):
            yield from flatten_as(item, element, f"{where}.{index}")
    else:
        keys = [key for key, _ in content]
        opened = children(value)
        items = dict(opened[1]) if opened is not None and opened[0] not in IN_ORDER else None
        if items is None or set(items) != set(keys):
            got = type(value).__name__ if items is None else str(sorted(map(str, items)))
            holder = f"{kind.replace('_', ' ')} with the fields" if kind in NAMED else "dict with the keys"
            raise ArtifactError(f"argument {where}: expected a {holder} {keys}, got {got}.")
        for key, item in content:
            yield from flatten_as(item, items[key], f"{where}.{key}")


def unflatten(structure: Structure, tensors: Sequence[Any]) -> Any:
    """Return the value that a structure describes, with ``tensors`` in their places."""
    if (index := structure.get("tensor")) is not None:  # first, as most models return one
        return tensors[index]
    ((kind, content), *_) = structure.items()
    if kind == "int":
        return int(tensors[content])
    if kind in OF_CONSTANTS:
        return content
    if kind == "dropped":
        return None
    items = {key: unflatten(item, tensors) for key, item in content}
    if kind in IN_ORDER:
        return list(items.values()) if kind == "list" else tuple(items.values())
    if kind == "named_tuple":
        return named_tuple_of(tuple(items))(**items)
    if kind == "record":
        return Record(items)
    return items if kind == "dict" else OrderedDict(items)


def tensors_of(structure: Structure, name: str) -> Iterator[tuple[str, Structure]]:
    """Yield the dotted name and the structure of every tensor in a structure."""
    ((kind, content), *_) = structure.items()
    if kind == "tensor":
        yield name, structure
    elif kind not in OF_CONSTANTS:
        for key, item in content:
            yield from tensors_of(item, f"{name}.{key}")


def results_of(structure: Structure, name: str) -> Iterator[tuple[str, Structure]]:
    """Yield the dotted name and the structure of every result of a graph in the structure of an output."""
    ((kind, content), *_) = structure.items()
    if kind in ("tensor", "int"):
        yield name, structure
    elif isinstance(content, list):
        for key, item in content:
            yield from results_of(item, f"{name}.{key}")


def _checked_tensor(structure: Structure, value: Any, where: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise ArtifactError(f"argument {where}: expected a tensor, got {type(value).__name__}.")
    shape, dtype = structure["shape"], structure["dtype"]
    fits = len(shape) == value.dim() and all(want in (None, got) for want, got in zip(shape, value.shape, strict=True))
    if not fits or str(value.dtype) != f"torch.{dtype}":
        wanted = ["any" if size is None else size for size in shape]
        hint = "" if fits else " Dimensions become free with dynamic_dims when the target is captured."
        raise ArtifactError(
            f"argument {where}: expected {dtype} of shape {wanted}, got {str(value.dtype).removeprefix('torch.')} of "
            f"shape {list(value.shape)}.{hint}"
        )
    return value


@functools.cache
def named_tuple_of(names: tuple[str, ...]) -> Any:
    """Return a named tuple of these fields.

    Raises:
        ValueError: they cannot be the names of fields.
    """
    factory: Any = namedtuple
    made = factory("Output", names)
    made.__reduce__ = lambda self: (_filled, (names, tuple(self)))  # or pickle would look for a class of this name
    return made


def _filled(names: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    return named_tuple_of(names)(*values)
