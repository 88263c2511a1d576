"""The one way to a graph: a target's forward is captured and folded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lq_plugin.graph.binding import follow
from lq_plugin.graph.capture import Dims, capture
from lq_plugin.graph.example import Example, placed_like
from lq_plugin.graph.folding import fold
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.precision import float32_copy
from lq_plugin.identity import state_tensors
from lq_plugin.targets import forward_of


def prepare(
    target: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_dims: Dims | None = None,
    varying: Dims | None = None,
) -> Graph:
    """Capture the forward of ``target``, and fold it on a copy of its weights.

    Args:
        target: the module whose forward is captured; taken in eval mode and without ``torch.compile``. It is not
            changed.
        args: positional arguments of one real call.
        kwargs: keyword arguments of that call.
        dynamic_dims: dynamic dimensions besides the batch, by the name of the input: ``{"x": [2, 3]}``.
        varying: dimensions in which calls were seen to differ; those that are not the batch become dynamic too.

    Raises:
        CaptureError: the forward cannot be captured.
        ConfigError: ``dynamic_dims`` names an input or a dimension that does not exist.

    Example:
        >>> import torch
        >>> layer, x = nn.Linear(4, 2), torch.ones(3, 4)
        >>> graph = prepare(layer, [x])
        >>> _ = layer.weight.data.mul_(2)
        >>> prepare(layer, [x]).structure == graph.structure, prepare(layer, [x]).digest == graph.digest
        (True, False)
    """
    return fold(capture(target, args, kwargs, dynamic_dims, varying))


class TrackedTarget:
    """Prepares one target again and again while its weights change, and captures it only when it must.

    The captured graph shares the target's tensors, so in-place changes reach it by themselves, and newly assigned
    tensors are replaced in it. A copy of this object captures again.

    Args:
        dynamic_dims: see :func:`prepare`.
        example: of an earlier pass, with the dimensions that differed in it.

    Attributes:
        example: the call that was captured, on the CPU; copies have it too.
    """

    def __init__(self, dynamic_dims: Dims | None = None, example: Example | None = None) -> None:
        self._dynamic_dims = dict(dynamic_dims or {})
        self.example = example
        self._captured: Graph | None = None
        self._tensors: Mapping[str, Tensor] = {}  # that the captured graph reads

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, without the live weights."""
        return vars(self) | {"_captured": None, "_tensors": {}}

    def prepared(self, target: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Graph:
        """Return the graph of the target with the weights that it has now, on a copy of them.

        Args:
            target: always the same module, whatever has happened to it since. Of weights that are not float32, a copy
                is prepared.
            args: positional arguments of the call that is captured where there is no example yet.
            kwargs: keyword arguments of that call.

        Raises:
            CaptureError: the forward cannot be captured.
            ConfigError: ``dynamic_dims`` names an input or a dimension that does not exist.
        """
        target = float32_copy(target)
        tensors = state_tensors(target)
        if self._captured is None or not follow(self._captured, self._tensors, tensors):
            self._captured = self._capture(target, args, kwargs)
        self._tensors = tensors
        return fold(self._captured)

    def _capture(self, target: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Graph:
        varying, call = self.varying, (args, kwargs)
        if self.example is not None and varying:  # this call may have a size of 1, which would be fixed
            call = placed_like(self.example.call, call)
        return self._keep(capture(target, *call, self._dynamic_dims, varying), varying)

    def _keep(self, graph: Graph, varying: Mapping[str, tuple[int, ...]]) -> Graph:
        names = (name for name, _ in graph.signature.tensors())
        sizes = {name: list(tensor.shape) for name, tensor in zip(names, graph.example, strict=True)}
        self.example = Example(graph.signature.call(graph.example), sizes, varying)
        return graph

    def take(self, graph: Graph, module: nn.Module) -> None:
        """Take a graph that was captured elsewhere, in place of capturing the target.

        Args:
            graph: of the target or of a copy of it, with no dynamic dimension but the batch.
            module: what it was captured from.
        """
        self._captured, self._tensors = self._keep(graph, {}), state_tensors(module)

    @property
    def varying(self) -> Mapping[str, tuple[int, ...]]:
        """Dimensions in which calls were seen to differ, the batch included."""
        return {} if self.example is None else self.example.varying

    def widen(self, found: Sequence[Dims]) -> None:
        """Add the dimensions that differed in other processes."""
        if self.example is not None:
            self._now_sees(self.example.wider(found))

    def forget(self) -> None:
        """Drop the captured graph; the example stays."""
        self._captured, self._tensors = None, {}

    def must_widen(self, target: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Look at a further call; return whether it differs in a dimension that the graph fixes.

        The next graph has that dimension dynamic.
        """
        if self.example is None or self._captured is None:
            return False
        return self._now_sees(self.example.seeing(forward_of(target), args, kwargs))

    def _now_sees(self, seen: Example) -> bool:
        """Take a wider example; drop the graph, and return ``True``, where it fixes what may differ."""
        graph, new = self._captured, seen is not self.example
        self.example = seen
        fixed = (
            new
            and graph is not None
            and any(
                given["shape"][dim] is not None
                for (name, given), batch in zip(graph.signature.tensors(), graph.batch_dims, strict=True)
                for dim in seen.varying.get(name, ())
                if dim not in batch
            )
        )
        if fixed:
            self._captured = None
        return fixed
