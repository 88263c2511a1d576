"""Nested values that hold tensors: their leaves, and the same values with other tensors or other classes.

torch's own pytree opens fewer containers: dataclasses and subclasses of list and dict, such as what the tokenizers of
Hugging Face return, are leaves to it, unless their classes are registered in the whole process.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Children = list[tuple[Any, Any]]
NAMED = ("record", "named_tuple")  # kinds whose keys are names of fields


class Record(OrderedDict[str, Any]):
    """Fields of a dataclass whose class is not available, as attributes and as keys."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"no field {name!r}; there are {', '.join(self)}")


def children(value: Any) -> tuple[str, Children] | None:
    """Flatten one level of a value.

    Args:
        value: anything.

    Returns:
        Its kind (``"record"`` for dataclasses, ``"named_tuple"``, ``"tuple"``, ``"list"``, ``"dict"`` or
        ``"ordered_dict"``) and its keys with their values; ``None`` for anything else.
    """
    if isinstance(value, PackedSequence | type):
        return None
    if isinstance(value, Record):
        return "record", list(value.items())
    if dataclasses.is_dataclass(value):
        if isinstance(value, Mapping):  # the outputs of Hugging Face's models: only what was computed is a key
            return "record", list(value.items())
        return "record", [(name, getattr(value, name)) for name in _fields(value)]
    if isinstance(value, Mapping):
        return "ordered_dict" if isinstance(value, OrderedDict) else "dict", list(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return "named_tuple", list(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple):
        return "list" if isinstance(value, list) else "tuple", list(enumerate(value))
    return None


def leaves(value: Any) -> Iterator[Any]:
    """Yield what a value holds, containers opened."""
    opened = children(value)
    if opened is None:
        yield value
    else:
        for _, item in opened[1]:
            yield from leaves(item)


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors that a value holds, in order."""
    return (leaf for leaf in leaves(value) if isinstance(leaf, Tensor))


def batch_size(value: Any) -> int:
    """Return the number of samples in a value: the first dimension of its first tensor that has one, else 1."""
    return next((tensor.shape[0] for tensor in tensors(value) if tensor.dim()), 1)


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return a value with each of its tensors replaced, in the same containers, those of packed sequences included."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, PackedSequence):
        made: Any = PackedSequence
        return made(*(None if field is None else function(field) for field in value))
    opened = children(value)
    if opened is None:
        return value
    return _unflatten(value, opened[0], [(key, mapped(function, item)) for key, item in opened[1]])


def retyped(value: Any, like: Any) -> Any:
    """Give the dataclasses and named tuples of a value back their classes, which no artifact holds.

    Args:
        value: with a :class:`Record` or a plain named tuple in their places.
        like: a value of the same structure with the classes.
    """
    wanted, given = children(like), children(value)
    if wanted is None or given is None or (wanted[0] in NAMED and type(value) is type(like)):
        return value
    pairs = zip(given[1], wanted[1], strict=True)
    return _unflatten(like, wanted[0], [(key, retyped(item, example)) for (key, item), (_, example) in pairs])


def _fields(value: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]


def _unflatten(like: Any, kind: str, items: Children) -> Any:
    if kind == "record" and not isinstance(like, Mapping):
        return _with_fields(like, items)
    if kind in NAMED:
        return type(like)(**dict(items))
    if kind in ("dict", "ordered_dict"):
        return dict(items) if kind == "dict" else OrderedDict(items)
    values = [item for _, item in items]
    return values if kind == "list" else tuple(values)


def _with_fields(like: Any, items: Children) -> Any:
    """A copy as pickle makes it: the constructor may take something else (``InitVar``) or change what it is given.

    Attributes that are no fields are the same objects.
    """
    made = copy.copy(like)
    for name, item in items:
        object.__setattr__(made, name, item)  # of frozen classes, too
    return made
