"""Forwards that change their input or a buffer in place: artifacts compute the same, and change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lq_plugin
from lq_plugin import Scheme


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.1
        return self.layer(x)


class Running(nn.Module):
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return self.layer(x - self.mean)


@pytest.mark.parametrize("module", [Shifted(), Running()], ids=lambda module: type(module).__name__)
def test_artifacts_change_nothing(module: nn.Module, tmp_path: Path) -> None:
    data = torch.randn(16, 8)
    candidate = lq_plugin.quantize(module, [data.clone()], Scheme(algorithms=[]))
    expected = module(data.clone())
    for artifact in lq_plugin.export(candidate, tmp_path, ["onnx", "openvino", "pt2"]).values():
        loaded, given = lq_plugin.load(artifact.path), data.clone()
        first, second = loaded(given).clone(), loaded(given)
        assert torch.equal(given, data)
        assert torch.equal(first, second)
        assert (first - expected).square().sum() < 0.01 * expected.square().sum()
