"""Samples for algorithms: bounded, seeded, equally likely from every call, and some of them held out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lq_plugin.graph.graph import Graph
from lq_plugin.graph.prepare import prepare
from lq_plugin.graph.sampling import HELD_OUT, MOST_OF_ONE_CALL, Draw, Samples


@pytest.fixture(scope="module")
def graph() -> Graph:
    return prepare(nn.Linear(2, 2), [torch.ones(4, 2)])


def numbered(first: int, count: int) -> Tensor:
    """Samples that hold their own number."""
    return torch.arange(first, first + count, dtype=torch.float32)[:, None].expand(count, 2)


def drawn(graph: Graph, calls: int, size: int, samples: int, seed: int = 0) -> Samples:
    draw = Draw(graph, samples, seed)
    for number in range(calls):
        draw.add([numbered(number * size, size)])
    return draw.drawn(draw.samples_seen)


def numbers(samples: Samples) -> tuple[list[float], list[float]]:
    learn, judge = ([float(row) for (x,) in calls for row in x[:, 0]] for calls in (samples.learn, samples.judge))
    return learn, judge


@pytest.mark.parametrize(("calls", "size"), [(40, 1), (40, 8), (3, 100), (1, 5)])
def test_a_draw_is_bounded_and_distinct_and_holds_out_every_fourth(graph: Graph, calls: int, size: int) -> None:
    learn, judge = numbers(drawn(graph, calls, size, 32))
    assert len({*learn, *judge}) == len(learn) + len(judge) == min(32 if size < 100 else MOST_OF_ONE_CALL, calls * size)
    assert len(judge) == (len(learn) + len(judge)) // HELD_OUT
    blocks = [n // HELD_OUT for n in judge]
    assert len({*blocks}) == len(blocks)  # one of every four


def test_what_is_held_out_is_not_in_step_with_the_order(graph: Graph) -> None:
    _, judge = numbers(drawn(graph, 40, 4, 160))
    places = [n % HELD_OUT for n in judge]
    assert {*places} == {*range(HELD_OUT)}


def test_a_seed_decides_which(graph: Graph) -> None:
    first, again, other = (numbers(drawn(graph, 100, 2, 16, seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_late_calls_are_drawn_as_often_as_early_ones(graph: Graph) -> None:
    found = [n for seed in range(200) for part in numbers(drawn(graph, 20, 1, 5, seed)) for n in part]
    late = sum(n >= 10 for n in found) / len(found)
    assert 0.45 < late < 0.55


def test_samples_that_are_not_finite_are_left_out_and_counted(graph: Graph) -> None:
    draw, x = Draw(graph, 16, 0), numbered(0, 8).clone()
    x[2], x[5, 1] = torch.nan, torch.inf
    draw.add([x])
    samples = draw.drawn(100)
    learn, judge = numbers(samples)
    assert sorted(learn + judge) == [0, 1, 3, 4, 6, 7]
    assert (samples.left_out, samples.share) == (2, 0.08)


def test_what_is_kept_shares_nothing_with_the_caller(graph: Graph) -> None:
    draw, x = Draw(graph, 8, 0), numbered(0, 8).clone()
    with torch.inference_mode():
        draw.add([x])
    x.zero_()
    samples = draw.drawn()
    assert sum(map(sum, numbers(samples))) == sum(range(8))
    assert samples.share is None
    assert not any(tensor.is_inference() for call in samples.learn for tensor in call)


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(4, 2) * torch.arange(4.0)[:, None]


def test_a_graph_of_one_batch_size_gets_its_calls_whole() -> None:
    fixed = prepare(FixedBatch(), [torch.ones(4, 2)])
    assert not fixed.is_divisible(fixed.example)
    samples = drawn(fixed, 10, 4, 20)
    assert {len(x) for (x,) in (*samples.learn, *samples.judge)} == {4}
    learn, judge = numbers(samples)
    assert not {*learn} & {*judge}
    assert (len(samples.learn), len(samples.judge)) == (4, 2)


def test_what_is_held_out_is_not_given_back_to_be_observed(graph: Graph) -> None:
    draw = Draw(graph, 16, 0)
    given = [draw.add([numbered(3 * number, 3)]) for number in range(20)]
    observed = {float(row) for call in given if call is not None for row in call[0][:, 0]}
    learn, judge = numbers(draw.drawn())
    assert len(observed) == 45
    assert {*learn} <= observed
    assert judge
    assert not {*judge} & observed


def test_single_samples_that_are_held_out_leave_nothing_to_observe(graph: Graph) -> None:
    draw = Draw(graph, 16, 0)
    given = [draw.add([numbered(number, 1)]) for number in range(8)]
    assert [sum(each is None for each in block) for block in (given[:4], given[4:])] == [1, 1]


class NodesOfGraphs(nn.Module):
    """Sums the nodes of each graph, as graph networks do: a node is no sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, nodes: Tensor, number: Tensor) -> Tensor:
        return torch.zeros(3, 2).index_add(0, number, self.layer(nodes))


def test_what_belongs_together_is_kept_whole() -> None:
    nodes, number = torch.randn(5, 2), torch.tensor([0, 0, 1, 2, 2])
    draw = Draw(prepare(NodesOfGraphs(), [nodes, number]), 3, seed=0)
    draw.add([nodes, number])
    samples = draw.drawn()
    assert [len(call[0]) for call in (*samples.learn, *samples.judge)] == [5]
