"""Which dimensions of a call's inputs are the batch."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lq_plugin.graph import nesting
from lq_plugin.graph.copying import detached_copy
from lq_plugin.graph.signature import Signature

BatchDims = tuple[tuple[int, ...], ...]  # of each input


def find_batch_dims(module: nn.Module, inputs: Signature, tensors: Sequence[Tensor]) -> BatchDims:
    """Return which dimensions of each input may be the batch; none of an input without samples.

    Args:
        module: what is called.
        inputs: how it is called.
        tensors: the inputs of a real call.
    """
    return _batch_dims_of_layers(module, inputs, tensors) or _batch_dims(tensors)


def doubled(tensors: Sequence[Tensor], doubled: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
    """Copies of tensors, twice as long in some dimensions of each."""
    return tuple(
        functools.reduce(lambda t, dim: torch.cat([t, t], dim), dims, tensor.detach().clone())
        for tensor, dims in zip(tensors, doubled, strict=True)
    )


def _batch_dims(tensors: Sequence[Tensor]) -> BatchDims:
    """Which dimensions of each input may be the batch: the first, or the second of recurrent states."""
    batch = nesting.batch_size(tensors)
    found = []
    for number, tensor in enumerate(tensors):
        candidates = (0, 1) if number and tensor.dim() == 3 else (0,)
        found.append(tuple(dim for dim in candidates if tensor.dim() and tensor.shape[dim] == batch))
    return tuple(found)


def _batch_dims_of_layers(module: nn.Module, inputs: Signature, tensors: Sequence[Tensor]) -> BatchDims | None:
    """Which dimensions of each input a recurrent layer with time-first sequences takes for the batch.

    ``None`` where there is no such layer, or where its batch does not come from the inputs.
    """
    if all(layer.batch_first for layer in module.modules() if isinstance(layer, nn.RNNBase)):
        return None
    size = _recurrent_batch(module, inputs, tensors)
    matching = [[dim for dim in range(min(tensor.dim(), 2)) if tensor.shape[dim] == size] for tensor in tensors]
    for chosen in ([dims[-1:] for dims in matching], [dims[:1] for dims in matching]):
        if size is not None and _recurrent_batch(module, inputs, doubled(tensors, chosen)) == 2 * size:
            return tuple(map(tuple, chosen))
    return None


def _recurrent_batch(module: nn.Module, inputs: Signature, tensors: Sequence[Tensor]) -> int | None:
    """How many samples the first recurrent layer has in a call; ``None`` where that is not known."""
    found: list[int] = []

    def observe(layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        given = args[0] if args else kwargs["input"]
        if isinstance(given, PackedSequence):
            found.append(int(given.batch_sizes[0]))
        elif given.dim() == 3:
            found.append(given.shape[0 if layer.batch_first else 1])

    probe = detached_copy(module)  # because a forward may change the module
    for layer in probe.modules():
        if isinstance(layer, nn.RNNBase):
            layer.register_forward_pre_hook(observe, with_kwargs=True)
    args, kwargs = inputs.call(doubled(tensors, [()] * len(tensors)))
    with contextlib.suppress(Exception):  # the model cannot be called with this size
        probe(*args, **kwargs)
    return found[0] if found else None
