"""What an algorithm has learnt about a candidate, as tensors and builtins that an interrupted run reads back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch

from lq_plugin.candidate import DynamicCandidate, StaticCandidate
from lq_plugin.graph.change import changed, difference
from lq_plugin.graph.copying import detached_copy
from lq_plugin.identity import state_tensors, weights_digest

C = TypeVar("C", StaticCandidate, DynamicCandidate)
_LEARNT = ("new_statistics", "weight_scales", "learnt_ranges")


def written(before: C, after: C) -> dict[str, Any]:
    """Return what makes one candidate of another, as tensors and builtins.

    Args:
        before: what an algorithm was given.
        after: what it returned; it may be the same one.

    Raises:
        ValueError: more was changed than can be written down.
    """
    if after is before:
        return {}
    if isinstance(before, StaticCandidate):
        assert isinstance(after, StaticCandidate)
        learnt = {name: dict(getattr(after, name)) for name in _LEARNT}
        return {"graph": difference(before.graph, after.graph), **learnt}
    assert isinstance(after, DynamicCandidate)
    known = state_tensors(before.module)
    weights = {
        name: tensor for name, tensor in state_tensors(after.module).items() if not torch.equal(tensor, known[name])
    }
    return {"weights": weights, "digest": weights_digest(after.module)}


def read(before: C, content: Mapping[str, Any]) -> C:
    """Return a candidate that has learnt what :func:`written` wrote.

    Raises:
        ValueError: this gives another one than it did before.
    """
    if not content:
        return before
    if isinstance(before, StaticCandidate):
        learnt = {name: content[name] for name in _LEARNT}
        return replace(before, graph=changed(before.graph, content["graph"]), **learnt)
    module = detached_copy(before.module)
    tensors = state_tensors(module)
    with torch.no_grad():
        for name, tensor in content["weights"].items():
            tensors[name].copy_(tensor)
    if weights_digest(module) != content["digest"]:
        raise ValueError("it gives other weights")
    return replace(before, module=module, float_graph=before.reference)
