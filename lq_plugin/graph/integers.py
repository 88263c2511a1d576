"""``len(x)``, ``int(x.shape[1] / 2)`` and ``int(lengths.max())`` in a forward: numbers that a graph can compute.

``len`` and ``int`` have to return plain numbers, so ``torch.export`` fixes sizes that pass through them, and refuses
numbers that come from data. While a forward is captured, these names therefore stand, in the modules of its code, for
functions that leave the number to the graph. A plain number that is made all the same fixes the sizes it comes from.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.sym_node import SymNode

from lq_plugin.graph.replacing import replaced_method

_FOREIGN = (
    "torch",
    "lightning",
    "pytorch_lightning",
    "torchmetrics",
    "numpy",
    "lq_plugin",
)  # not the user's code


def _length(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else len(value)


class _Meta(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, int)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, int)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], Tensor | torch.SymInt):
            return args[0].item() if isinstance(args[0], Tensor) else args[0]
        if len(args) == 1 and isinstance(args[0], torch.SymFloat):
            return math.trunc(args[0])  # by the graph
        return int(*args, **kwargs)


class _Int(int, metaclass=_Meta):
    """Stands for ``int``, in ``isinstance`` too."""


@contextmanager
def sizes_of_graph(target: nn.Module, numbers: bool = False) -> Iterator[None]:
    """Let the code of a module's packages keep sizes in the graph.

    Args:
        target: the module.
        numbers: keep what passes through ``int``, too. A forward may use ``int`` in ways that a class in its place
            does not serve, so this is for forwards that cannot be captured as they are.
    """
    names: dict[str, Any] = {"len": _length, "int": _Int} if numbers else {"len": _length}
    put = [(place, name) for place in _namespaces(target).values() for name in names if name not in place]
    for place, name in put:
        place[name] = names[name]
    try:
        yield
    finally:
        for place, name in put:
            place.pop(name, None)


@contextmanager
def ints_noted(target: nn.Module) -> Iterator[list[str]]:
    """Note where the code of a module's packages calls ``int`` with what a graph could compute.

    Args:
        target: the module.

    Yields:
        The lines of code that did so until now.
    """
    namespaces, noted = _namespaces(target).keys(), list[str]()

    def noting(as_int: Callable[[Any], int]) -> Callable[[Any], int]:
        def noting_as_int(self: Any) -> int:
            frame = sys._getframe(1)
            if id(frame.f_globals) in namespaces:
                noted.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
            return as_int(self)

        return noting_as_int

    with (
        replaced_method(Tensor, "__int__", noting(Tensor.__int__)),
        replaced_method(torch.SymInt, "__int__", noting(torch.SymInt.__int__)),
        replaced_method(torch.SymFloat, "__int__", noting(torch.SymFloat.__int__)),
    ):
        yield noted


@contextmanager
def sizes_of_numbers_fixed() -> Iterator[None]:
    """Fix the sizes that a plain number is computed from, so that no graph takes others and gives wrong results.

    For ``range(x.shape[1] // 2)`` and 16, torch.export 2.13 only notes that the half is 8, which graphs do not check.
    Where the dimension was asked to be dynamic, it then fails and says so.
    """

    def fixing(as_number: Callable[[SymNode, str, int], Any]) -> Callable[[SymNode, str, int], Any]:
        def fixing_as_number(self: SymNode, file: str, line: int) -> Any:
            number, sizes = as_number(self, file, line), self.shape_env
            if sizes is not None:
                for symbol in self.expr.free_symbols:
                    if not sizes.is_unbacked_symint(symbol):  # which comes from data
                        sizes.evaluate_expr(symbol)
            return number

        return fixing_as_number

    with (
        replaced_method(SymNode, "guard_int", fixing(SymNode.guard_int)),
        replaced_method(SymNode, "guard_float", fixing(SymNode.guard_float)),
    ):
        yield


def _namespaces(target: nn.Module) -> dict[int, dict[str, Any]]:
    """The namespaces of the code of a module's packages, by their ids: one module may have several names."""
    packages = {cls.__module__.partition(".")[0] for part in target.modules() for cls in type(part).__mro__}
    packages -= {*_FOREIGN, *sys.stdlib_module_names}
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in packages]
    dicts = (vars(module) for module in modules if isinstance(module, ModuleType))
    return {id(place): place for place in dicts}
