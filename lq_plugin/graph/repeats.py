"""Samples that a distributed sampler repeats, so that every process of a fit has equally many.

``DistributedSampler`` repeats its first samples at the end, where the number of processes does not divide their number.
A loop computes them twice; statistics count them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DistributedSampler

from lq_plugin.graph.graph import Graph


@dataclass(frozen=True)
class Repeats:
    """A batch of so many samples on this process, of which only the first ``unique`` are not repeated ones."""

    samples: int
    unique: int


def repeats_in(loaders: Any, batch_index: int, loader_index: int) -> Repeats | None:
    """Return what a batch of a loader repeats; ``None`` where its sampler repeats nothing, or is not known to.

    Args:
        loaders: one loader, or any collection of them, which are gone through one after the other.
        batch_index: of the batch in its loader.
        loader_index: of the loader.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> second = DistributedSampler(range(5), num_replicas=2, rank=1, shuffle=False)
        >>> repeats_in(DataLoader(range(5), batch_size=2, sampler=second), 1, 0)
        Repeats(samples=1, unique=0)
    """
    flat = tree_leaves(loaders)
    loader = flat[loader_index] if loader_index < len(flat) else None
    batches = getattr(loader, "batch_sampler", None)
    sampler, size = getattr(batches, "sampler", None), getattr(batches, "batch_size", None)
    if not isinstance(sampler, DistributedSampler) or not isinstance(size, int):
        return None
    # The k-th sample of a process is the one at rank + k * num_replicas of them all.
    own = -(-(len(sampler.dataset) - sampler.rank) // sampler.num_replicas)  # type: ignore[arg-type]
    samples, unique = (max(0, min(count - batch_index * size, size)) for count in (sampler.num_samples, own))
    return None if unique >= samples else Repeats(samples, unique)


def without_repeats(tensors: Sequence[Tensor], graph: Graph, repeats: Repeats | None) -> Sequence[Tensor] | None:
    """Return the inputs of a call without the samples that are repeated.

    Args:
        tensors: the flat inputs.
        graph: says which of their dimensions is the batch.
        repeats: what the batch of the call repeats.

    Returns:
        The inputs. ``None`` if no sample is left, if the graph takes no smaller batch, or if the call does not hold the
        batch as it is, so that its repeated samples cannot be told apart.
    """
    if repeats is None:
        return tensors
    if not repeats.unique:
        return None
    if not any(graph.batch_dims):  # no input has samples
        return tensors
    if graph.samples(tensors) != repeats.samples or not graph.is_divisible(tensors):
        return None
    return graph.selected(tensors, torch.arange(repeats.unique))
