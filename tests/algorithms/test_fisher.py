"""Errors inside a graph are weighted by what they cost at its outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq_plugin.algorithms.fisher import costs, weighted_values
from lq_plugin.graph.prepare import prepare


class Head(nn.Module):
    """Two outputs of very different power, one output of integers, and a value that reaches no output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unread = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.first(x)
        return self.second(hidden), 1000 * hidden[:, :1], self.unread(hidden).argmax(1)


def test_the_estimate_tends_to_the_columns_of_the_jacobian() -> None:
    torch.manual_seed(0)
    model, x = Head().eval(), torch.randn(1, 6)
    graph = prepare(model, [torch.randn(2, 6)])
    with torch.no_grad():
        hidden, jacobian = model.first(x), model.second.weight
        large, small = 1000 * hidden[:, :1], model.second(hidden)
    expected = jacobian.square().sum(0) / small.square().sum()
    expected[0] += 1000**2 / large.square().sum()
    seen = [weighted["linear"].weight for weighted in weighted_values(graph, {"linear"}, [[x.expand(160, 6)]], 0, 160)]
    torch.testing.assert_close(torch.cat(seen).sum(0) / len(seen), expected.detach(), rtol=0.2, atol=0)


def test_what_has_no_gradient_is_weighted_alike() -> None:
    torch.manual_seed(0)
    model, x = Head().eval(), torch.randn(4, 6)
    graph = prepare(model, [x])
    (weighted,) = weighted_values(graph, {"linear_2", "argmax"}, [[x]], 0)
    assert list(weighted) == ["linear_2"]  # integers are left out
    found = weighted["linear_2"]
    torch.testing.assert_close(found.value, model.unread(model.first(x)).detach())
    torch.testing.assert_close(found.weight, torch.full((4, 7), 1 / found.value.square().sum().item()))


def test_errors_before_a_recurrent_layer_are_weighted() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.lstm = nn.Linear(4, 4), nn.LSTM(4, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(self.first(x))[0][:, 2]

    graph = prepare(Recurrent().eval(), [torch.randn(2, 5, 4)])
    (weighted,) = weighted_values(graph, {"linear"}, [[torch.randn(2, 5, 4)]], 0)
    weight = weighted["linear"].weight
    assert (weight[:, :3].amin() > 0, weight[:, 3:].abs().max()) == (True, 0)  # nothing reads the last steps


def test_an_operator_that_autograd_does_not_know_stops_nothing() -> None:
    opaque = torch.library.custom_op(
        "lq_tests::opaque", lambda x: x.exp(), mutates_args=(), schema="(Tensor x) -> Tensor"
    )
    opaque.register_fake(torch.empty_like)

    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.lq_tests.opaque(self.first(x))

    graph = prepare(Opaque().eval(), [torch.randn(2, 4)])
    (weighted,) = weighted_values(graph, {"linear"}, [[torch.randn(2, 4)]], 0)
    found = weighted["linear"]
    torch.testing.assert_close(found.weight, torch.full((2, 4), 1 / found.value.square().sum().item()))


def test_samples_are_bounded_and_calls_divided() -> None:
    graph = prepare(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), [torch.randn(10, 3)])
    calls = [[torch.randn(10, 3)] for _ in range(4)]
    found, again = (list(weighted_values(graph, {"linear"}, calls, 0, samples=22)) for _ in range(2))
    assert [len(each["linear"].value) for each in found] == [8, 2, 8, 2, 2]
    assert all(torch.equal(a["linear"].weight, b["linear"].weight) for a, b in zip(found, again, strict=True))


def test_masked_outputs_do_not_make_nan() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.pad(self.first(x), (0, 2), value=-torch.inf)

    graph = prepare(Masked().eval(), [torch.randn(2, 4)])
    (weighted,) = weighted_values(graph, {"linear"}, [[torch.randn(2, 4)]], 0)
    assert bool(weighted["linear"].weight.isfinite().all())
    assert bool((weighted["linear"].weight > 0).all())


def test_errors_that_add_up_over_positions_are_not_taken_for_independent() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(2, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x).mean((2, 3))

    model, x = Mean().eval(), torch.randn(400, 2, 4, 4)
    graph = prepare(model, [x[:2]])
    alike, random = torch.ones(400, 3, 4, 4), torch.randn(400, 3, 4, 4)
    for error in (alike, random):
        (found,) = costs(graph, {"conv2d": [error]}, [x], torch.Generator().manual_seed(0))["conv2d"]
        expected = error.mean((2, 3)).square().sum() / model(x).square().sum()
        assert abs(found / expected.item() - 1) < 0.1


def test_known_errors_without_a_gradient_count_as_a_share_of_the_value() -> None:
    model, x = Head().eval(), torch.randn(4, 6)
    graph = prepare(model, [x])
    (found,) = costs(graph, {"linear_2": [torch.ones(4, 7)]}, [x], torch.Generator())["linear_2"]
    assert abs(found * model.unread(model.first(x)).square().sum().item() / 28 - 1) < 1e-4
