"""Whether a call of a module left more behind than its output: a loss that ``validation_step`` reads, a counter."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from lq_plugin.graph.nesting import children
from lq_plugin.untrusted import MEBIBYTE

_MOST_OBJECTS = 300_000  # a module may hold its data set; 250 modules are 11,000 objects, seen in 30 ms
_MOST_BYTES = 256 * MEBIBYTE
_CLOSED = (type, ModuleType)
_UNKNOWN = (Iterator, random.Random, torch.Generator, numpy.random.Generator, numpy.random.RandomState)  # their next
_LIBRARIES = ("torch", "lightning", "pytorch_lightning", "lq_plugin")
_Trace = tuple[Any, Any, Tensor | None]  # an object, what tells whether it changed, and a copy of its content


@dataclass(frozen=True)
class State:
    """All that a call could change in place or replace; ``traces`` is ``None`` where that is too much to look at."""

    traces: tuple[_Trace, ...] | None

    def is_as(self, other: State) -> bool:
        """Whether nothing has changed between two states; ``False`` in doubt."""
        if self.traces is None or other.traces is None or len(self.traces) != len(other.traces):
            return False
        with suppress(Exception):
            return all(_same(*pair) for pair in zip(self.traces, other.traces, strict=True))
        return False


def state_of(module: nn.Module) -> State:
    """Return what a module reaches: attributes, items, contents of tensors, what hooks refer to, what it has logged.

    The random state counts, too. The objects are held, so that none made later has the same identity. Parameters are
    compared by their version alone: a write to their ``.data`` is not seen, nor is what a forward leaves in a global
    variable or in ``__slots__``.

    Args:
        module: with all that it holds.
    """
    traces, size = [*_random_state()], 0
    with suppress(Exception):  # a class whose content cannot be read
        for trace in _reached(module, set()):
            traces.append(trace)
            size += 0 if trace[2] is None else trace[2].nbytes
            if len(traces) > _MOST_OBJECTS or size > _MOST_BYTES:
                return State(None)
        return State(tuple(traces))
    return State(None)


def _random_state() -> Iterator[_Trace]:
    yield None, random.getstate(), torch.random.get_rng_state()
    _, keys, *place = numpy.random.get_state()
    yield None, place, torch.from_numpy(numpy.asarray(keys).copy())


def _reached(value: Any, seen: set[int]) -> Iterator[_Trace]:
    yield _trace(value)
    if id(value) not in seen:
        seen.add(id(value))
        for item in _items(value):
            yield from _reached(item, seen)


def _trace(value: Any) -> _Trace:
    if isinstance(value, _UNKNOWN):
        return value, object(), None  # equal to no other
    if isinstance(value, numpy.ndarray | bytearray):
        return value, bytes(value), None
    if not isinstance(value, Tensor) or nn.parameter.is_lazy(value):
        return value, None, None
    version = None if value.is_inference() else value._version
    content = None if isinstance(value, nn.Parameter) else value.detach().clone()
    return value, (version, value.shape, value.data_ptr() if value.layout == torch.strided else None), content


def _items(value: Any) -> list[Any]:
    """What an object holds. Of libraries' objects only modules are opened, and what a Trainer has logged."""
    if isinstance(value, (Tensor, *_CLOSED)):
        return []
    if isinstance(value, FunctionType | MethodType | partial):
        return _reached_by_function(value)
    opened = children(value)
    items = [] if opened is None else [part for pair in opened[1] for part in pair]
    if isinstance(value, Set | deque):
        items += value
    if not isinstance(value, nn.Module) and type(value).__module__.partition(".")[0] in _LIBRARIES:
        return [*items, getattr(value, "_results", None)]
    return [*items, *(part for pair in getattr(value, "__dict__", {}).items() for part in pair)]


def _reached_by_function(value: Any) -> list[Any]:
    """What a function can change, such as a hook that keeps features in the module that registered it."""
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if str(value.__module__).partition(".")[0] in _LIBRARIES:  # what stands for the forward, too
        return []
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *vars(value).values()]


def _same(before: _Trace, after: _Trace) -> bool:
    (old, old_mark, old_content), (new, new_mark, new_content) = before, after
    if old is not new or old_mark != new_mark:
        return False
    return old_content is new_content or (
        old_content is not None and new_content is not None and _equal(old_content, new_content)
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of the same shape hold the same numbers; not a number equals itself."""
    if torch.equal(one, other):
        return True
    return one.is_floating_point() and bool(((one == other) | (one.isnan() & other.isnan())).all())
