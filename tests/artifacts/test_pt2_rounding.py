"""In eager torch a loaded ``.pt2`` rounds with one operator a pair: the same numbers, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, fx, nn

from lq_plugin.artifacts.pt2_rounding import ROUND, rounding_at_once

pairs = torch.ops.quantized_decomposed
UINT8 = (0.0237, 117, 0, 255, torch.uint8)
INT8 = (1 / 3, 0, -128, 127, torch.int8)


def quantized(x: Tensor, qparams: Any = UINT8) -> Tensor:
    return pairs.quantize_per_tensor.default(x, *qparams)  # type: ignore[no-any-return]


def pair(x: Tensor, qparams: Any = UINT8, back: Any = None) -> Tensor:
    return pairs.dequantize_per_tensor.default(quantized(x, qparams), *(back or qparams))  # type: ignore[no-any-return]


def two_readers(x: Tensor) -> Tensor:
    integers = quantized(x)
    return pairs.dequantize_per_tensor.default(integers, *UINT8) + pairs.dequantize_per_tensor.default(integers, *UINT8)  # type: ignore[no-any-return]


class Traced(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def rounds(module: fx.GraphModule) -> int:
    return sum(node.target is ROUND for node in module.graph.nodes)


@pytest.mark.parametrize("function", [pair, lambda x: pair(x, INT8), two_readers])
def test_the_numbers_are_the_same_bit_by_bit(function: Any) -> None:
    module = fx.symbolic_trace(Traced(function))
    made = rounding_at_once(module)
    halves = (torch.arange(-600, 600) / 2).repeat_interleave(2) * torch.tensor([UINT8[0], INT8[0]]).repeat(1200)
    x = torch.cat([torch.randn(5000) * 20, halves, torch.tensor([torch.inf, -torch.inf, 1e30, -1e30, 0.0, -0.0])])
    assert (rounds(module), rounds(made)) == (0, 1)
    assert torch.equal(made(x), module(x))


@pytest.mark.parametrize(
    "function",
    [
        quantized,
        lambda x: pairs.dequantize_per_tensor.default(quantized(x).flatten(), *UINT8),
        lambda x: pair(x, back=(0.5, *UINT8[1:])),
        lambda x: pair(x, (0.1, 300, 0, 255, torch.uint8)),
    ],
    ids=["integers alone", "integers moved", "another scale", "a zero point beyond the levels"],
)
def test_what_is_no_pair_stays(function: Any) -> None:
    module = fx.symbolic_trace(Traced(function))
    made = rounding_at_once(module)
    assert rounds(made) == 0
    assert [node.target for node in made.graph.nodes] == [node.target for node in module.graph.nodes]
