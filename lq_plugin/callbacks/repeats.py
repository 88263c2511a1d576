"""Samples that a sampler hands out a second time, so that every process of a fit has equally many.

``DistributedSampler`` repeats its first samples at the end, where the number of processes does not divide their number.
A loop computes them twice; statistics count them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DistributedSampler

from lq_plugin.graph.graph import Graph


@dataclass(frozen=True)
class Share:
    """What a batch holds on this process: so many samples, of which the first ``fresh`` are no repetition."""

    samples: int
    fresh: int


def share(loaders: Any, batch_index: int, loader_index: int) -> Share | None:
    """Return what a batch of a loader holds; ``None`` where its sampler repeats nothing, or is not known to.

    Args:
        loaders: one loader, or any collection of them, which are gone through one after the other.
        batch_index: of the batch in its loader.
        loader_index: of the loader.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> second = DistributedSampler(range(5), num_replicas=2, rank=1, shuffle=False)
        >>> share(DataLoader(range(5), batch_size=2, sampler=second), 1, 0)
        Share(samples=1, fresh=0)
    """
    flat = tree_leaves(loaders)
    loader = flat[loader_index] if loader_index < len(flat) else None
    batches = getattr(loader, "batch_sampler", None)
    sampler, size = getattr(batches, "sampler", None), getattr(batches, "batch_size", None)
    if not isinstance(sampler, DistributedSampler) or not isinstance(size, int):
        return None
    # The k-th sample of a process is the one at rank + k * num_replicas of them all.
    own = -(-(len(sampler.dataset) - sampler.rank) // sampler.num_replicas)  # type: ignore[arg-type]
    samples, fresh = (max(0, min(count - batch_index * size, size)) for count in (sampler.num_samples, own))
    return None if fresh >= samples else Share(samples, fresh)


def without(tensors: Sequence[Tensor], graph: Graph, batch: Share | None) -> Sequence[Tensor] | None:
    """Return the inputs of a call without the samples that are repeated.

    Args:
        tensors: the flat inputs.
        graph: says which of their dimensions is the batch.
        batch: what the batch holds.

    Returns:
        The inputs; ``None`` where there is nothing left, or the call does not hold the batch as it is (so that nobody
        knows which samples these are), or the graph takes no smaller batch.
    """
    if batch is None:
        return tensors
    if not batch.fresh:
        return None
    left = []
    for tensor, dims, (_, structure) in zip(tensors, graph.batch_dims, graph.signature.tensors(), strict=True):
        if not dims:
            left.append(tensor)
        elif tensor.shape[dims[0]] == batch.samples and structure["shape"][dims[0]] is None:
            left.append(tensor.narrow(dims[0], 0, batch.fresh))
        else:
            return None
    return left
