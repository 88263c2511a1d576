"""How much work each operator of a graph is: an estimate of the time that INT8 saves, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from lq_plugin.graph.graph import Graph
from lq_plugin.graph.nodes import arguments
from lq_plugin.graph.operators import CONVOLUTIONS, MATRIX_PRODUCTS, TRANSPOSED_CONVOLUTIONS, Operator, operator_of
from lq_plugin.graph.torch_patches import isolated


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
                tensors = [self.env[each] if isinstance(each, fx.Node) else None for each in arguments(n)]
                found[n.name] = max(1, _multiplications(operator, made, tensors))
            return result

    with isolated():
        Counted(graph.module, garbage_collect_values=False).run(*graph.example)
    return found


def _multiplications(operator: Operator, made: Tensor, tensors: Sequence[Any]) -> int:
    """Multiplications of a convolution or product; the size of the result for other operators."""
    if operator.name in TRANSPOSED_CONVOLUTIONS:
        return int(tensors[0].numel() * tensors[1][0].numel())
    if operator.name in CONVOLUTIONS:
        return int(made.numel() * tensors[1][0].numel())
    if operator.name in MATRIX_PRODUCTS:
        return int(made.numel() * tensors[operator.activations[0]].shape[-1])
    return made.numel()
