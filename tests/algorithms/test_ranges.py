"""Whether a range is clipped is decided by what that costs at the outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lq_plugin
from lq_plugin import Scheme
from lq_plugin.algorithms.ranges import ranges
from lq_plugin.candidate import StaticCandidate
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise

PLAIN = Scheme(algorithms=())


class Above(nn.Module):
    """Its outputs depend only on elements above 9: the tail of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(8))
            self.layer.bias.fill_(-9.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu()


class Below(Above):
    """Its outputs depend only on elements below 9."""

    def forward(self, x: Tensor) -> Tensor:
        return -(-self.layer(x)).relu()


def inputs(seed: int) -> Tensor:
    """Shape (64, 64, 8), squares of a normal distribution: their tail is thin enough for an observer to clip it."""
    return torch.randn(64, 64, 8, generator=torch.Generator().manual_seed(seed)).square()


def candidate_of(model: nn.Module, scheme: Scheme = PLAIN) -> StaticCandidate:
    candidate = lq_plugin.quantize(model, [inputs(0), inputs(1)], scheme)
    assert isinstance(candidate, StaticCandidate)
    return candidate


def sqnr(model: nn.Module, candidate: StaticCandidate) -> float:
    metric, x = SignalToQuantizationNoise(), inputs(2)
    (given,) = candidate.in_torch("openvino")(x)
    metric.update(given, model(x))
    return metric.compute().item()


@torch.no_grad()
def test_a_tail_that_the_outputs_depend_on_is_not_clipped() -> None:
    model = Above().eval()
    before = candidate_of(model)
    after = ranges(before, [(inputs(0),)], 0)
    assert after.learnt_ranges["tensors_0"][1] > before.ranges["tensors_0"][1]
    assert sqnr(model, after) > sqnr(model, before) + 3
    assert (after.graph, after.calibration) == (before.graph, before.calibration)


def test_a_tail_that_no_output_depends_on_stays_clipped() -> None:
    before = candidate_of(Below().eval())
    assert "tensors_0" not in ranges(before, [(inputs(0),)], 0).learnt_ranges


@pytest.mark.parametrize("observer", ["minmax", "moving_average"])
def test_where_no_range_was_clipped_nothing_is_chosen(observer: str) -> None:
    before = candidate_of(Above().eval(), Scheme(observer=observer, algorithms=()))
    assert ranges(before, [(inputs(0),)], 0) is before


def test_without_samples_nothing_is_chosen() -> None:
    before = candidate_of(Above().eval())
    assert ranges(before, [], 0) is before
