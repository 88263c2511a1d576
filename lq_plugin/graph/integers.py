"""``int(lengths.max())`` in a forward: a number that comes from data, and which a graph can compute.

``int`` has to return a plain number, which does not exist while a forward is captured. In the modules of its code the
name ``int`` therefore stands, meanwhile, for a class that leaves such a number to the graph.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_FOREIGN = ("torch", "lightning", "pytorch_lightning", "torchmetrics", "numpy", "builtins")  # they meet no such numbers


class _Meta(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, int)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, int)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], Tensor | torch.SymInt):
            return args[0].item() if isinstance(args[0], Tensor) else args[0]
        return int(*args, **kwargs)


class _Int(int, metaclass=_Meta):
    """Stands for ``int``."""


@contextmanager
def integers_of_graph(target: nn.Module) -> Iterator[None]:
    """Let the code of a module's packages keep numbers that come from data in the graph."""
    packages = {cls.__module__.partition(".")[0] for part in target.modules() for cls in type(part).__mro__}
    packages -= {*_FOREIGN}
    places = [
        vars(module)
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in packages and "int" not in vars(module)
    ]
    for place in places:
        place["int"] = _Int
    try:
        yield
    finally:
        for place in places:
            del place["int"]
