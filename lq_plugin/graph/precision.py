"""Models with weights of half or double precision: a float32 copy is quantized.

The runtimes' INT8 kernels take and give float32. A copy of such a model is what is captured, observed, exported and
evaluated, so its figures are those of the float32 model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lq_plugin.graph import nesting
from lq_plugin.graph.copying import detached_copy
from lq_plugin.progress import note_once

OTHER_PRECISIONS = ("16-true", "bf16-true", "64-true")  # of a Trainer, where batches have it too
_OTHERS = (torch.float16, torch.bfloat16, torch.float64)


def is_other(module: nn.Module) -> bool:
    """Whether a module has weights of half precision, or all of double precision.

    Single double layers in a float32 model are there on purpose, and the forward casts for them.
    """
    dtypes = _dtypes(module)
    return bool(dtypes & {torch.float16, torch.bfloat16}) or dtypes == {torch.float64}


def _dtypes(module: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}


def float32_copy(module: nn.Module) -> nn.Module:
    """Return a module whose weights are float32: itself, or a copy if it has others, which casts what it is given."""
    if not is_other(module):
        return module
    note_once(casting(module))
    copied = detached_copy(module).float()
    cast_inputs(copied)
    return copied


def casting(module: nn.Module) -> str:
    """Say of a module with weights of another precision that a float32 copy is quantized."""
    others = sorted(str(dtype).removeprefix("torch.") for dtype in _dtypes(module) & {*_OTHERS})
    return f"{type(module).__name__} has weights in {', '.join(others)}; a float32 copy of it is quantized"


def cast_inputs(module: nn.Module) -> None:
    """Let a module cast what it is given to float32: the code around it may make it half."""
    module.register_forward_pre_hook(_cast_call, with_kwargs=True)


def _cast_call(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return in_float32((args, kwargs))


def in_float32(value: Any) -> Any:
    """Return a value with its tensors of half or double precision as float32."""
    return nesting.mapped(_cast, value)


def _cast(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _OTHERS else tensor
