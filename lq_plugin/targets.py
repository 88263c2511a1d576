"""The target, the module that is quantized: found by its path, and its forward replaced for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lq_plugin.errors import unknown_name

Forward = Callable[..., Any]


def resolve_target(model: nn.Module, target: str | None) -> nn.Module:
    """Return the module that a dotted path names; the model itself for ``None``.

    Raises:
        ConfigError: there is no such submodule; the message names the nearest ones.
    """
    if target is None:
        return model
    names = [name for name, _ in model.named_modules() if name]
    if target not in names:
        raise unknown_name("target", target, names)
    return model.get_submodule(target)


def forward_of(module: nn.Module) -> Forward:
    """Return the forward of a module, without ``torch.compile``, and where it is shadowed the original one."""
    forward: Any = getattr(module, "_orig_mod", module).forward
    while hasattr(forward, "lq_original"):
        forward = forward.lq_original
    return forward  # type: ignore[no-any-return]


def never_called(model: nn.Module, target: str | None, where: str, option_of: str) -> str:
    """Return the message for a target whose forward no step calls: it names what could be chosen instead.

    Args:
        model: the LightningModule.
        target: the path that was chosen.
        where: the steps that do not call it.
        option_of: class of the callback whose ``target`` option this is.
    """
    children = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    return (
        f"target: the forward of {target or type(model).__name__!r} is never called in {where}, so its inputs "
        f"are unknown. Choose a module that {where} calls, for example one of {children}: {option_of}(target='…')."
    )


@contextmanager
def replaced_forward(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Shadow the forward of one module instance, so that every way of calling it goes through ``forward``.

    Args:
        module: whose forward is shadowed until the block ends. Several blocks may end in any order.
        forward: called with the original forward first, then the call's arguments.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(shadow.lq_original, *args, **kwargs)

    shadow: Any = call
    shadow.lq_original = module.forward
    shadow.lq_shadowed = module.__dict__.get("forward")  # apart: a copied module has a copy of this function
    module.__dict__["forward"] = shadow
    try:
        yield
    finally:
        _remove(module, shadow)


def _remove(module: nn.Module, shadow: Any) -> None:
    above: Any = module.__dict__["forward"]
    if above is shadow:
        _put_back(module, shadow.lq_shadowed)
        return
    while above.lq_shadowed is not shadow:
        above = above.lq_shadowed
    above.lq_shadowed, above.lq_original = shadow.lq_shadowed, shadow.lq_original


def restore_forward(module: nn.Module) -> None:
    """Give a copy of a module its own forward, where the original was shadowed when it was copied."""
    forward: Any = module.__dict__.get("forward")
    while hasattr(forward, "lq_shadowed"):
        forward = forward.lq_shadowed
        _put_back(module, forward)


def _put_back(module: nn.Module, forward: Any) -> None:
    """Set the forward of an instance; ``None`` stands for that of its class."""
    if forward is None:
        module.__dict__.pop("forward", None)
    else:
        module.__dict__["forward"] = forward
