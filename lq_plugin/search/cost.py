"""How much work each operator of a graph is: an estimate of the time that INT8 saves, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from lq_plugin.graph.graph import Graph
from lq_plugin.graph.nodes import arguments
from lq_plugin.graph.operators import (
    CONVOLUTIONS,
    MATRIX_PRODUCTS,
    RECURRENT,
    TRANSPOSED_CONVOLUTIONS,
    Operator,
    operator_of,
)
from lq_plugin.graph.torch_patches import isolated

_LEAST_SAVED = 0.1  # microseconds: operators that INT8 slows down are the first to be left float


def operations(graph: Graph) -> Mapping[str, int]:
    """Return how many multiplications each operator needs for the example; without any, the size of its result.

    Args:
        graph: a folded graph.

    Returns:
        At least 1 for each operator that can be quantized, by name.
    """
    found: dict[str, int] = {}

    class Counted(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            operator = operator_of(n)
            if operator is not None:
                made = result[0] if isinstance(result, tuple) else result
                tensors = [fx.map_arg(each, self.env.__getitem__) for each in arguments(n)]
                found[n.name] = max(1, _multiplications(operator, made, tensors))
            return result

    with isolated():
        Counted(graph.module, garbage_collect_values=False).run(*graph.example)
    return found


def time_saved(operations: Mapping[str, int], microseconds: Mapping[str, float]) -> Mapping[str, float]:
    """Return what INT8 saves by operator: the microseconds that were measured, where there are any.

    Args:
        operations: as returned by :func:`operations`, of every operator.
        microseconds: those that INT8 saves, of some operators; none where no runtime was profiled.

    Returns:
        Positive numbers in one unit. An operator without a figure of its own has the share of the measured time that
        its operations have.

    Example:
        >>> time_saved({"conv": 100, "linear": 50, "add": 10}, {"conv": 30.0, "linear": -2.0})
        {'conv': 30.0, 'linear': 0.1, 'add': 2.007}
    """
    measured = {name: max(saved, _LEAST_SAVED) for name, saved in microseconds.items() if name in operations}
    if not measured:
        return operations
    each = sum(measured.values()) / sum(operations[name] for name in measured)
    return {name: round(measured.get(name, count * each), 3) for name, count in operations.items()}


def _multiplications(operator: Operator, made: Tensor, tensors: Sequence[Any]) -> int:
    """Multiplications of a convolution, product or recurrent layer; the size of the result for other operators."""
    if operator.name in TRANSPOSED_CONVOLUTIONS:
        return int(tensors[0].numel() * tensors[1][0].numel())
    if operator.name in CONVOLUTIONS:
        return int(made.numel() * tensors[1][0].numel())
    if operator.name in MATRIX_PRODUCTS:
        return int(made.numel() * tensors[operator.activations[0]].shape[-1])
    if operator.name in RECURRENT:
        steps = made.numel() // made.shape[-1]  # of all samples
        return int(steps * sum(weight.numel() for weight in tensors[3] if weight.dim() == 2))
    return made.numel()
