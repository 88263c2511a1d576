"""Copies of a user's module that can be changed without the original noticing."""

from __future__ import annotations

import copy
import types
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
                "files, locks and cached activations, out of the module's attributes."
            ) from error
    return _without_compile(duplicate).eval()


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
