"""What algorithms have learnt is read back as it was, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lq_plugin
from lq_plugin import Scheme, learnt
from lq_plugin.algorithms import TABLE
from lq_plugin.artifacts.digest import artifact_digest
from lq_plugin.graph.nodes import INSERTED_BY
from lq_plugin.kept import once
from lq_plugin.store import Store

SPREAD = 2.0 ** torch.tensor([0, 6, -6, 3, -3, 5, -5, 1])


class Clamped(nn.Module):
    """Its channels differ, and so do their limits: equalization makes one clamp of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.bound = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), 6 * SPREAD.view(-1, 1, 1)
        with torch.no_grad():
            self.first.weight.mul_(SPREAD.view(-1, 1, 1, 1))
            self.second.weight.div_(SPREAD.view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.minimum(torch.relu(self.first(x)), self.bound))


class Scaled(nn.Module):
    """Nothing can absorb the scales of its channels, so smoothing inserts a multiplication."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(24, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.sigmoid(self.up(x)) * 40 * torch.arange(24))


class Network(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 4))


class Branching(Network):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y - 1, (super().forward(x),))


CASES: Mapping[str, tuple[type[nn.Module], str, tuple[int, ...]]] = {
    "equalization": (Clamped, "static", (3, 6, 6)),
    "smoothing": (Scaled, "static", (24,)),
    "ranges": (Clamped, "static", (3, 6, 6)),
    "sequential": (Network, "static", (24,)),
    "rounding": (Network, "dynamic", (24,)),
}


BRANCH = "sequential beside a branch"


def case(name: str) -> tuple[Any, tuple[tuple[Tensor], ...]]:
    """A candidate and samples that this algorithm learns something from."""
    model, method, shape = (Branching, "static", (24,)) if name == BRANCH else CASES[name]
    torch.manual_seed(0)
    calls = torch.randn(64, *shape).split(16)
    return lq_plugin.quantize(model().eval(), calls, Scheme(method, algorithms=())), tuple((x,) for x in calls)


def nodes(candidate: Any) -> list[tuple[Any, ...]]:
    listed = candidate.graph.module.graph.nodes
    return [(node.name, str(node.target), str(node.args), node.meta.get(INSERTED_BY)) for node in listed]


@pytest.mark.parametrize("name", [*CASES, BRANCH])
def test_what_was_learnt_is_read_back_exactly(name: str, tmp_path: Path) -> None:
    before, calls = case(name)
    after = TABLE[name.split()[0]].run(before, calls, 0)
    assert after is not before
    Store(tmp_path).results("algorithms")["a"] = learnt.written(before, after)
    read = learnt.read(before, Store(tmp_path).results("algorithms").get("a"))
    assert nodes(read) == nodes(after)
    assert artifact_digest(read, "onnx") == artifact_digest(after, "onnx") != artifact_digest(before, "onnx")


def test_every_algorithm_can_be_read_back() -> None:
    assert CASES.keys() == TABLE.keys()


def without_a_node(content: Any) -> None:
    content["graph"]["nodes"].pop()


def other_tensor(content: Any) -> None:
    next(node for node in content["graph"]["nodes"] if "tensor" in node)["tensor"].add_(1)


def other_operator(content: Any) -> None:
    next(node for node in content["graph"]["nodes"] if node.get("operator"))["operator"] = "aten.add.Tensor"


@pytest.mark.parametrize("damage", [without_a_node, other_tensor, other_operator, dict.clear])
def test_what_gives_another_graph_is_learnt_again(damage: Callable[[Any], None], tmp_path: Path) -> None:
    before, calls = case("smoothing")
    results = Store(tmp_path).results("algorithms")
    content = learnt.written(before, TABLE["smoothing"].run(before, calls, 0))
    damage(content if damage is not dict.clear else content["graph"])
    results["a"] = content

    def read(content: Any) -> Any:
        return learnt.read(before, content)

    made, known = once(results, "a", lambda: before, lambda made: learnt.written(before, made), read)
    assert (made, known) == (before, False)
