"""Activations of many samples: in memory up to a limit, in mapped temporary files beyond it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

LIMIT = 2**30  # bytes of activations that stay in memory


def in_memory(kept: Iterable[Sequence[Any]]) -> int:
    """Return how many bytes tensors take in memory. Views count once, mapped files do not count.

    Args:
        kept: results of operators, each for several calls.
    """
    storages = (value.untyped_storage() for values in kept for value in values if isinstance(value, Tensor))
    return sum({each.data_ptr(): each.nbytes() for each in storages if each.filename is None}.values())


def on_disk(results: Sequence[Any]) -> list[Any]:
    """Return results of an operator whose tensors lie in temporary files, which vanish with them.

    Raises:
        OSError: the disk is full.
    """
    return [_mapped(result) if isinstance(result, Tensor) and result.numel() else result for result in results]


def _mapped(tensor: Tensor) -> Tensor:
    with tempfile.NamedTemporaryFile(prefix="lq_plugin-") as file:
        if hasattr(os, "posix_fallocate"):  # a mapped file without its blocks would end the process on a full disk
            os.posix_fallocate(file.fileno(), 0, tensor.nbytes)
        made = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    return made.view(tensor.shape).copy_(tensor)
