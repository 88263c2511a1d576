"""Padding that torch's fast path of transformer encoders sets to zero is zero in graphs and around INT8 layers too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lq_plugin
from lq_plugin.eager import swap
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.graph.capture import capture

LEAST_DB = 30.0


class Encoder(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, norm=nn.LayerNorm(16) if norm else None)
        if norm:
            nn.init.ones_(self.encoder.norm.bias)

    def forward(self, ids: Tensor) -> Tensor:
        return self.encoder(self.table(ids), src_key_padding_mask=ids == 0).mean(1)


def padded(at_the_end: bool) -> Tensor:
    ids = torch.randint(1, 20, (4, 7), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate((3, 7, 5, 2)):
        ids[row, length:] = 0
    return ids if at_the_end else ids.flip(1)


def sqnr(given: Tensor, wanted: Tensor) -> float:
    metric = SignalToQuantizationNoise()
    metric.update(given, wanted)
    return float(metric.compute())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm", [False, True])
def test_padded_positions_are_what_eval_mode_makes_of_them(norm: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Encoder(norm).eval()
    graph = capture(model, [padded(True)])
    candidate = lq_plugin.quantize(model, [padded(True)], "dynamic")
    artifacts = lq_plugin.export(candidate, tmp_path)
    modules = [lq_plugin.load(artifact.path, factory=lambda: Encoder(norm)) for artifact in artifacts.values()]
    for ids in (padded(True), padded(False)):
        with torch.no_grad():
            wanted = model(ids)
            assert sqnr(graph.module(ids)[0], wanted) > 90
            assert all(sqnr(module(ids), wanted) > LEAST_DB for module in modules)
            with_zeros = swap.swapped(model, {"encoder.layers.0.linear1": model.encoder.layers[0].linear1})
            assert sqnr(with_zeros(ids), wanted) > 90
