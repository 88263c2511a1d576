"""Columns times the matrix equal the operator's result, for every kind of operator and its options."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor, fx, nn

from lq_plugin.algorithms.columns import Product, product_of
from lq_plugin.graph.nodes import attribute, operator_type
from lq_plugin.graph.prepare import prepare


class Function(nn.Module):
    """A function of the input and two constants."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weight, self.bias = (torch.randn(shape) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias)


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(3, 4, 3, stride=2, padding=1), (2, 3, 11)),
    "conv1d same": (nn.Conv1d(4, 6, 4, padding="same", dilation=2, groups=2), (2, 4, 11)),
    "conv2d": (nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(2, 1), bias=False), (2, 3, 7, 8)),
    "conv2d depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 7, 8)),
    "conv2d grouped": (nn.Conv2d(6, 4, 3, stride=2, padding=2, dilation=2, groups=2), (2, 6, 9, 8)),
    "conv2d valid": (nn.Conv2d(3, 4, 3, padding="valid", dilation=(1, 2)), (2, 3, 7, 8)),
    "conv2d without batch": (Function(lambda x, w, b: torch.conv2d(x[0], w, b), (4, 3, 2, 2), (4,)), (2, 3, 7, 8)),
    "conv3d": (nn.Conv3d(2, 4, (1, 2, 3), stride=(2, 1, 1), padding=(0, 1, 2), groups=2), (2, 2, 4, 5, 6)),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 5)),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 3, (2, 3), stride=(2, 1), padding=(0, 1), bias=False), (2, 4, 5, 6)),
    "conv_transpose2d depthwise": (nn.ConvTranspose2d(4, 4, 3, stride=2, dilation=2, groups=4), (2, 4, 5, 6)),
    "conv_transpose2d cropped": (nn.ConvTranspose2d(2, 3, 1, stride=2, padding=1), (2, 2, 5, 6)),
    "conv_transpose3d": (nn.ConvTranspose3d(4, 2, 2, stride=(1, 2, 2), groups=2), (2, 4, 3, 4, 2)),
    "linear": (nn.Linear(5, 3), (4, 5)),
    "linear without bias": (nn.Linear(5, 3, bias=False), (2, 3, 4, 5)),
    "addmm": (Function(lambda x, w, b: torch.addmm(b, x, w), (5, 3), (3,)), (4, 5)),
    "matmul": (Function(lambda x, w, b: x @ w, (5, 3), (3,)), (2, 4, 5)),
    "mm": (Function(lambda x, w, b: x.mm(w), (5, 3), (3,)), (4, 5)),
}


class Together(nn.ModuleList):
    """Layers side by side, captured in one graph."""

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        return [layer(x) for layer, x in zip(self, inputs, strict=True)]


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[fx.Node, Product]]:
    layers = Together(layer for layer, _ in LAYERS.values()).eval()
    graph = prepare(layers, [[torch.randn(shape) for _, shape in LAYERS.values()]]).module.graph
    products = [(node, product) for node in graph.nodes if (product := product_of(node))]
    return dict(zip(LAYERS, products, strict=True))


@pytest.mark.parametrize("layer", LAYERS)
def test_columns_times_the_matrix_are_what_the_operator_gives(
    found: dict[str, tuple[fx.Node, Product]], layer: str
) -> None:
    node, product = found[layer]
    module = node.graph.owning_module
    assert module is not None
    weight = attribute(module, node.args[product.weight_position])
    x = torch.randn(LAYERS[layer][1])
    result = LAYERS[layer][0](x).detach()
    read = x[0] if layer == "conv2d without batch" else x
    columns, wanted = product.columns(read, result, result.numel(), Generator())
    given = columns.transpose(0, 1) @ product.matrix(weight).mT
    if product.bias_position is not None:
        given = given + attribute(module, node.args[product.bias_position]).view(product.groups, 1, -1)
    assert wanted.numel() == result.numel()
    torch.testing.assert_close(given.transpose(0, 1), wanted, atol=1e-5, rtol=1e-4)
    assert torch.equal(product.weight(product.matrix(weight)), weight)


def test_some_columns_are_drawn_without_repetition() -> None:
    product = Product("conv2d", 0, 1, None, torch.Size([1, 1, 1, 1]), (1, 1), ((0, 0), (0, 0)), (1, 1), (0, 0))
    x = torch.arange(60.0).view(2, 1, 5, 6)
    columns, same = product.columns(x, x, 20, Generator().manual_seed(0))
    assert columns.flatten().unique().numel() == 20
    assert torch.equal(columns, same)


def test_other_operators_are_none() -> None:
    functions = (
        lambda x, w, b: torch.addmm(b, x, w, beta=0.5),
        lambda x, w, b: torch.addmm(x[:, :3], x, w),
        lambda x, w, b: torch.addmm(torch.ones(4, 3), x, w),
        lambda x, w, b: nn.functional.linear(x, w.t(), b * x.mean()),
        lambda x, w, b: x @ (w * x.mean()),
        lambda x, w, b: x * w[:, 0],
    )
    layers = Together(Function(function, (5, 3), (3,)) for function in functions)
    nodes = prepare(layers, [[torch.randn(4, 5) for _ in functions]]).module.graph.nodes
    assert {"addmm", "linear", "matmul", "mul"} <= {operator_type(node) for node in nodes}
    assert [node for node in nodes if product_of(node)] == []
