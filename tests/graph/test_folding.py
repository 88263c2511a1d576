"""What is folded away before anything is quantized, and that the live module never notices."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq_plugin.graph.capture import capture
from lq_plugin.graph.folding import fold
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.nodes import operator_type
from lq_plugin.graph.prepare import prepare

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # folding BatchNorm changes the last bits of float32


def trained(module: nn.Module) -> nn.Module:
    """Give BatchNorm modules statistics and weights that change their input."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean = torch.randn(part.num_features, generator=generator)
            part.running_var = torch.rand(part.num_features, generator=generator) + 0.5
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.uniform_(part.bias, -1, 1)
    return module.eval()


def folded(module: nn.Module, *inputs: Tensor) -> Graph:
    graph = prepare(module, inputs)
    with torch.no_grad():
        wanted = module(*inputs)
        given = graph.signature.unflatten(graph.module(*inputs))
    torch.testing.assert_close(given, wanted, **TOLERANCE)
    return graph


def operators(graph: Graph) -> list[str]:
    return [operator_type(node) for node in graph.module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 9)),
        (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), (2, 4, 9, 9)),
        (nn.Conv2d(4, 6, 3, groups=2, padding="same"), nn.BatchNorm2d(6, affine=False), (2, 4, 9, 9)),
        (nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6), (2, 4, 5, 5, 5)),
        (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), (2, 4, 9, 9)),
        (nn.ConvTranspose3d(4, 6, 2), nn.BatchNorm3d(6), (2, 4, 5, 5, 5)),
        (nn.Linear(4, 6), nn.BatchNorm1d(6), (3, 4)),
        (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), (3, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_batch_norm_goes_into_the_layer_before_it(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    graph = folded(trained(nn.Sequential(layer, norm)), torch.randn(shape))
    assert len(operators(graph)) == 1


class Shared(nn.Module):
    """One convolution, whose result a BatchNorm and a sum use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.norm(x)


class OneWeightTwoNorms(nn.Module):
    """One convolution called twice, each time before a BatchNorm of its own, as in RetinaNet's heads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.first(self.conv(x)), self.second(self.conv(x * 2)), self.conv(x - 1)


def test_a_convolution_with_another_use_keeps_its_weights() -> None:
    graph = folded(trained(Shared()), torch.randn(2, 3, 8, 8))
    assert operators(graph) == ["conv2d", "mul", "add", "add"]


def test_weights_that_two_batch_norms_share_are_folded_for_each() -> None:
    graph = folded(trained(OneWeightTwoNorms()), torch.randn(2, 3, 8, 8))
    assert sorted(operators(graph)) == ["conv2d", "conv2d", "conv2d", "mul", "sub"]


def test_batch_norm_over_steps_stays_as_a_product_and_a_sum() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.linear(x).transpose(1, 2))

    graph = folded(trained(Steps()), torch.randn(2, 5, 4))
    assert operators(graph) == ["linear", "transpose", "mul", "add"]


@pytest.mark.parametrize("shape", [(2, 4, 9), (2, 4, 5, 5)])
@pytest.mark.parametrize("is_affine", [True, False])
def test_batch_norm_with_computed_statistics_is_written_out(is_affine: bool, shape: tuple[int, ...]) -> None:
    class Instant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = (nn.Conv1d if len(shape) == 3 else nn.Conv2d)(4, 6, 3)
            self.weight = nn.Parameter(torch.rand(6)) if is_affine else None
            self.bias = nn.Parameter(torch.rand(6)) if is_affine else None

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            variance, mean = torch.var_mean(x, [0, *range(2, x.dim())])
            return F.batch_norm(x, mean, variance, self.weight, self.bias)

    graph = folded(Instant(), torch.randn(shape))
    assert not {name for name in operators(graph) if "batch_norm" in name}


def test_weights_computed_from_weights_become_plain_weights() -> None:
    module = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    graph = folded(module.eval(), torch.randn(2, 3, 8, 8))
    assert operators(graph) == ["conv2d"]


def test_a_constant_larger_than_what_it_is_made_of_stays_computed() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(20, 1)), nn.Parameter(torch.randn(1, 20))
            self.linear = nn.Linear(20, 20)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) @ (self.a * self.b)

    assert operators(folded(Outer().eval(), torch.randn(2, 20))) == ["linear", "mul", "matmul"]


def test_a_buffer_that_the_forward_writes_is_no_constant() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return self.linear(x) * self.count

    module = Counting().eval()
    graph = prepare(module, [torch.ones(2, 4)])
    first, second = (graph.module(torch.ones(2, 4))[0] for _ in range(2))
    torch.testing.assert_close(second, 2 * first)
    assert module.count == 0


def test_layer_and_activation_are_neighbours_whatever_stands_between_them() -> None:
    class Blocked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = F.dropout2d(self.conv(x), 0.5, self.training)
            return F.relu(self.norm(x.float().detach()))

    assert operators(folded(trained(Blocked()), torch.randn(2, 3, 8, 8))) == ["conv2d", "relu"]


def test_folding_leaves_the_live_weights_alone() -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    before = copy.deepcopy(module.state_dict())
    captured = capture(module, [torch.randn(2, 3, 8, 8)])
    fold(captured)
    after = module.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_fold_is_a_snapshot_of_its_moment() -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    images = torch.randn(2, 3, 8, 8)
    captured = capture(module, [images])
    early = fold(captured)
    before = module(images).detach()
    with torch.no_grad():
        module[0].weight.mul_(2)
        module[1].running_mean.add_(1)
    torch.testing.assert_close(early.module(images)[0], before, **TOLERANCE)
    torch.testing.assert_close(fold(captured).module(images)[0], module(images).detach(), **TOLERANCE)
