"""Whether a captured graph computes what its module computes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lq_plugin.errors import ArtifactError
from lq_plugin.graph.copying import detached_copy
from lq_plugin.graph.nesting import children
from lq_plugin.graph.signature import Signature
from lq_plugin.graph.structure import Structure, unflatten
from lq_plugin.noise import muted

_TOLERANCE = (
    1e-3  # of the largest value: float kernels differ with the batch size, a branch not taken differs by far more
)


def contradiction(graph: nn.Module, signature: Signature, module: nn.Module, tensors: Sequence[Tensor]) -> str | None:
    """Call a graph and the module that it was captured from, and say how the graph is wrong.

    Copies are called with the same random state, because a forward may change buffers and draw random numbers.

    Args:
        graph: over flat lists of tensors.
        signature: how it is called.
        module: what it was captured from.
        tensors: inputs of one call.

    Returns:
        What is wrong with the graph, as part of a sentence; ``None`` where it agrees with the module.
    """
    try:
        with muted(), torch.random.fork_rng(_devices()):
            args, kwargs = signature.call(_clones(tensors))
            wanted = detached_copy(module)(*args, **kwargs)
    except Exception:  # it has changed since it was called, so nothing can be said
        return None
    try:
        with muted(), torch.random.fork_rng(_devices()):
            args, kwargs = signature.call(_clones(tensors))
            given = copy.deepcopy(graph)(*signature.flatten(args, kwargs))
    except ArtifactError:  # a dimension was fixed
        return "its forward treats a size as a constant"
    except Exception as error:
        return f"its forward does not run with batches of both one and two ({type(error).__name__})"
    if not _agree(signature.output, given, wanted):
        return "its forward computes something else for larger batches"
    return None


def _clones(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors for one call, which a forward may change."""
    return [tensor.detach().clone() for tensor in tensors]


def _devices() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


def _agree(structure: Structure, results: Sequence[Any], wanted: Any) -> bool:
    """Whether the results of a graph, in the places that an output's structure gives them, are a module's output."""
    ((kind, content), *_) = structure.items()
    if kind == "dropped":  # the graph cannot return it
        return not isinstance(wanted, Tensor)
    if not isinstance(content, list):
        return _alike(unflatten(structure, results), wanted)
    opened = children(wanted)
    if opened is None or [key for key, _ in opened[1]] != [key for key, _ in content]:
        return False
    return all(_agree(item, results, own) for (_, item), (_, own) in zip(content, opened[1], strict=True))


def _alike(given: Any, wanted: Any) -> bool:
    if not isinstance(given, Tensor) or not isinstance(wanted, Tensor):
        return type(given) is type(wanted) and bool(given == wanted or given != given)  # nan is unlike itself
    if given.shape != wanted.shape or given.dtype != wanted.dtype:
        return False
    left, right = given.double(), wanted.double()
    scale = right[right.isfinite()].abs().max().item() if right.isfinite().any() else 0.0
    return torch.allclose(left, right, rtol=0, atol=_TOLERANCE * scale, equal_nan=True)
