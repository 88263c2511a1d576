"""Digests tell content apart, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from zoo import ZOO, settled

from lq_plugin.graph.prepare import prepare
from lq_plugin.identity import state_tensors, weights_digest


class Net(nn.Module):
    """Two layers, a constant in the forward, a buffer, and weights that no call reads."""

    def __init__(self, factor: float = 2.0, activation: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second, self.unread = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.register_buffer("shift", torch.ones(1))
        self.factor, self.activation, self.crossed = factor, activation, False

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x), self.second(x)
        if self.crossed:
            left, right = right, left
        return self.activation(left) * self.factor - right + self.shift


def digests(module: nn.Module, batch: int = 3) -> tuple[str, str]:
    """Of the graph and of its structure."""
    graph = prepare(module, [torch.ones(batch, 4)])
    return graph.digest, graph.structure


def flip(tensor: Tensor) -> None:
    tensor.detach().view(torch.int32).flatten()[0] ^= 1


def test_equal_content_has_equal_digests_whatever_was_captured_before_and_however_it_is_called() -> None:
    net = Net()
    expected = digests(net)
    prepare(settled(ZOO["resnet"]), [torch.ones(5, 3, 32, 32)])  # other names of symbols are in use now
    assert digests(copy.deepcopy(net), batch=7) == expected
    assert digests(torch.compile(Net(), backend="eager")) == expected
    shift = net.shift
    del net.shift
    net.shift = nn.Parameter(shift)  # which a graph lists elsewhere
    assert digests(net) == expected
    flip(net.unread.weight)
    assert digests(net) == expected


def digest_of(specimen: str, device: str = "cpu") -> str:
    made = ZOO[specimen]
    batch = tree_map(lambda tensor: tensor.to(device), made.batch(torch.Generator().manual_seed(0), 3))
    args, kwargs = ((), batch) if isinstance(batch, dict) else (batch if isinstance(batch, tuple) else (batch,), {})
    return prepare(settled(made).to(device), args, kwargs).digest


CHANGES: dict[str, tuple[Callable[[Net], object], bool]] = {
    "one bit of a weight": (lambda net: flip(net.first.weight), False),
    "one bit of a buffer": (lambda net: flip(net.shift), False),
    "weights exchanged": (lambda net: net.first.load_state_dict(net.second.state_dict()), False),
    "an operator": (lambda net: setattr(net, "activation", torch.sigmoid), True),
    "a constant": (lambda net: setattr(net, "factor", 2.0000001), True),
    "the kind of a constant": (lambda net: setattr(net, "factor", 2), True),
    "the wiring": (lambda net: setattr(net, "crossed", True), True),
    "one weight in two places": (lambda net: setattr(net.first, "weight", net.second.weight), True),
    "the type of a weight": (lambda net: net.double().float() and setattr(net, "shift", net.shift.double()), True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_the_content_changes_the_digest(change: str) -> None:
    net = Net()
    graph, structure = digests(net)
    apply, structural = CHANGES[change]
    apply(net)
    changed_graph, changed_structure = digests(net)
    assert changed_graph != graph
    assert (changed_structure != structure) == structural


def test_a_branch_of_a_condition_counts() -> None:
    def branching(shift: float) -> nn.Module:
        class Branching(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.cond(x.sum() > 0, lambda y: y + shift, lambda y: y * 2.0, (x,))

        return Branching()

    assert digests(branching(1.0)) == digests(branching(1.0))
    assert digests(branching(1.0))[1] != digests(branching(3.0))[1]


def test_the_digest_of_weights_is_about_all_of_them_by_name_and_not_about_torch_compile() -> None:
    net = Net()
    expected = weights_digest(net)
    assert weights_digest(copy.deepcopy(net)) == expected
    compiled = nn.Sequential(torch.compile(net, backend="eager"))
    assert state_tensors(compiled).keys() == state_tensors(nn.Sequential(net)).keys()
    assert weights_digest(compiled) == weights_digest(nn.Sequential(net))
    flip(net.unread.weight)
    assert weights_digest(net) != expected
    flip(net.unread.weight)
    net.first, net.second = net.second, net.first
    assert weights_digest(net) != expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.bool, torch.int8])
def test_tensors_of_any_type_and_size_have_a_digest(dtype: torch.dtype) -> None:
    def made(*shape: int) -> nn.Module:
        module = nn.Module()
        module.register_buffer("content", torch.ones(shape, dtype=dtype))
        return module

    shapes = [(), (1,), (2, 3), (3, 2), (0,)]
    assert len({weights_digest(made(*shape)) for shape in shapes}) == len(shapes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("specimen", ZOO)
def test_every_device_computes_the_same_digests(specimen: str) -> None:
    assert digest_of(specimen) == digest_of(specimen, "cuda")
