"""Learnt rounding: the same integers in every format, inputs as the layers see them, and kept only where it helps."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import lq_plugin
from lq_plugin import DynamicCandidate, Scheme
from lq_plugin.algorithms.weight_rounding import _COLUMNS, weight_rounding
from lq_plugin.artifacts import onnx_gru
from lq_plugin.errors import ConfigError
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.qparams import integers_of

INPUTS = 12


class Network(nn.Module):
    """An LSTM in both directions, a GRU and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(INPUTS, 8, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(16, 10, bias=False)
        self.up, self.head = nn.Linear(10, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.gru(self.lstm(x)[0].transpose(0, 1))[0]
        return self.head(torch.relu(self.up(hidden[-1])))


def data(samples: int) -> Tensor:
    """Sequences whose features are correlated, as real ones are."""
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(INPUTS, INPUTS, generator=draw) * torch.logspace(0, -1.5, INPUTS)
    return torch.randn(samples, 6, INPUTS, generator=draw) @ mix


def candidate(model: nn.Module, x: Tensor, **options: Any) -> DynamicCandidate:
    made = lq_plugin.quantize(model, x.split(16), Scheme("dynamic", **options))
    assert isinstance(made, DynamicCandidate)
    return made


def sqnr(given: Any, wanted: Any) -> float:
    metric = SignalToQuantizationNoise()
    metric.update(given, wanted)
    return metric.compute().item()


def in_onnx(graph: Any) -> Iterator[Any]:
    """Integer matrices of a graph and of the steps inside it, a row for each output."""
    for array in map(onnx.numpy_helper.to_array, graph.initializer):
        if array.dtype == np.int8 and array.ndim > 1 and array.any():
            yield from array.reshape(-1, *array.shape[-2:]).swapaxes(1, 2)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from in_onnx(attribute.g)


def rows(matrices: Iterator[Any]) -> Counter[bytes]:
    return Counter(row.tobytes() for matrix in matrices for row in matrix)


@pytest.mark.parametrize(("bits", "granularity"), [(8, "per_channel"), (7, "per_tensor")])
def test_what_was_learnt_becomes_the_same_integers_in_every_format(
    bits: int, granularity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_gru, "LEAST_SPEEDUP", 0.0)
    monkeypatch.setattr(onnx_gru, "_SECONDS", 0.0)
    torch.manual_seed(0)
    options: Any = {"reduce_range": bits == 7, "weight_granularity": granularity}
    plain = candidate(Network().eval(), data(32), algorithms=(), **options)
    learnt = weight_rounding(plain, [(data(32),)], 0)
    weights = {name: tensor for name, tensor in learnt.module.named_parameters() if "weight" in name}
    spec = learnt.scheme.weights
    expected = {name: integers_of(tensor, spec, 0) for name, tensor in weights.items()}
    for name, (integers, scale) in expected.items():
        trained = plain.module.get_parameter(name)
        before, same = integers_of(trained, spec, 0)
        torch.testing.assert_close(scale, same, rtol=1e-6, atol=0)
        assert 0 < (integers != before).float().mean() < 0.5, name
        step = scale.view(-1, 1) if spec.per_channel else scale
        torch.testing.assert_close(integers * step, weights[name].detach(), rtol=1e-6, atol=0)
    artifacts = lq_plugin.export(learnt, tmp_path, ["onnx"])
    tensors = safetensors.torch.load_file(artifacts["torch"].path / "model.safetensors").values()
    wanted = rows(integers.numpy() for integers, _ in expected.values())
    assert rows(tensor.numpy() for tensor in tensors if tensor.dtype == torch.int8) == wanted
    assert rows(in_onnx(onnx.load(artifacts["onnx"].path / "model.onnx").graph)) == wanted


@pytest.mark.parametrize(("kind", "layer"), [("lstm", nn.LSTM), ("gru", nn.GRU)])
@pytest.mark.parametrize(("packed", "bias", "state"), [(True, True, True), (False, False, True), (True, True, False)])
def test_hidden_states_are_those_that_each_step_starts_from(
    kind: str, layer: type[Any], packed: bool, bias: bool, state: bool
) -> None:
    torch.manual_seed(0)
    made, x, lengths = layer(3, 5, 2, bidirectional=True, bias=bias), torch.randn(7, 4, 3), torch.tensor([2, 7, 1, 4])
    start = torch.randn(4, 4, 5) if state else torch.zeros(4, 4, 5)
    starts = (start, start.flip(0)) if kind == "lstm" else (start,)
    given = pack_padded_sequence(x, lengths, enforce_sorted=False) if packed else x
    hx = (starts if kind == "lstm" else start) if state else None
    with torch.no_grad():
        seen = {name: columns.mT @ columns for name, columns in _COLUMNS[kind](made, given, hx)}
        wanted = moments_by_steps(made, x, lengths if packed else torch.full((4,), 7), starts)
    assert seen.keys() == wanted.keys() == {name for name, _ in made.named_parameters() if "weight" in name}
    for name, moments in wanted.items():
        torch.testing.assert_close(seen[name], moments, rtol=1e-4, atol=1e-5)


def moments_by_steps(layer: Any, x: Tensor, lengths: Tensor, starts: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Second moments of what the matrices multiply: a cell that walks over one sequence at a time."""
    found: dict[str, Tensor] = {}
    cell = nn.LSTMCell if len(starts) == 2 else nn.GRUCell
    for sample, length in enumerate(lengths.tolist()):
        inputs = x[:length, sample]
        for number in range(layer.num_layers):
            outputs = []
            for direction, suffix in enumerate(("", "_reverse")):
                walking = cell(inputs.shape[1], layer.hidden_size, bias=layer.bias)
                for name, parameter in walking.named_parameters():
                    parameter.copy_(getattr(layer, f"{name}_l{number}{suffix}"))
                states = [state[2 * number + direction, sample] for state in starts]
                steps = []
                for step in inputs.flip(0) if direction else inputs:
                    for part, column in (("ih", step), ("hh", states[0])):
                        name = f"weight_{part}_l{number}{suffix}"
                        found[name] = found.get(name, torch.zeros(())) + column[:, None] * column
                    made = walking(step, tuple(states) if len(states) == 2 else states[0])
                    states = list(made) if len(states) == 2 else [made]
                    steps.append(states[0])
                outputs.append(torch.stack(steps).flip(0) if direction else torch.stack(steps))
            inputs = torch.cat(outputs, 1)
    return found


@pytest.mark.parametrize(("speedup", "trained"), [(0.0, ["w0"]), (100.0, ["w0", "r0"])])
def test_products_that_stay_float_keep_their_trained_weights(
    speedup: float, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_gru, "LEAST_SPEEDUP", speedup)
    monkeypatch.setattr(onnx_gru, "_SECONDS", 0.0)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 12)).eval(), torch.randn(5, 32, 3)
    learnt = weight_rounding(candidate(model, x, algorithms=()), [(x,)], 0)
    assert not torch.equal(learnt.module.get_parameter("1.weight_hh_l0"), model.get_parameter("1.weight_hh_l0"))
    made = onnx.load(lq_plugin.export(learnt, tmp_path, ["onnx"])["onnx"].path / "model.onnx")
    arrays = [onnx.numpy_helper.to_array(each) for each in made.graph.initializer]
    floats = {tuple(sorted(array.flatten().tolist())) for array in arrays if array.dtype == np.float32}
    wanted = {"w0": "1.weight_ih_l0", "r0": "1.weight_hh_l0"}
    for part, name in wanted.items():
        values = tuple(sorted(model.get_parameter(name).flatten().tolist()))
        assert (values in floats) == (part in trained)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(72, 72), nn.ReLU(), nn.Linear(72, 8))


def test_it_is_kept_where_it_helps_in_both_formats_with_the_same_nodes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = perceptron().eval(), data(192).flatten(1)
    auto, none = (candidate(model, x[:128], reduce_range=True, algorithms=given) for given in ("auto", ()))
    assert none.learning is None
    assert auto.learning is not None
    (step,) = auto.learning.steps
    assert (step.algorithm, step.outcome, step.before.keys()) == ("rounding", "kept", {"torch"}), step.reason
    assert auto.reference.digest == none.graph.digest != auto.graph.digest
    quality, nodes = {}, {}
    for name, one in (("auto", auto), ("none", none)):
        for form, artifact in lq_plugin.export(one, tmp_path / name, ["onnx"]).items():
            loaded = lq_plugin.load(artifact.path, factory=perceptron)
            with torch.no_grad():
                quality[name, form] = sqnr(loaded(x[128:]), model(x[128:]))
        nodes[name] = Counter(node.op_type for node in onnx.load(tmp_path / name / "onnx/model.onnx").graph.node)
    assert nodes["auto"] == nodes["none"]
    assert all(quality["auto", form] > quality["none", form] + 0.3 for form in ("onnx", "torch")), quality


class Tied(nn.Module):
    """Its table is the weight of its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.mix(self.table(ids)).mean(1))


def test_a_weight_that_something_else_reads_is_left_alone() -> None:
    torch.manual_seed(0)
    ids = torch.randint(20, (64, 5))
    plain = lq_plugin.quantize(Tied().eval(), [ids], Scheme("dynamic", algorithms=(), skip=["head"]))
    assert isinstance(plain, DynamicCandidate)
    learnt = weight_rounding(plain, [(ids,)], 0)
    before = dict(plain.module.named_parameters())
    changed = {name for name, tensor in learnt.module.named_parameters() if not torch.equal(tensor, before[name])}
    assert changed == {"mix.weight"}
    only = lq_plugin.quantize(Tied().eval(), [ids], Scheme("dynamic", algorithms=(), only=["head"]))
    assert isinstance(only, DynamicCandidate)
    assert weight_rounding(only, [(ids,)], 0) is only


def test_batches_without_an_end_are_read_only_as_far_as_they_are_needed() -> None:
    read = []

    def endless() -> Iterator[Tensor]:
        for number in itertools.count():
            read.append(number)
            yield torch.randn(32, 8, generator=torch.Generator().manual_seed(number))

    made = lq_plugin.quantize(nn.Linear(8, 4).eval(), endless(), Scheme("dynamic", algorithm_samples=100))
    assert len(read) == 4
    assert made.learning is not None
    assert (made.learning.samples, made.learning.judged) == (96, 32)


class Branching(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input * 2 if input.sum() > 1e6 else input)


@pytest.mark.parametrize(
    ("model", "samples", "reason"),
    [
        (nn.Linear(8, 4), 16, "16 samples are too few to learn from; 32 are needed"),
        (nn.Sequential(Branching(8, 8), nn.Linear(8, 4)), 64, "CaptureError"),
        (nn.Sequential(Branching(8, 4)), 64, "CaptureError"),
    ],
)
def test_where_nothing_can_be_learnt_the_reason_is_listed(model: nn.Module, samples: int, reason: str) -> None:
    made = lq_plugin.quantize(model.eval(), torch.randn(samples, 8).split(16), "dynamic")
    assert made.learning is not None
    (step,) = made.learning.steps
    assert (step.algorithm, step.outcome) == ("rounding", "not_tried")
    assert reason in step.reason


def test_algorithms_belong_to_methods() -> None:
    assert Scheme("dynamic").algorithm_names == ("rounding",)
    assert "rounding" not in Scheme().algorithm_names
    with pytest.raises(ConfigError, match="'sequential' is not available for dynamic quantization"):
        Scheme("dynamic", algorithms=["sequential"])
    with pytest.raises(ConfigError, match="'rounding' is not available for static"):
        Scheme(algorithms=["rounding"])
