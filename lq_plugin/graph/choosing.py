"""What ``target="auto"`` takes of a model: all of it, or the largest part that can be captured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lq_plugin.errors import CaptureError, LqError
from lq_plugin.graph.capture import Call, capture
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.parts import Part, parts, size
from lq_plugin.graph.precision import float32_copy
from lq_plugin.targets import Forward, replaced_forward

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Choice:
    """What ``target="auto"`` takes.

    Args:
        target: path of the submodule; ``None`` for the whole module.
        share: of the whole module's parameters.
        reason: why it is not the whole.
    """

    target: str | None = None
    share: float = 1.0
    reason: str = ""


@dataclass(frozen=True)
class Taken:
    """What ``target="auto"`` takes, with what was found on the way.

    Args:
        choice: what is taken.
        call: the first call of it.
        graph: of this call; ``None`` where it cannot be captured.
        module: what the graph was captured from: the module that is taken, or a copy.
    """

    choice: Choice
    call: Call
    graph: Graph | None = None
    module: nn.Module | None = None


def choose(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], else_whole: bool = False) -> Taken:
    """Take the whole module where it can be captured, otherwise its largest submodule that can be.

    Args:
        model: the module.
        args: positional arguments of one real call.
        kwargs: keyword arguments of that call.
        else_whole: take the whole where nothing of it can be captured either.

    Raises:
        CaptureError: nothing of it can be captured.
    """
    whole = float32_copy(model)
    try:
        return Taken(Choice(), (args, kwargs), capture(whole, args, kwargs), whole)
    except CaptureError as error:
        part = next(parts(model, args, kwargs), None)
        if part is not None:
            return chosen(part, error)
        if not else_whole:
            raise
    return Taken(Choice(), (args, kwargs))


def chosen(part: Part, error: Exception) -> Taken:
    """Take a part, with the reason in one line."""
    return Taken(Choice(part.name, part.share, str(error).partition("\n")[0]), part.call, part.graph, part.module)


def choose_among(model: nn.Module, calls: Iterable[tuple[str, Call]], else_whole: bool = False) -> Taken:
    """Choose for a model whose own forward is never called.

    Args:
        model: the module.
        calls: of its :func:`outermost` modules, by their names; those with most parameters first.
        else_whole: take the first of them where nothing of it can be captured.

    Raises:
        LqError: nothing of it can be captured, or there is no call.
    """
    failure: LqError = CaptureError("target: no module of the model is called.")
    for name, call in calls:
        module = model.get_submodule(name)
        try:
            taken = choose(module, *call, else_whole)
        except LqError as error:
            failure = error
        else:
            choice = taken.choice
            path = name if choice.target is None else f"{name}.{choice.target}"
            reason = choice.reason or f"the forward of {type(model).__name__} is never called"
            share = choice.share * size(module) / size(model)
            return replace(taken, choice=Choice(path, share, reason))
    raise failure


def outermost(model: nn.Module) -> list[str]:
    """Return the modules that a step can call in place of the model's own forward, the largest first."""
    return sorted(_outermost(model, ""), key=lambda name: -size(model.get_submodule(name)))


def _outermost(model: nn.Module, prefix: str) -> Iterator[str]:
    for name, child in model.named_children():
        if isinstance(child, _CONTAINERS):
            yield from _outermost(child, f"{prefix}{name}.")
        elif size(child) and not isinstance(child, torch.jit.ScriptModule):
            yield f"{prefix}{name}"


class OutermostCalls:
    """Keeps the first call of each :func:`outermost` module, until it is closed.

    Args:
        model: whose modules are shadowed meanwhile.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = outermost(model)
        self._calls: dict[str, Call] = {}
        self._shadows = ExitStack()
        for name in self._names:
            self._shadows.enter_context(replaced_forward(model.get_submodule(name), self._kept(name)))

    def _kept(self, name: str) -> Any:
        def kept(original: Forward, *args: Any, **kwargs: Any) -> Any:
            if not torch.compiler.is_compiling():  # a step that is compiled stays one graph
                self._calls.setdefault(name, (args, kwargs))
            return original(*args, **kwargs)

        return kept

    def close(self) -> Sequence[tuple[str, Call]]:
        """Give the modules their forwards back, and return the calls, those of the largest modules first."""
        self._shadows.close()
        return [(name, self._calls[name]) for name in self._names if name in self._calls]
