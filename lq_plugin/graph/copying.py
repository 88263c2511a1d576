"""Copies of a user's module that can be changed without the original noticing."""

from __future__ import annotations

import copy
import re
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lq_plugin.errors import CaptureError


def detached_copy(module: nn.Module, share_tensors: bool = False) -> nn.Module:
    """Copy a module, without its trainer and without ``torch.compile``, in eval mode.

    Args:
        module: any module; a LightningModule is copied without its reference to the trainer.
        share_tensors: keep the very same parameters and buffers, so that the copy costs no memory.

    Raises:
        CaptureError: an attribute of the module cannot be copied.
    """
    module = getattr(module, "_orig_mod", module)
    memo: dict[int, object] = {}
    for part in module.modules():
        for owner in ("_trainer", "_fabric"):
            if part.__dict__.get(owner) is not None:
                memo[id(part.__dict__[owner])] = None
    if share_tensors:
        memo |= {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    with torch.inference_mode(False), torch.no_grad():
        try:
            duplicate = copy.deepcopy(module, memo)
        except Exception as error:
            raise CaptureError(
                f"module: {type(module).__name__} cannot be copied ({error}). Keep what cannot be copied, such as open "
                "files, locks and cached activations, out of the module's attributes; weights that a hook computes are "
                "copied where torch.nn.utils.parametrizations computes them."
            ) from error
    for part in duplicate.modules():
        for name, attribute in part.__dict__.items():
            if isinstance(attribute, types.FunctionType):
                part.__dict__[name] = _closed_over_copies(attribute, memo)
    return _without_compile(duplicate).eval()


def module_names(module: nn.Module) -> list[str]:
    """Dotted names of a module's submodules as its copies have them: without ``torch.compile``."""
    names = (re.sub(r"(^|\.)_orig_mod(?=\.|$)", "", name) for name, _ in module.named_modules())
    return list(dict.fromkeys(name.removeprefix(".") for name in names if name))


def _closed_over_copies(function: types.FunctionType, memo: Mapping[int, object]) -> types.FunctionType:
    """A function of a copy, such as a lambda that calls ``self.layer``, where deepcopy keeps that of the original."""
    cells = []
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # it is empty
            content = None
        copied = isinstance(content, nn.Module) and memo.get(id(content), content) is not content
        cells.append(types.CellType(memo[id(content)]) if copied else cell)
    if all(cell is kept for cell, kept in zip(cells, function.__closure__ or (), strict=True)):
        return function
    made = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells)
    )
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    return made


def _without_compile(module: nn.Module) -> nn.Module:
    for part in list(module.modules()):
        part.__dict__["_compiled_call_impl"] = None
        shadow: Any = part.__dict__.get("forward")
        while hasattr(shadow, "lq_shadowed"):  # an observer listens to the original at this moment
            shadow = shadow.lq_shadowed
            part.__dict__["forward"] = _rebound(shadow, part)
        for name, attribute in list(part.__dict__.items()):
            if hasattr(attribute, "_torchdynamo_orig_callable") or (name == "forward" and attribute is None):
                del part.__dict__[name]
        for cache in ("_metric_attributes", "_compiler_ctx"):
            if cache in part.__dict__:
                part.__dict__[cache] = None
        for name, child in list(part.named_children()):
            part._modules[name] = getattr(child, "_orig_mod", child)
    return module


def _rebound(attribute: object, owner: nn.Module) -> object:
    """A method of the original as a method of its copy."""
    return types.MethodType(attribute.__func__, owner) if isinstance(attribute, types.MethodType) else attribute
