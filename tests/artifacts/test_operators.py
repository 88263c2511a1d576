"""What surrounds INT8 layers is computed as torch computes it: operators of which runtimes computed something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lq_plugin
from lq_plugin import Scheme
from lq_plugin.candidate import StaticCandidate
from lq_plugin.errors import UnsupportedError

CHANNELS, SIZE = 8, 14
KERNEL = torch.linspace(-1, 1, CHANNELS**2 * 9).sin().view(CHANNELS, CHANNELS, 3, 3) / 9
SQUARE = torch.linspace(-1, 1, SIZE**2).sin().view(SIZE, SIZE)
OPERATORS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "average, padded": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average, rounded up": lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True),
    "average, rounded up and padded": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average, its own divisor": lambda x: F.avg_pool2d(x, 3, 2, divisor_override=5),
    "average, its last window left out": lambda x: torch.ops.aten.avg_pool2d(x, [2], [3], [1], True),
    "average, minus the value": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x,
    "average in one dimension": lambda x: F.avg_pool1d(x.flatten(2), 5, 3, 1, ceil_mode=True).unsqueeze(3),
    "adaptive maximum": lambda x: F.adaptive_max_pool2d(x, 1),
    "maximum, rounded up": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "maximum, its last window left out": lambda x: F.max_pool2d(x, 2, 3, 1, ceil_mode=True),
    "largest of all": lambda x: x / (x.amax() + x.max()),
    "largest of a row": lambda x: x.amax(2, keepdim=True),
    "smallest of a row": lambda x: x.amin(2, keepdim=True),
    "largest with its place": lambda x: x.max(2, keepdim=True)[0],
    "mean and largest of channels": lambda x: torch.cat([x.mean(1, True), x.amax(1, True)], 1).repeat(1, 4, 1, 1),
    "nearest, smaller": lambda x: F.interpolate(x, size=(2, 3)),
    "nearest, larger": lambda x: F.interpolate(x, size=(16, 16)),
    "linear": lambda x: F.interpolate(x, size=(5, 5), mode="bilinear"),
    "cubic": lambda x: F.interpolate(x, size=(29, 29), mode="bicubic"),
    "reflected": lambda x: F.pad(x, (2, 1, 0, 3), mode="reflect"),
    "group norm": lambda x: F.group_norm(x, 4),
    "distances": lambda x: torch.einsum("bchw,bdhw->bcd", x, x).unsqueeze(3) / SIZE,
    "dilated": lambda x: F.conv2d(x, KERNEL, padding="same", dilation=2),
    "transposed, with the same weight": lambda x: F.conv_transpose2d(x, KERNEL, stride=2, output_padding=1),
    "linear, with one weight twice": lambda x: F.linear(F.linear(x, SQUARE), SQUARE.t()),
    "layer norm of a row": lambda x: F.layer_norm(x, (SIZE,)),
    "layer norm of all": lambda x: F.layer_norm(x, (CHANNELS, SIZE, SIZE)),
    "windows": lambda x: F.unfold(x, 2, stride=2).unflatten(2, (SIZE // 2, SIZE // 2))[:, ::4],
    "attention without heads": lambda x: F.scaled_dot_product_attention(*[x.flatten(2)] * 3).view(x.shape),
}
BESIDE = "what is read twice"


class Everything(nn.Module):
    """Each operator between two convolutions, of which the first is read by another one too."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.before = nn.ModuleList(nn.Conv2d(3, CHANNELS, 3, padding=1, bias=bias) for _ in OPERATORS)
        self.after, self.beside = nn.Conv2d(CHANNELS, 4, 1), nn.Conv2d(CHANNELS, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        values = {name: before(x) for name, before in zip(OPERATORS, self.before, strict=True)}
        results = {name: self.after(operator(values[name])) for name, operator in OPERATORS.items()}
        return {**results, BESIDE: torch.stack([self.beside(value) for value in values.values()])}


@pytest.fixture(scope="module")
def data() -> Tensor:
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def candidate(data: Tensor, bias: bool) -> StaticCandidate:
    torch.manual_seed(0)
    made = lq_plugin.quantize(Everything(bias), [data], Scheme(algorithms=[]))
    assert isinstance(made, StaticCandidate)
    return made


# OpenVINO moves scales of channels behind what follows, unless there is a bias.
@pytest.mark.parametrize(
    ("kind", "runtime", "bias"),
    [("onnx", "onnxruntime", True), ("openvino", "openvino", True), ("openvino", "openvino", False)],
)
def test_each_is_as_close_to_float_as_in_torch(
    kind: str, runtime: str, bias: bool, data: Tensor, tmp_path: Path
) -> None:
    made = candidate(data, bias)
    wanted = made.reference.module(data)
    rounded = made.in_torch(runtime)(data)
    loaded = lq_plugin.load(lq_plugin.export(made, tmp_path, [kind])[kind].path)(data)
    found = {
        name: (_sqnr(value, loaded[name]), _sqnr(value, own))
        for name, value, own in zip((*OPERATORS, BESIDE), wanted, rounded, strict=True)
    }
    assert {name: both for name, both in found.items() if both[0] < both[1] - 1 or both[1] < 15} == {}


def _sqnr(wanted: Tensor, given: Tensor) -> float:
    noise = (wanted - given).square().sum().clamp(min=1e-12)
    return float(10 * torch.log10(wanted.square().sum() / noise))


class Antialiased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.first(x), size=(5, 5), mode="bilinear", antialias=True)


def test_what_openvino_computes_wrongly_is_refused(data: Tensor, tmp_path: Path) -> None:
    made = lq_plugin.quantize(Antialiased(), [data], Scheme(algorithms=[]))
    with pytest.raises(UnsupportedError, match="without antialiasing"):
        lq_plugin.export(made, tmp_path, ["openvino"])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(self.second(self.first(x)), self.first.weight)


@pytest.mark.parametrize("options", [{"only": ["second"]}, {"weight_granularity": "per_tensor"}], ids=str)
def test_one_weight_of_convolutions_of_both_kinds(options: dict[str, Any], data: Tensor, tmp_path: Path) -> None:
    made = lq_plugin.quantize(Tied(), [data], Scheme(algorithms=[], **options))
    (wanted,) = made.in_torch("openvino")(data)
    given = lq_plugin.load(lq_plugin.export(made, tmp_path, ["openvino"])["openvino"].path)(data)
    assert _sqnr(wanted, given) > 30
