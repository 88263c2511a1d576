"""Layers corrected one after the other come nearer to FP32 on samples that they have never seen."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from zoo import ZOO, settled
from zoo.pictures import images

import lq_plugin
from lq_plugin.algorithms import spilling
from lq_plugin.algorithms.columns import product_of
from lq_plugin.algorithms.sequential import sequential
from lq_plugin.candidate import StaticCandidate
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.graph.nodes import attribute
from lq_plugin.qparams import weight_qparams
from lq_plugin.scheme import Scheme

PLAIN = Scheme(algorithms=[])  # the algorithm is called by the tests
COARSE = replace(PLAIN, weight_granularity="per_tensor", reduce_range=True)  # errors of weights are the larger part


class Products(nn.Module):
    """A linear layer, ``addmm`` and ``matmul``."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 24)
        self.add, self.factor, self.last = torch.randn(24), torch.randn(24, 24) / 5, torch.randn(24, 8) / 5

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.add, self.linear(x).relu(), self.factor).relu() @ self.last


def vectors(generator: torch.Generator, samples: int) -> Tensor:
    return torch.randn(samples, 16, generator=generator) @ torch.randn(
        16, 16, generator=torch.Generator().manual_seed(9)
    )


class Mixed(nn.Module):
    """Every kind of layer that is corrected."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, bias=False),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding="same", groups=8),
            nn.ReLU6(),
            nn.ConvTranspose2d(8, 6, 2, 2, groups=2),
            nn.ReLU(),
            nn.Conv2d(6, 8, 1, groups=2),
            nn.Flatten(2),
            nn.Conv1d(8, 4, 3, dilation=2),
            nn.ConvTranspose1d(4, 2, 3, stride=2, output_padding=1),
            nn.Flatten(),
            nn.Linear(244, 16),
        )
        self.products = Products()

    def forward(self, x: Tensor) -> Tensor:
        return self.products(self.layers(x))


def pictures(generator: torch.Generator, samples: int) -> Tensor:
    return images(generator, samples, size=9)


def rectified(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*(each for layer in layers[:-1] for each in (layer, nn.ReLU6())), layers[-1])


def small(generator: torch.Generator, samples: int) -> Tensor:
    return images(generator, samples, size=12)


# How to build it, its inputs, and the least gain in decibels.
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator, int], Tensor], float]] = {
    "conv2d": (
        lambda: rectified(nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3, 2), nn.Conv2d(8, 4, 1)),
        small,
        0.5,
    ),
    "depthwise": (
        lambda: rectified(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 4, 1)),
        small,
        1.0,
    ),
    "conv_transpose2d": (
        lambda: rectified(nn.Conv2d(3, 8, 3, 2), nn.ConvTranspose2d(8, 8, 2, 2, groups=2), nn.Conv2d(8, 2, 1)),
        small,
        0.1,
    ),
    "conv1d": (
        lambda: rectified(nn.Conv1d(2, 8, 3, padding="same"), nn.Conv1d(8, 4, 3, 2)),
        lambda g, n: images(g, n, 2, 8).flatten(2),
        0.3,
    ),
    "conv3d": (
        lambda: rectified(nn.Conv3d(1, 8, 3, padding=1), nn.ConvTranspose3d(8, 2, 2, 2)),
        lambda g, n: images(g, n, 1, 16).view(n, 1, 4, 8, 8),
        0.2,
    ),
    "products": (Products, vectors, 2.0),
}


def calls_of(batch: Callable[[torch.Generator, int], Tensor], count: int, samples: int = 32) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[batch(generator, samples)] for _ in range(count)]


def made(model: nn.Module, calls: Sequence[Sequence[Tensor]], scheme: Scheme = PLAIN) -> StaticCandidate:
    candidate = lq_plugin.quantize(model.eval(), [tuple(call) for call in calls], scheme)
    assert isinstance(candidate, StaticCandidate)
    return candidate


def built(model: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[model][0]()


def sqnr(candidate: StaticCandidate, calls: Sequence[Sequence[Tensor]], runtime: str = "onnxruntime") -> float:
    metric, module = SignalToQuantizationNoise(), candidate.converted(runtime).module
    for call in calls:
        metric.update(module(*call), candidate.reference.module(*call))
    return metric.compute().item()


def int8_everywhere(candidate: StaticCandidate) -> set[str]:
    """Layers that no runtime leaves float, as some do with transposed convolutions."""
    return set.intersection(*(set(candidate.placed(runtime).weights) for runtime in candidate.runtimes))


@pytest.mark.parametrize("model", MODELS)
def test_held_out_samples_come_out_nearer_to_fp32(model: str) -> None:
    _, batch, gain = MODELS[model]
    calls = calls_of(batch, 8)
    candidate = made(built(model), calls[:6], COARSE)
    corrected = sequential(candidate, calls[:6], 0)
    assert corrected.weight_scales.keys() == int8_everywhere(candidate)
    for runtime in ("onnxruntime", "openvino"):  # torch quantizes what OpenVINO does
        assert sqnr(corrected, calls[6:], runtime) > sqnr(candidate, calls[6:], runtime) + gain


@pytest.fixture(scope="module")
def mixed() -> StaticCandidate:
    """Every kind of layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return made(Mixed(), calls_of(pictures, 2))


@pytest.mark.parametrize(
    "scheme",
    [
        replace(PLAIN, reduce_range=False),
        COARSE,
        replace(PLAIN, reduce_range=True, weight_symmetric=False),
        replace(PLAIN, reduce_range=False, weight_symmetric=False, weight_granularity="per_tensor"),
    ],
    ids=["8 bits", "7 bits per tensor", "7 bits asymmetric", "8 bits asymmetric per tensor"],
)
@pytest.mark.parametrize("samples", [64, 16])
def test_the_integers_of_the_artifact_are_those_that_were_learnt(
    mixed: StaticCandidate, scheme: Scheme, samples: int
) -> None:
    candidate = replace(mixed, scheme=scheme)
    corrected = sequential(candidate, calls_of(pictures, 2, samples // 2), 0)
    assert corrected.weight_scales.keys() == int8_everywhere(candidate)
    learnt, spec, moved = weights_of(corrected.graph.module), scheme.weights, 0
    for name, (dequantize, integers) in dequantized(corrected).items():
        scale = corrected.weight_scales[name]
        assert torch.equal(dequantize, learnt[name])
        assert spec.lowest <= integers.min() <= integers.max() <= spec.highest
        moved += not torch.equal(weight_qparams(learnt[name], spec, corrected.united.weights[name][1])[0], scale)
    assert moved or not spec.per_channel  # the range of the weights alone would give other scales


def weights_of(module: fx.GraphModule) -> dict[str, Tensor]:
    return {
        node.name: attribute(module, node.args[product.weight_position])
        for node in module.graph.nodes
        if (product := product_of(node))
    }


def dequantized(candidate: StaticCandidate) -> dict[str, tuple[Tensor, Tensor]]:
    """Each layer's weight in the artifact, dequantized and as integers."""
    module = candidate.converted("onnxruntime").module
    found = {}
    for node in module.graph.nodes:
        if node.name in candidate.weight_scales:
            pair = node.args[2 if "addmm" in node.name else 1]
            args = [attribute(module, arg) if isinstance(arg, fx.Node) else arg for arg in pair.args]
            found[node.name] = pair.target(*args), args[0]
    return found


def test_the_same_seed_gives_the_same_bytes_and_nothing_given_is_changed(mixed: StaticCandidate) -> None:
    calls = calls_of(pictures, 2)
    before, inputs = copy.deepcopy(mixed.graph.module.state_dict()), copy.deepcopy(calls)
    state = torch.random.get_rng_state()
    one, other = sequential(mixed, calls, 1), sequential(mixed, calls, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.graph.digest == other.graph.digest != mixed.graph.digest
    assert all(torch.equal(one.weight_scales[name], other.weight_scales[name]) for name in one.weight_scales)
    assert one.calibration is mixed.calibration
    assert one.reference is mixed.reference is mixed.graph
    assert not mixed.weight_scales
    torch.testing.assert_close(mixed.graph.module.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(calls, inputs, rtol=0, atol=0)
    assert [node.name for node in one.graph.module.graph.nodes if node.op == "call_function"] == [
        node.name for node in mixed.graph.module.graph.nodes if node.op == "call_function"
    ]
    assert constants(one) == constants(mixed)


def constants(candidate: StaticCandidate) -> int:
    module = candidate.graph.module
    return sum(attribute(module, node).numel() for node in module.graph.nodes if node.op == "get_attr")


def test_few_samples_move_no_integers_but_scales_and_biases(mixed: StaticCandidate) -> None:
    corrected = sequential(mixed, calls_of(pictures, 1, 16), 0)
    plain = replace(
        mixed,
        weight_scales={
            name: weight_qparams(weight, mixed.scheme.weights, mixed.united.weights[name][1])[0]
            for name, weight in weights_of(mixed.graph.module).items()
            if name in int8_everywhere(mixed)
        },
    )
    given, learnt = dequantized(plain), dequantized(corrected)
    for name, (_, integers) in given.items():
        assert torch.equal(integers, learnt[name][1])
        assert not torch.equal(plain.weight_scales[name], corrected.weight_scales[name])


def test_weights_that_several_operators_read_stay() -> None:
    for name, read_once in (("tied", ["linear", "linear_1"]), ("called_twice", [])):
        calls = [zoo_call(name, seed) for seed in range(3)]
        candidate = made(settled(ZOO[name]), calls)
        corrected = sequential(candidate, calls, 0)
        assert sorted(corrected.weight_scales) == read_once
        assert read_once or corrected is candidate


def zoo_call(name: str, seed: int) -> list[Tensor]:
    batch = ZOO[name].batch(torch.Generator().manual_seed(seed), 16)
    return [batch] if isinstance(batch, Tensor) else list(batch)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_layer_where_no_numbers_arrive_is_rounded_to_the_nearest(mixed: StaticCandidate, value: float) -> None:
    calls = calls_of(pictures, 2)
    calls[1][0][3, 1] = value
    corrected = sequential(mixed, calls, 0)
    assert all(weight.isfinite().all() for weight in weights_of(corrected.graph.module).values())
    assert sqnr(corrected, calls_of(pictures, 1)) > 0


def test_dead_and_constant_inputs_and_fewer_columns_than_inputs_are_no_trouble() -> None:
    def batch(generator: torch.Generator, samples: int) -> Tensor:
        x = torch.randn(samples, 96, generator=generator)
        x[:, :10], x[:, 10:20] = 0, 3
        return x

    calls = calls_of(batch, 2, 16)
    candidate = made(nn.Sequential(nn.Linear(96, 8), nn.Linear(8, 4, bias=False)), calls)
    corrected = sequential(candidate, calls, 0)
    assert sqnr(corrected, calls) > sqnr(candidate, calls)
    assert [tuple(t.shape) for t in corrected.graph.module.buffers()].count((8,)) == 1  # no bias is added
    for constant in (0.0, 0.1):
        corrected = sequential(candidate, [[torch.full((32, 96), constant)]] * 2, 0)
        assert all(weight.isfinite().all() for weight in weights_of(corrected.graph.module).values())


def test_calls_may_differ_in_length(mixed: StaticCandidate) -> None:
    calls = calls_of(pictures, 3)
    calls[2] = [t[:5] for t in calls[2]]
    assert sqnr(sequential(mixed, calls, 0), calls) > sqnr(mixed, calls)


def test_without_samples_nothing_is_corrected(mixed: StaticCandidate) -> None:
    assert sequential(mixed, [], 0) is mixed


def test_activations_beyond_the_limit_are_spilled_to_disk(
    mixed: StaticCandidate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spilled: list[int] = []
    original = spilling.on_disk

    def on_disk(results: Sequence[Tensor]) -> list[Tensor]:
        made = original(results)
        spilled.append(sum(tensor.nbytes for tensor in made))
        assert spilling.in_memory([made]) == 0
        return made

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(spilling, "on_disk", on_disk)
    calls = calls_of(pictures, 2)
    wanted = sequential(mixed, calls, 0)
    assert not spilled
    monkeypatch.setattr(spilling, "LIMIT", 100_000)
    assert sequential(mixed, calls, 0).graph.digest == wanted.graph.digest
    assert sum(spilled) > 100_000
    assert not list(tmp_path.iterdir())


def test_weights_do_not_count_as_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [[torch.rand(32, 256)]]
    candidate = made(nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)), calls)
    monkeypatch.setattr(spilling, "LIMIT", 2 * 256 * 256 * 4)  # both weights; an activation is an eighth of one
    monkeypatch.setattr(spilling, "on_disk", lambda results: pytest.fail("spilled"))
    assert sequential(candidate, calls, 0) is not candidate
