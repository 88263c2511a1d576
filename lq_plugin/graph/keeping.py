"""What a module may keep of a running fit: its Trainer and its callbacks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from types import MethodType
from typing import Any

from torch import Tensor, nn

_PACKAGES = ("lightning.pytorch.", "pytorch_lightning.")  # neither is imported here
_PLAIN = (type(None), bool, int, float, str, Tensor, nn.Parameter)


def without_copies(module: nn.Module, memo: Mapping[int, Any]) -> dict[int, Any]:
    """Return stand-ins for the parts of a running fit that a copy of a module leaves out, by the originals' ids.

    A copy does without a Trainer, because one reaches data loaders, processes and open files. A callback that cannot
    be copied, such as a progress bar, is the same one in the copy.

    Args:
        module: what is to be copied.
        memo: what else deepcopy will be given.
    """
    kept = list(_kept(module))
    instead: dict[int, Any] = {id(item): None for item in kept if _is_a(item, "Trainer")}
    # A callback may hold the module itself, which must not be copied again just to try this.
    known = {**memo, **instead, **{id(part): part for part in module.modules()}}
    for callback in kept:
        if _is_a(callback, "Callback"):
            try:
                copy.deepcopy(callback, dict(known))
            except Exception:
                instead[id(callback)] = callback
    return instead


def _kept(module: nn.Module) -> Iterator[Any]:
    """Yield the Trainers and callbacks that a module holds, in its attributes, in containers and in one another."""
    seen: set[int] = set()
    waiting: list[Any] = [module]
    while waiting:
        item = waiting.pop()
        if type(item) in _PLAIN or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple | set):
            waiting.extend(item)
        elif isinstance(item, nn.Module):
            waiting.extend(vars(part) for part in item.modules())
        elif isinstance(item, MethodType):  # self.log, which every callback is given of the LightningModule
            waiting.append(item.__self__)
        elif _is_a(item, "Trainer"):
            yield item
        elif _is_a(item, "Callback"):
            yield item
            waiting.append(vars(item))


def _is_a(item: Any, name: str) -> bool:
    """Whether something is an instance of a class of this name of Lightning's, in either of its namespaces."""
    return any(kind.__name__ == name and kind.__module__.startswith(_PACKAGES) for kind in type(item).__mro__)
