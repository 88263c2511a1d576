"""An example of a target's calls, and the dimensions in which others differ from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

import lq_plugin
from lq_plugin import Scheme
from lq_plugin.errors import ConfigError
from lq_plugin.graph import example
from lq_plugin.graph.example import Example, varying_in, varying_state
from lq_plugin.graph.prepare import TrackedTarget


def forward(x: Tensor, more: Mapping[str, Tensor] | None = None) -> None: ...


def call(batch: int, length: int) -> tuple[tuple[Tensor], dict[str, Any]]:
    return (torch.ones(batch, length),), {"more": {"y": torch.ones(batch, length, 4)}}


def test_it_widens_with_the_calls_it_sees() -> None:
    first = Example.of(forward, *call(3, 5))
    assert first.seeing(forward, *call(3, 5)) is first
    assert first.seeing(forward, [torch.ones(3, 6)], {}) is first  # another structure
    wider = first.seeing(forward, *call(3, 6))
    assert wider.varying == {"x": (1,), "more.y": (1,)}
    assert wider.call is first.call
    assert wider.seeing(forward, *call(2, 7)).varying == {"x": (0, 1), "more.y": (0, 1)}


def test_it_is_a_call_whose_sizes_torch_does_not_fix() -> None:
    wider = Example.of(forward, *call(3, 1)).seeing(forward, *call(3, 6))
    assert wider.call[0][0].shape == (3, 6)


def test_a_checkpoint_keeps_what_differed() -> None:
    kept = varying_state(Example.of(forward, *call(3, 5), {"x": (0, 1)}), "net")
    assert varying_in([{}, {"varying": kept}], "net") == {"x": (0, 1)}
    assert varying_in([{"varying": kept}], None) is None


@pytest.mark.parametrize("state", [[], {"target": None}, {"target": None, "dims": {"x": [-1]}}, {"dims": {"x": ["1"]}}])
def test_a_damaged_state_says_nothing(state: Any) -> None:
    assert varying_in([{"varying": state}], None) is None


def test_dimensions_that_a_call_does_not_have_are_left_out() -> None:
    dims = {"x": (1, 7), "gone": (0,), "more.y": (2,)}
    assert Example.of(forward, *call(3, 5), dims).varying == {"x": (1,), "more.y": (2,)}


def test_a_call_is_described_once(monkeypatch: pytest.MonkeyPatch) -> None:
    described = Mock(side_effect=example.describe)
    monkeypatch.setattr(example, "describe", described)
    seen = Example.of(forward, *call(3, 5))
    for length in (6, 6, 7):
        seen = seen.seeing(forward, *call(3, length))
    assert described.call_count == 4


def test_calls_that_cannot_be_described_change_nothing() -> None:
    odd = Example.of(forward, [{1, 2}], {})
    assert odd.seeing(forward, *call(3, 5)) is odd
    first = Example.of(forward, *call(3, 5))
    assert first.seeing(forward, [{1, 2}], {}) is first


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)


def test_a_graph_is_widened_once_for_a_dimension_and_never_for_the_batch() -> None:
    net, tracked = Pooled().eval(), TrackedTarget()
    x = torch.randn(3, 5, 4)
    assert tracked.prepared(net, [x], {}).signature.tensors()[0][1]["shape"] == [None, 5, 4]
    assert not tracked.must_widen(net, [x[:2]], {})
    assert tracked.must_widen(net, [x[:, :1]], {})
    graph = tracked.prepared(net, [x[:, :1]], {})
    assert graph.signature.tensors()[0][1]["shape"] == [None, None, 4]
    assert not tracked.must_widen(net, [x[:, :2]], {})
    assert torch.equal(graph.module(x[:, :1])[0], net(x[:, :1]))


def test_a_dimension_that_differs_in_another_process_is_widened_too() -> None:
    net, ours, theirs = Pooled().eval(), TrackedTarget(), TrackedTarget()
    for tracked in (ours, theirs):
        tracked.prepared(net, [torch.randn(3, 5, 4)], {})
    assert theirs.must_widen(net, [torch.randn(3, 6, 4)], {})
    ours.widen([theirs.varying])
    graphs = [tracked.prepared(net, [torch.randn(3, 5, 4)], {}) for tracked in (ours, theirs)]
    assert [graph.signature.tensors()[0][1]["shape"] for graph in graphs] == [[None, None, 4]] * 2
    assert graphs[0].structure == graphs[1].structure


def test_batches_of_different_lengths_are_quantized() -> None:
    batches = [torch.randn(4, length, 4) for length in (3, 5, 1)]
    candidate = lq_plugin.quantize(Pooled(), batches, Scheme(algorithms=()))
    assert candidate.provenance.batches == 3
    assert candidate.graph.signature.tensors()[0][1]["shape"] == [None, None, 4]
    with pytest.raises(ConfigError, match=r"batches: .*\{'x': \(1,\)\}.* read only once"):
        lq_plugin.quantize(Pooled(), iter(batches), Scheme(algorithms=()))
