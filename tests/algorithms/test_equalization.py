"""Scales between layers never change the float function, and recover what one scale for uneven channels loses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import lq_plugin
from lq_plugin.algorithms.equalization import equalization
from lq_plugin.algorithms.pairs import pairs
from lq_plugin.candidate import StaticCandidate
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.graph.prepare import prepare
from lq_plugin.scheme import Scheme

Calls = list[list[Tensor]]
CHANNELS = 8
SPREAD = 2.0 ** torch.tensor(
    [0, 6, -6, 3, -3, 5, -5, 1]
)  # powers of two: the float function stays as it is, bit for bit


class Clamp(nn.Module):
    def __init__(self, limits: Tensor) -> None:
        super().__init__()
        self.register_buffer("limits", limits)

    def forward(self, x: Tensor) -> Tensor:
        return torch.minimum(torch.relu(x), self.limits)


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Turned(nn.Module):
    """Channels become the rows of what a linear layer reads."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


def made(*layers: nn.Module, uneven: bool = True) -> nn.Sequential:
    """A network in which every layer's output is made uneven by powers of two, and the next layer divides by them."""
    torch.manual_seed(0)
    for layer in layers:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    weighted = [layer for layer in layers if hasattr(layer, "weight") and layer.weight.dim() > 1]
    with torch.no_grad():
        for first, second in pairwise(weighted if uneven else []):
            outputs = first.weight.transpose(0, 1) if isinstance(first, TRANSPOSED) else first.weight
            outputs.mul_(SPREAD.repeat(len(outputs) // len(SPREAD)).view(-1, *(1,) * (outputs.dim() - 1)))
            first.bias.mul_(SPREAD.repeat(len(first.bias) // len(SPREAD)))
            inputs = second.weight if isinstance(second, TRANSPOSED) else second.weight.transpose(0, 1)
            if len(inputs) == 1:  # depthwise
                second.weight.div_(SPREAD.view(-1, *(1,) * (second.weight.dim() - 1)))
            else:
                each = SPREAD.repeat_interleave(max(1, len(inputs) // len(SPREAD)))
                inputs.div_(each.view(-1, *(1,) * (inputs.dim() - 1)))
    return nn.Sequential(*layers).eval()


TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def quantized(model: nn.Module, *shape: int, **scheme: object) -> tuple[StaticCandidate, Calls]:
    generator = torch.Generator().manual_seed(0)
    calls = [[torch.randn(16, *shape, generator=generator)] for _ in range(4)]
    candidate = lq_plugin.quantize(model, [tuple(call) for call in calls], Scheme(algorithms=[], **scheme))
    assert isinstance(candidate, StaticCandidate)
    return candidate, calls


def decibels(given: nn.Module, wanted: nn.Module, calls: Calls) -> float:
    metric = SignalToQuantizationNoise()
    with torch.no_grad():
        for call in calls:
            metric.update(given(*call), wanted(*call))
    return float(metric.compute())


def onnxruntime_decibels(candidate: StaticCandidate, calls: Calls) -> float:
    return decibels(candidate.converted("onnxruntime").module, candidate.reference.module, calls)


def held_out(calls: Calls, factor: float = 1.0) -> Calls:
    generator = torch.Generator().manual_seed(1)
    return [[factor * torch.randn(tensor.shape, generator=generator) for tensor in call] for call in calls]


def conv(groups: int = 1, inputs: int = CHANNELS, outputs: int = CHANNELS) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)


NETWORKS: dict[str, tuple[Callable[[], Sequence[nn.Module]], tuple[int, ...]]] = {
    "images": (
        lambda: [
            conv(inputs=3), nn.ReLU(), nn.MaxPool2d(2), nn.ZeroPad2d((0, 1, 0, 1)), conv(groups=CHANNELS),
            nn.LeakyReLU(0.1), conv(), conv(), nn.AvgPool2d(2), nn.PReLU(), nn.Dropout(), nn.Flatten(),
            nn.Linear(CHANNELS * 4, CHANNELS), nn.ReLU(), nn.Linear(CHANNELS, 5),
        ],
        (3, 8, 8),
    ),
    "signals": (
        lambda: [
            nn.Conv1d(2, CHANNELS, 3), nn.ReLU(), nn.ConvTranspose1d(CHANNELS, CHANNELS, 2, stride=2), nn.ReLU(),
            nn.Conv1d(CHANNELS, 3, 1),
        ],
        (2, 16),
    ),
    "videos": (
        lambda: [nn.Conv3d(1, CHANNELS, 3), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(CHANNELS, 3, 1)], (1, 6, 6, 6)
    ),
    "tokens": (lambda: [nn.Linear(6, CHANNELS), nn.ReLU(), nn.Linear(CHANNELS, 5)], (7, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_uneven_channels_are_brought_together(name: str) -> None:
    layers, shape = NETWORKS[name]
    candidate, calls = quantized(made(*layers()), *shape)
    result = equalization(candidate, calls, 0)
    assert min(decibels(result.graph.module, candidate.reference.module, held_out(calls, f)) for f in (1, 100)) > 100
    before, after = onnxruntime_decibels(candidate, calls), onnxruntime_decibels(result, calls)
    assert before < 20
    assert after > before + 10


def grouped(outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(3, CHANNELS, 3), nn.ReLU(), nn.Conv2d(CHANNELS, 8, 3, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(8, 8, 2, stride=2, groups=4), nn.ReLU(), nn.Conv2d(8, outputs, 1),
    ]  # fmt: skip


def test_groups_of_channels_keep_their_places() -> None:
    model = made(*grouped(outputs=4), uneven=False)
    with torch.no_grad():
        for index in (0, 2):
            model[index].weight.mul_(SPREAD.view(-1, 1, 1, 1))
        model[4].weight.mul_(2.0 ** torch.arange(0, 10, 5).view(1, 2, 1, 1))
    candidate, calls = quantized(model, 3, 8, 8)
    result = equalization(candidate, calls, 0)
    assert result is not candidate
    assert decibels(result.graph.module, candidate.reference.module, held_out(calls)) > 100


def test_a_clamp_by_channel_becomes_one_that_kernels_fuse() -> None:
    clamp = Clamp(6 * SPREAD.view(-1, 1, 1))
    layers = [conv(inputs=3), clamp, conv(groups=CHANNELS), clamp, conv()]
    candidate, calls = quantized(made(*layers), 3, 8, 8)
    result = equalization(candidate, calls, 0)
    wide = held_out(calls, factor=100.0)
    assert min(decibels(result.graph.module, candidate.reference.module, each) for each in (wide, calls)) > 100
    clamps = [node.args[1:] for node in result.graph.module.graph.nodes if "hardtanh" in str(node.target)]
    assert [low for low, _ in clamps] == [0.0, 0.0]
    for runtime in ("onnxruntime", "openvino"):
        assert [op.op for op in candidate.placed(runtime).float_ops] == ["minimum", "minimum"]
        assert not result.placed(runtime).float_ops
    assert onnxruntime_decibels(result, calls) > max(30, onnxruntime_decibels(candidate, calls) + 10)


class Branches(nn.ModuleList):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [branch(x) for branch in self]


def test_what_would_change_the_function_or_the_size_is_left_alone() -> None:
    shared = conv()
    between = {
        "a weight that is read twice": [nn.ReLU(), shared],
        "and here": [nn.ReLU(), shared],
        "a clamp that channels share": [nn.ReLU6(), conv()],
        "not homogeneous": [nn.GELU(), conv()],
        "a value with other users": [Residual(nn.ReLU(), conv())],
        "padding other than zero": [nn.ConstantPad2d(1, 1.0), conv()],
        "channels that change places": [nn.PixelShuffle(2), conv(inputs=2)],
        "channels on another axis": [Turned(), nn.Linear(CHANNELS, 4)],
        "a clamp for each position": [Clamp(SPREAD), conv()],
    }
    branches = Branches([nn.Sequential(conv(inputs=3), *layers) for layers in between.values()])
    assert pairs(prepare(branches.eval(), [torch.randn(2, 3, 8, 8)]).module) == []


def test_even_channels_are_left_alone() -> None:
    candidate, calls = quantized(made(conv(inputs=3), nn.ReLU(), conv(), uneven=False), 3, 8, 8)
    assert equalization(candidate, calls, 0) is candidate


def depthwise_layers() -> list[nn.Module]:
    return [conv(inputs=3), nn.ReLU(), conv(groups=CHANNELS), nn.LeakyReLU(0.1), conv(outputs=4)]


@pytest.fixture(scope="module")
def depthwise() -> tuple[StaticCandidate, Calls]:
    return quantized(made(*depthwise_layers()), 3, 8, 8)


def test_only_changed_values_are_observed_anew(depthwise: tuple[StaticCandidate, Calls]) -> None:
    candidate, calls = depthwise
    digest = candidate.graph.digest
    result = equalization(candidate, calls, 0)
    before, after = candidate.statistics, result.statistics
    assert {name for name in after if after[name] is not before[name]} == {"relu", "conv2d_1", "leaky_relu"}
    assert before.keys() == after.keys()
    assert result.calibration is candidate.calibration
    assert result.reference is candidate.reference is candidate.graph
    assert candidate.graph.digest == digest != result.graph.digest


def test_the_same_samples_give_the_same_bytes(depthwise: tuple[StaticCandidate, Calls]) -> None:
    candidate, calls = depthwise
    first, second = (equalization(candidate, calls, seed) for seed in (0, 1))
    assert first.graph.digest == second.graph.digest


def test_what_was_learnt_is_left_alone(depthwise: tuple[StaticCandidate, Calls]) -> None:
    candidate, calls = depthwise
    learnt = replace(candidate, weight_scales={"conv2d_1": torch.ones(CHANNELS)})
    assert equalization(learnt, calls, 0) is learnt
    assert equalization(candidate, [], 0) is candidate  # nor can anything be learnt without samples
    ranges = replace(candidate, learnt_ranges={"leaky_relu": (0.0, 1.0)})
    before, after = candidate.statistics, equalization(ranges, calls, 0).statistics
    assert {name for name in after if after[name] is not before[name]} == {"relu"}


def test_one_scale_for_a_whole_weight_is_obeyed() -> None:
    candidate, calls = quantized(made(*depthwise_layers()), 3, 8, 8, weight_granularity="per_tensor")
    assert onnxruntime_decibels(candidate, calls) < 10
    assert onnxruntime_decibels(equalization(candidate, calls, 0), calls) > 25
