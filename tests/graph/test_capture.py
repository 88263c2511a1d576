"""Capture: what becomes of a call, what the live module keeps, and what is said when it cannot be done."""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, settled

from lq_plugin.errors import CaptureError, ConfigError
from lq_plugin.graph.capture import capture
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.prepare import prepare


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if x.sum() > 0:
            x = -x
        return x


class Noisy(nn.Module):
    """Draws random numbers in its forward, and changes with the training flag."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x + 0.1 * torch.randn_like(x))


def shapes(graph: Graph) -> dict[str, list[int | None]]:
    return {name: structure["shape"] for name, structure in graph.signature.tensors()}


def names(graph: Graph) -> list[str]:
    return [node.name for node in graph.module.graph.nodes]


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> Tensor:
        return self.head(self.layer(x, state)[0][-1])


class Transposing(TimeFirst):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(0, 1))


class Tokens(TimeFirst):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(self.table(ids))


@pytest.mark.parametrize(
    ("model", "inputs", "dims", "batches"),
    [
        (TimeFirst, lambda n: [torch.randn(5, n, 8)], [1], (1, 3, 5)),
        (TimeFirst, lambda n: [torch.randn(5, n, 8), (torch.randn(1, n, 6), torch.randn(1, n, 6))], [1] * 3, (3, 5)),
        (Transposing, lambda n: [torch.randn(n, 5, 8)], [0], (1, 3, 5)),
        (Tokens, lambda n: [torch.randint(9, (5, n))], [1], (1, 3, 5)),
    ],
    ids=["time first", "with states", "batch first", "tokens"],
)
def test_the_batch_is_what_recurrent_layers_take_for_it(
    model: type[nn.Module], inputs: Callable[[int], list[Any]], dims: list[int], batches: tuple[int, ...]
) -> None:
    for batch in batches:
        graph = capture(model().eval(), inputs(batch))
        assert graph.batch_size == max(batch, 2)
        assert graph.batch_dims == tuple((dim,) for dim in dims)
        assert [tensor.shape[dim] for tensor, dim in zip(graph.resized(7), dims, strict=True)] == [7] * len(dims)
        free = [[axis for axis, size in enumerate(shape) if size is None] for shape in shapes(graph).values()]
        assert free == [[dim] for dim in dims]


def test_the_live_module_and_the_random_state_stay_bit_identical() -> None:
    module = Noisy().train()
    module.body[2].eval()
    before, flags = copy.deepcopy(module.state_dict()), [part.training for part in module.modules()]
    objects = [id(tensor) for tensor in (*module.parameters(), *module.buffers())]
    x = torch.randn(3, 4, requires_grad=True)
    given = x.detach().clone()
    random_state = torch.get_rng_state()

    prepare(module, [x])

    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(x, given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert [part.training for part in module.modules()] == flags
    assert [id(tensor) for tensor in (*module.parameters(), *module.buffers())] == objects
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
    assert torch.backends.mha.get_fastpath_enabled()


def test_capture_works_within_inference_mode_and_the_inputs_stay_as_they_are() -> None:
    module = nn.Linear(4, 2)
    with torch.inference_mode():
        x = torch.ones(3, 4)
        graph = capture(module, [x])
    assert not graph.example[0].is_inference()
    assert x.is_inference()


def test_capture_works_within_autocast_and_stays_in_float32() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        graph = capture(nn.Linear(4, 2), [torch.ones(3, 4)])
        assert torch.is_autocast_enabled("cpu")
    assert graph.module(torch.ones(3, 4))[0].dtype == torch.float32


def test_the_names_of_values_are_the_same_in_every_capture() -> None:
    model = settled(ZOO["blocks"])
    images = ZOO["blocks"].batch(torch.Generator().manual_seed(0), 2)
    assert names(prepare(model, [images])) == names(prepare(copy.deepcopy(model), [images]))


def test_the_names_of_values_and_the_digest_are_the_same_in_another_process() -> None:
    code = (
        "import torch; from zoo import ZOO, settled; from lq_plugin.graph.prepare import prepare\n"
        "prepare(settled(ZOO['blocks']), [torch.ones(5, 3, 32, 32)])  # other names were in use already\n"
        "graph = prepare(settled(ZOO['mobilenet']), [torch.ones(5, 3, 32, 32)])\n"
        "print(graph.digest, *(node.name for node in graph.module.graph.nodes))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    here = prepare(settled(ZOO["mobilenet"]), [torch.ones(2, 3, 32, 32)])
    assert process.stdout.split() == [here.digest, *names(here)]


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_batch_is_dynamic_whatever_its_size_in_the_example(batch: int) -> None:
    graph = capture(nn.Linear(4, 2), [torch.ones(batch, 4)])
    assert shapes(graph) == {"input": [None, 4]}
    for size in (1, 2, 5):
        assert graph.module(torch.ones(size, 4))[0].shape == (size, 2)


def test_a_batch_of_one_is_enough_for_a_model_with_batch_norm() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    graph = prepare(module, [torch.ones(1, 4)])
    assert graph.module(torch.ones(3, 4))[0].shape == (3, 4)


def test_other_dimensions_are_fixed_unless_asked_for() -> None:
    conv = nn.Conv2d(3, 4, 3)
    assert shapes(capture(conv, [torch.ones(2, 3, 8, 8)])) == {"input": [None, 3, 8, 8]}
    graph = capture(conv, [torch.ones(2, 3, 8, 8)], dynamic_dims={"input": [2, -1]})
    assert shapes(graph) == {"input": [None, 3, None, None]}
    assert graph.module(torch.ones(3, 3, 11, 9))[0].shape == (3, 4, 9, 7)


def test_dynamic_dims_of_an_unknown_input_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"dynamic_dims: 'imput' is unknown. Did you mean 'input'"):
        capture(nn.Linear(4, 2), [torch.ones(2, 4)], dynamic_dims={"imput": [1]})


def test_dynamic_dims_beyond_the_input_are_refused() -> None:
    with pytest.raises(ConfigError, match="'input' has 2 dimensions, got 2"):
        capture(nn.Linear(4, 2), [torch.ones(2, 4)], dynamic_dims={"input": [2]})


def test_control_flow_on_values_names_the_users_line_and_the_ways_out() -> None:
    lines, start = inspect.getsourcelines(Branching.forward)
    number = start + next(index for index, line in enumerate(lines) if "if x.sum()" in line)
    with pytest.raises(CaptureError) as error:
        capture(Branching(), [torch.ones(2, 4)])
    message = str(error.value)
    assert f"{__file__}:{number}: if x.sum() > 0:" in message
    assert "forward of Branching cannot be captured" in message
    assert "another target" in message
    assert "dynamic" in message


def test_a_forward_without_tensors_is_refused() -> None:
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> int:
            return 3

    with pytest.raises(CaptureError, match="forward of Silent returns no tensor"):
        capture(Silent(), [torch.ones(2)])
    with pytest.raises(CaptureError, match="called without any tensor"):
        capture(Silent(), [3])


def test_what_cannot_cross_a_graphs_border_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor, y: object = None) -> object:
            return {"fine": x, "odd": [object()]}

    with pytest.raises(CaptureError, match=r"argument y: a graph can neither take nor return a set"):
        capture(Odd(), [torch.ones(2), {1}])
    graph = capture(Odd(), [torch.ones(2)])
    assert graph.signature.unflatten(graph.module(torch.ones(2)))["odd"] == [None]
    (said,) = graph.notes
    assert said.startswith("Odd: a graph cannot return the object in output.odd.0")
    assert said in " ".join("".join(capsys.readouterr()).split())


def test_a_compiled_module_is_captured_without_its_compilation() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    graph = capture(torch.compile(module, backend="eager"), [torch.ones(2, 4)])
    assert "linear" in names(graph)
    assert graph.modules == ("0", "1")


def test_modules_are_named_as_below_the_target() -> None:
    assert "blocks.0.excite.reduce" in capture(settled(ZOO["mobilenet"]), [torch.ones(2, 3, 32, 32)]).modules


@pytest.mark.parametrize("include_self", [True, False])
def test_a_scattered_mean_is_a_sum_and_a_count(include_self: bool) -> None:
    class Scattered(nn.Module):
        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            return x[:, :4].scatter_reduce(1, index, x, "mean", include_self=include_self)

    module, x = Scattered(), torch.randn(3, 6)
    index = torch.tensor([[0, 1, 1, 3, 3, 3]] * 3)
    graph = capture(module, [x, index])
    assert not any(
        node.target is torch.ops.aten.scatter_reduce.two and node.args[4] == "mean" for node in graph.module.graph.nodes
    )
    assert torch.allclose(graph.module(x, index)[0], module(x, index))
