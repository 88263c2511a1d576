"""Quantized convolutions over one dimension in a ``.pt2``: the same numbers, and they compile wherever they stand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config

import lq_plugin
from lq_plugin import Scheme
from lq_plugin.artifacts import pt2
from lq_plugin.artifacts.pt2_conv1d import over_two_dimensions
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.nodes import operator_type


class Residual(nn.Module):
    """A chain of two convolutions, a sum around one of them, and a flatten."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 8, 3), nn.Conv1d(8, 8, 3, **options)  # type: ignore[arg-type]
        self.last = nn.Linear(8 * 18, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last((self.second(x) + x).flatten(1))


class Unbatched(nn.Module):
    """A convolution of one sample, whose result is read with and without the new dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 5, stride=2, groups=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x[0]).relu()
        return self.second(x), x.softmax(-1)


class Branches(nn.Module):
    """Two convolutions of one value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


def candidate(module: nn.Module) -> lq_plugin.StaticCandidate:
    return lq_plugin.quantize(module, [torch.randn(3, 4, 20)] * 2, Scheme(algorithms=[]))


def operators(graph: Graph) -> list[str]:
    return [operator_type(node) for node in graph.module.graph.nodes]


def integers(module: nn.Module) -> int:
    """How many integers its weights are."""
    return sum(tensor.numel() for tensor in module.state_dict().values() if tensor.dtype == torch.int8)


@pytest.mark.parametrize(
    "module",
    [
        Residual(padding=1),
        Residual(padding="same", dilation=2, bias=False),
        Residual(padding=1, groups=8),
        nn.Sequential(nn.Conv1d(4, 6, 2), nn.SiLU(), nn.Conv1d(6, 6, 2, stride=2), nn.Hardswish()),
        Unbatched(),
        Branches(),
    ],
    ids=["residual", "same", "depthwise", "chain", "unbatched", "branches"],
)
def test_the_numbers_are_the_same(module: nn.Module) -> None:
    graph = candidate(module).converted("torch")
    made, (given,) = over_two_dimensions(graph.module), graph.example
    names = [operator_type(node) for node in made.graph.nodes]
    assert "conv1d" in operators(graph)
    assert "conv1d" not in names
    assert names.count("quantize_per_tensor") == operators(graph).count("quantize_per_tensor")
    assert integers(made) == integers(graph.module)
    with torch.no_grad():
        torch.testing.assert_close(made(given), graph.module(given))


def test_a_convolution_in_float_is_left_alone() -> None:
    graph = candidate(nn.Conv1d(4, 4, 3)).graph
    assert [operator_type(node) for node in over_two_dimensions(graph.module).graph.nodes] == operators(graph)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about torch
def test_a_sum_and_a_flatten_after_it_compile(tmp_path: Path) -> None:
    lq_plugin.export(candidate(Residual(padding=1)), tmp_path, formats=["pt2"], placement="runtime")
    module, given = pt2.load_module(tmp_path / "pt2"), torch.randn(3, 4, 20)
    with torch.no_grad(), config.patch(freezing=True):
        torch.testing.assert_close(torch.compile(module)(given), module(given))
