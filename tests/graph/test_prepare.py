"""A target is captured and folded in one place, and a graph is what the target was when it was prepared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from lq_plugin.errors import CaptureError
from lq_plugin.graph.capture import capture
from lq_plugin.graph.prepare import TrackedTarget, prepare

X = torch.arange(8.0).view(4, 2)


class Scaled(nn.Module):
    """Two linear layers of one weight, a BatchNorm and a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(self.first(x) * self.scale))


def times(parameter: Tensor, factor: float) -> nn.Parameter:
    return nn.Parameter(parameter.detach() * factor)


# What happens to a target, and whether it has to be captured anew.
CHANGES: dict[str, tuple[Callable[[Scaled], object], bool]] = {
    "in place": (lambda net: net.first.weight.data.mul_(30), False),
    "running statistics": (lambda net: net.norm.running_mean.add_(1), False),
    "an assigned buffer": (lambda net: setattr(net, "scale", torch.full((1,), 20.0)), False),
    "a new Parameter": (lambda net: setattr(net.first, "bias", times(net.first.bias, 40)), False),
    "weights tied no more": (lambda net: setattr(net.first, "weight", times(net.first.weight, 40)), True),
    "a new layer": (lambda net: setattr(net, "first", nn.Linear(2, 2)), True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tracked_target_is_prepared_as_it_is_now(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Scaled().eval()
    tracked, captures = TrackedTarget(), Mock(wraps=capture)
    monkeypatch.setattr("lq_plugin.graph.prepare.capture", captures)
    early = tracked.prepared(net, [X], {})
    (before,) = early.module(X)
    apply, anew = CHANGES[change]
    apply(net)
    now = tracked.prepared(net, [X], {})
    assert captures.call_count == 1 + anew
    expected = prepare(net, [X])
    assert (now.digest, now.structure) == (expected.digest, expected.structure)
    assert now.digest != early.digest
    torch.testing.assert_close(now.module(X)[0], net(X).detach(), rtol=1e-4, atol=1e-3)  # folding rounds differently
    assert torch.equal(early.module(X)[0], before)


def test_a_copy_of_a_tracked_target_captures_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    net, tracked, captures = Scaled().eval(), TrackedTarget({"x": [-2]}), Mock(wraps=capture)
    monkeypatch.setattr("lq_plugin.graph.prepare.capture", captures)
    given = tracked.prepared(net, [X], {})
    assert copy.deepcopy(tracked).prepared(net, [X], {}).digest == given.digest
    assert captures.call_count == 2


def test_a_target_that_could_not_be_captured_is_tried_again() -> None:
    net, tracked = Scaled().eval(), TrackedTarget()
    with pytest.raises(CaptureError, match="target: its forward was called without any tensor"):
        tracked.prepared(net, [3], {})
    assert tracked.prepared(net, [X], {}).digest == prepare(net, [X]).digest
