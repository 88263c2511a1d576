"""Which operators are proposed to stay float: a pure function of the microseconds that INT8 saves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lq_plugin.coverage import Duration
from lq_plugin.graph.prepare import prepare
from lq_plugin.search.cost import time_saved
from lq_plugin.search.placements import charged, kind, proposals, sources


def durations(*nodes: tuple[str, float]) -> list[Duration]:
    return [Duration(frozenset(names.split()), microseconds) for names, microseconds in nodes]


def test_conversions_are_charged_to_the_operator_before_them() -> None:
    ran = durations(("quantize", 1), ("conv", 8), ("dequantize", 2), ("swish", 4), ("linear relu", 16), ("conv", 32))
    assert charged(ran, {"conv", "linear"}) == {"conv": 1 + 8 + 2 + 4 + 32, "linear": 16}
    assert charged(ran, {"other"}) == {}


CHAIN = {"a": "conv2d", "b": "conv2d", "c": "linear", "d": "linear"}
ALONE = dict.fromkeys(CHAIN, frozenset[str]())


@pytest.mark.parametrize(
    ("saved", "proposed"),
    [
        ({"a": 5.0, "b": 1.0, "c": 2.0, "d": 3.0}, []),  # INT8 saves time everywhere
        ({"a": -5.0, "b": -1.0, "c": -2.0, "d": -3.0}, []),  # or nowhere: nothing would be left in INT8
        ({"a": -5.0, "b": 1.0, "c": 2.0, "d": 2.0}, ["ab", "a"]),  # the kind, and the operator
        ({"a": -5.0, "b": 1.0, "c": 2.0, "d": 20.0}, ["ab", "a", "abc"]),  # and all but the few that save most
        ({"a": 50.0, "b": -1.0, "c": 2.0, "d": 20.0}, ["b", "bc"]),  # no kind loses
        ({"a": -1.0, "d": 1.0}, ["a"]),  # of the others nothing is known
    ],
)
def test_what_costs_more_than_it_gains_is_proposed(saved: dict[str, float], proposed: list[str]) -> None:
    assert proposals(CHAIN, ALONE, saved) == [frozenset(names) for names in proposed]


def test_sums_follow_most_of_what_they_read() -> None:
    kinds = {**CHAIN, "add": "add", "mean": "mean", "mul": "mul"}
    read = {**ALONE, "add": {"a", "b"}, "mean": {"add"}, "mul": {"mean", "d"}}
    saved = {"a": -5.0, "b": -1.0, "c": 2.0, "d": 2.0}
    assert proposals(kinds, read, saved) == [frozenset({"a", "b", "add", "mean"})]  # half of what mul reads is INT8


class Gate(nn.Module):
    """A depthwise convolution and a gate on its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, groups=8)
        self.gate, self.project = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.project(x * self.gate(x).sigmoid())


def test_sources_are_found_through_what_is_no_operator_and_kinds_tell_groups_apart() -> None:
    graph = prepare(Gate().eval(), (torch.randn(2, 8, 6, 6),), {})
    names = {"conv2d", "conv2d_1", "conv2d_2", "mul"}
    kinds = {node.name: kind(node) for node in graph.module.graph.nodes if node.name in names}
    assert kinds == {"conv2d": "grouped conv2d", "conv2d_1": "conv2d", "conv2d_2": "conv2d", "mul": "mul"}
    assert sources(graph, names) == {
        "conv2d": set(),
        "conv2d_1": {"conv2d"},
        "mul": {"conv2d", "conv2d_1"},
        "conv2d_2": {"mul"},
    }


def test_multiplications_stand_in_for_microseconds_that_were_not_measured() -> None:
    operations = {"conv": 100, "linear": 50, "add": 10}
    assert time_saved(operations, {}) == operations
    assert time_saved(operations, {"conv": 30.0, "linear": -2.0, "unknown": 9.0}) == {
        "conv": 30.0,
        "linear": 0.1,
        "add": pytest.approx(10 * 30.1 / 150, abs=1e-3),
    }
