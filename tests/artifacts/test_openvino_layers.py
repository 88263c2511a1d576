"""What OpenVINO executes between the kernels of convolutions and products."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import openvino
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lq_plugin
from lq_plugin import Scheme, cpu


class Skips(nn.Module):
    """A small U-Net, of which parts of the result are moved to linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.across, self.up = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(16, 8, 3, 1, 1)
        self.grow = nn.ConvTranspose2d(8, 8, 2, 2)
        self.heads = nn.ModuleList(nn.Linear(8, 4) for _ in range(5))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        skip = F.relu(self.down(x))
        y = self.grow(F.relu(self.across(F.max_pool2d(skip, 2))))
        y = F.relu(self.up(torch.cat([skip, y], 1)))
        rows = y.index_select(2, torch.tensor([1, 2])).permute(0, 2, 3, 1)
        parts = (y[..., -1, 0], y[:, :, 2].transpose(1, 2), rows, y[..., 0].chunk(2, 2)[1].permute(0, 2, 1))
        return tuple(head(part) for head, part in zip(self.heads, parts, strict=False))


def test_nothing_is_quantized_twice_and_only_integers_are_moved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch = torch.randn(4, 3, 16, 16)
    candidate = lq_plugin.quantize(Skips().eval(), [batch], Scheme(algorithms=()))
    artifact = lq_plugin.export(candidate, tmp_path, formats=["openvino"])["openvino"]
    compiled = openvino.Core().compile_model(artifact.path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    layers = [layer.get_rt_info() for layer in compiled.get_runtime_model().get_ops()]
    executed = Counter(f"{layer['layerType'].astype(str)} {layer['runtimePrecision'].astype(str)}" for layer in layers)
    # Without VNNI transposed convolutions are computed in float, and quantized after.
    assert executed["FakeQuantize f32"] == (1 if cpu.has_vnni() else 2)  # the input
    assert not {"FakeQuantize u8", "Gather f32", "Transpose f32", "StridedSlice f32", "Split f32"} & executed.keys()
    assert executed["Convolution u8"] == 3
    assert executed["FullyConnected u8"] == 4
    assert executed["Concatenation u8"] == 1
    for given, computed in zip(
        lq_plugin.load(artifact.path)(batch), candidate.in_torch("openvino")(batch), strict=True
    ):
        assert (given - computed).abs().max() < 0.05 * computed.abs().max()
