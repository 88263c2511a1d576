"""Copies of a user's module that can be changed without affecting the original."""

from __future__ import annotations

import copy
import functools
import re
import types
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lq_plugin.errors import CaptureError
from lq_plugin.graph.keeping import without_copies
from lq_plugin.targets import restore_forward


def detached_copy(module: nn.Module, share_tensors: bool = False) -> nn.Module:
    """Copy a module, without its trainer and without ``torch.compile``, in eval mode.

    Args:
        module: any module; it is copied without its references to a Trainer. Callbacks that it keeps are copied too,
            except those that cannot be.
        share_tensors: keep the very same parameters and buffers, so that the copy costs no memory.

    Raises:
        CaptureError: an attribute of the module cannot be copied.
    """
    module = getattr(module, "_orig_mod", module)
    memo: dict[int, Any] = {}
    for part in module.modules():
        for owner in ("_trainer", "_fabric"):
            if part.__dict__.get(owner) is not None:
                memo[id(part.__dict__[owner])] = None
    if share_tensors:
        memo |= {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    with torch.inference_mode(False), torch.no_grad():
        memo |= without_copies(module, memo)
        try:
            duplicate = copy.deepcopy(module, memo)
        except Exception as error:
            raise CaptureError(
                f"module: {type(module).__name__} cannot be copied ({error}). Keep what cannot be copied, such as open "
                "files, locks and cached activations, out of the module's attributes. For weights that a hook "
                "computes, use torch.nn.utils.parametrizations."
            ) from error
    for part in duplicate.modules():
        restore_forward(part)
        _exchange(part.__dict__, memo)
    return _without_compile(duplicate).eval()


def cpu_copy(module: nn.Module) -> nn.Module:
    """Copy a module as :func:`detached_copy` does, with all that it holds on the CPU.

    ``Module.cpu`` moves Parameters and buffers. A mask or a table that a forward keeps as an attribute would stay on
    the GPU, and the copy could not be called.

    Raises:
        CaptureError: an attribute of the module cannot be copied.
    """
    with _CopiesOnCpu():
        return detached_copy(module).cpu()


def on_cpu(module: nn.Module) -> nn.Module:
    """Return a module on the CPU: itself, or a copy if it has tensors elsewhere."""
    elsewhere = any(tensor.device.type != "cpu" for tensor in (*module.parameters(), *module.buffers()))
    return cpu_copy(module) if elsewhere else module


class _CopiesOnCpu(TorchFunctionMode):
    """Lets ``copy.deepcopy`` copy tensors to the CPU; Parameters are asked for elsewhere."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result.cpu() if func is Tensor.__deepcopy__ else result


def module_names(module: nn.Module) -> list[str]:
    """Dotted names of a module's submodules as its copies have them: without ``torch.compile``."""
    names = (re.sub(r"(^|\.)_orig_mod(?=\.|$)", "", name) for name, _ in module.named_modules())
    return list(dict.fromkeys(name.removeprefix(".") for name in names if name))


def _exchange(container: Any, memo: dict[int, Any]) -> None:
    """Replace in a copied list or dict, and in those nested in it, what deepcopy did not copy.

    These are functions: hooks, and lambdas that call ``self.layer``.
    """
    for key, value in list(container.items() if isinstance(container, dict) else enumerate(container)):
        if type(value) in (list, dict, OrderedDict):
            if memo.get(id(value)) is not value:
                memo[id(value)] = value  # seen
                _exchange(value, memo)
        else:
            moved = tuple(_moved(item, memo) for item in value) if type(value) is tuple else _moved(value, memo)
            if moved is not value:
                container[key] = moved


def _moved(value: Any, memo: dict[int, Any]) -> Any:
    """What the copy has where the original has this value.

    Args:
        value: anything.
        memo: deepcopy's: copies by the id of the original.
    """
    if isinstance(value, types.FunctionType):
        compiled = getattr(value, "_torchdynamo_orig_callable", None)
        return _moved_function(value, memo) if compiled is None else _moved(compiled, memo)
    if not _reaches(value, memo, set()):
        return value
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, _moved(value.__self__, memo))
    if isinstance(value, functools.partial):
        arguments = [_moved(item, memo) for item in value.args]
        return functools.partial(
            _moved(value.func, memo), *arguments, **{name: _moved(item, memo) for name, item in value.keywords.items()}
        )
    return memo[id(value)]


def _moved_function(function: types.FunctionType, memo: dict[int, Any]) -> Any:
    """A function of the copy, for one that closes over the original or has it as a default."""
    if id(function) in memo or not _reaches(function, memo, set()):
        return memo.get(id(function), function)
    kept = function.__closure__ or ()
    cells = tuple(memo.setdefault(id(cell), types.CellType()) for cell in kept)  # functions may share them
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
    memo[id(function)] = made  # before it is complete, as it may close over itself
    for cell, new in zip(kept, cells, strict=True):
        with suppress(ValueError):  # it is empty
            new.cell_contents = _moved(cell.cell_contents, memo)
    made.__defaults__ = function.__defaults__ and tuple(_moved(item, memo) for item in function.__defaults__)
    made.__kwdefaults__ = {name: _moved(item, memo) for name, item in (function.__kwdefaults__ or {}).items()}
    made.__dict__.update(function.__dict__)
    made.__qualname__ = function.__qualname__
    return made


def _reaches(value: Any, memo: Mapping[int, Any], seen: set[int]) -> bool:
    """Whether a value is something that was copied, or a function that has such a thing within reach."""
    if id(value) in seen:
        return False
    seen.add(id(value))
    if isinstance(value, types.FunctionType):
        held = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # it is empty
                held.append(cell.cell_contents)
    elif isinstance(value, types.MethodType):
        held = [value.__self__]
    elif isinstance(value, functools.partial):
        held = [value.func, *value.args, *value.keywords.values()]
    else:
        copied = memo.get(id(value))  # None for a trainer, which a copy does without
        return copied is not None and copied is not value
    return any(_reaches(item, memo, seen) for item in held)


def _without_compile(module: nn.Module) -> nn.Module:
    for part in list(module.modules()):
        part.__dict__["_compiled_call_impl"] = None
        for name, attribute in list(part.__dict__.items()):
            # A compiled method of the class, say self.forward = torch.compile(self.forward), is that method again.
            if isinstance(attribute, types.MethodType) and attribute == _method_of_class(part, name):
                del part.__dict__[name]
        for cache in ("_metric_attributes", "_compiler_ctx"):
            if cache in part.__dict__:
                part.__dict__[cache] = None
        for name, child in list(part.named_children()):
            part._modules[name] = getattr(child, "_orig_mod", child)
    return module


def _method_of_class(module: nn.Module, name: str) -> object:
    function = getattr(type(module), name, None)
    return types.MethodType(function, module) if isinstance(function, types.FunctionType) else None
