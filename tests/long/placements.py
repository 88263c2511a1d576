"""Placement by real measurement: whatever is decided on this machine is legal, recorded, and decided once.

``make test-long`` runs this, because the processes that measure take half a minute to start.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import lq_plugin
from lq_plugin import Scheme
from lq_plugin.store import STORE, Store


class Gated(nn.Module):
    """Convolutions with an activation that has no INT8 kernel on onnxruntime, and a large linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.wide, self.head = nn.Linear(16 * 16, 2048), nn.Linear(2048, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.second(nn.functional.hardswish(self.first(x))))
        return self.head(self.wide(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)).relu())


def test_what_is_measured_is_recorded_and_repeated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Gated().eval()
    candidate = lq_plugin.quantize(model, [torch.randn(8, 3, 32, 32) for _ in range(4)], Scheme(algorithms=()))
    formats, x = ["onnx", "openvino"], torch.randn(4, 3, 32, 32)
    first = lq_plugin.export(candidate, tmp_path, formats, threads=1, placement="auto")
    decided = Store(tmp_path / STORE).decisions()
    assert len([decision for decision in decided.values() if decision.reason.startswith("measured here")]) == 2
    again = lq_plugin.export(candidate, tmp_path, formats, threads=1, placement="auto")
    assert Store(tmp_path / STORE).decisions() == decided
    for name, artifact in first.items():
        assert again[name].float_ops == artifact.float_ops
        assert {op["op"] for op in artifact.quantized_ops} & {"conv2d", "linear"}
        with torch.no_grad():
            wanted = model(x)
            assert (lq_plugin.load(artifact.path)(x) - wanted).norm() < 0.05 * wanted.norm()
