"""Scales, zero points and integers are the expected numbers, and nothing float is left behind."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, settled

import lq_plugin
from lq_plugin.candidate import StaticCandidate
from lq_plugin.errors import CalibrationError, ConfigError
from lq_plugin.graph.calibration import Calibration
from lq_plugin.graph.folding import fold
from lq_plugin.graph.graph import duplicate
from lq_plugin.graph.nodes import insert
from lq_plugin.scheme import Scheme

quantized = torch.ops.quantized_decomposed
PLAIN = Scheme(algorithms=())
GRID = torch.linspace(-1, 3, 41).view(-1, 1).expand(41, 8).contiguous()  # the range of every batch is [-1, 3]


def nodes_of(candidate: StaticCandidate, target: object, runtime: str = "openvino") -> list[tuple[Any, ...]]:
    graph = candidate.converted(runtime).module.graph
    return [node.args for node in graph.nodes if node.target is target]


def test_the_graphs_scale_is_that_of_what_was_seen() -> None:
    candidate = lq_plugin.quantize(nn.Linear(8, 4), [GRID], replace(PLAIN, observer="minmax"))
    ((_, scale, zero_point, lowest, highest, dtype),) = nodes_of(candidate, quantized.quantize_per_tensor.default)
    assert scale == pytest.approx(4 / 255)
    assert (zero_point, lowest, highest, dtype) == (64, 0, 255, torch.uint8)


class Skip(nn.Module):
    """A concatenation of a value and what a convolution makes of it, times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(4, 2, 1)
        self.second.weight.data *= factor

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last(torch.cat([x, self.second(x)], 1))


@pytest.mark.parametrize(("factor", "scales"), [(0.1, 1), (100.0, 2)])
def test_a_scale_is_shared_unless_other_readers_lost_more_than_a_bit(factor: float, scales: int) -> None:
    torch.manual_seed(0)
    candidate = lq_plugin.quantize(Skip(factor).eval(), [torch.randn(4, 1, 4, 4)], replace(PLAIN, observer="minmax"))
    found = nodes_of(candidate, quantized.quantize_per_tensor.default)
    assert len({scale for _, scale, *_ in found[1:]}) == scales
    assert len(found) == 3 + (scales - 1)  # what is joined of one scale is on its grid


class Nested(nn.Module):
    """A concatenation that a convolution reads, and that goes on into one with values 100 times as large."""

    def __init__(self, reads: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.small, self.large = (nn.ModuleList(nn.Conv2d(1, 4, 1) for _ in range(n)) for n in (3, 1))
        self.large[0].weight.data *= 100
        self.inner, self.outer, self.reads = nn.Conv2d(8, 4, 1), nn.Conv2d(16, 4, 1), reads

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second, third = (layer(x).relu() for layer in self.small)
        inner = torch.cat([first, second], 1)
        every = torch.cat([torch.cat([inner, third], 1), self.large[0](x).relu()], 1)
        return self.inner(self.reads(inner)), self.outer(every)


@pytest.mark.parametrize("reads", [lambda x: x[:, :8], torch.sigmoid])
def test_a_concatenation_that_others_read_keeps_its_scale_in_a_larger_one(reads: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = Nested(reads).eval(), torch.randn(16, 1, 8, 8)
    candidate = lq_plugin.quantize(model, [x], PLAIN)
    wanted = model(x)
    errors = [
        [(a - b).norm() for a, b in zip(candidate.in_torch(runtime)(x), wanted, strict=True)]
        for runtime in ("torch", "openvino")
    ]
    for separate, shared in zip(*errors, strict=True):
        assert shared < separate * 10 ** (1 / 20)  # less than 1 dB is lost


def test_algorithms_round_to_the_scales_of_the_artifact() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 1, 4, 4)
    candidate = lq_plugin.quantize(Nested().eval(), x.split(8), replace(PLAIN, algorithms=("sequential",)))
    assert isinstance(candidate, StaticCandidate)
    assert candidate.learning is not None
    assert [step.outcome for step in candidate.learning.steps if "openvino" in step.kept_on] == ["kept"]
    apart = candidate.plain.apart()
    for runtime, own in apart.items():
        assert own.united.scales == candidate.placed(runtime).scales
        assert own.united.sources <= own.ranges.keys()
    assert apart["openvino"] is not apart["torch"]


@pytest.mark.parametrize(("reduce_range", "limit"), [(False, 127), (True, 63)])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_weights_are_rounded_to_the_nearest_of_their_levels(reduce_range: bool, limit: int, granularity: str) -> None:
    layer = nn.Linear(8, 4)
    scheme = replace(PLAIN, reduce_range=reduce_range, weight_granularity=granularity)
    converted = lq_plugin.quantize(layer, [GRID], scheme).converted("openvino").module
    (integers,) = [tensor for tensor in tensors_of(converted) if tensor.dtype == torch.int8]
    weight = layer.weight.detach()
    largest = weight.abs().amax(1, keepdim=True) if granularity == "per_channel" else weight.abs().amax()
    scale = largest / ((2 * limit) / 2)
    assert integers.abs().max() == limit
    assert (integers * scale - weight).abs().max() <= 0.501 * scale.max()


def tensors_of(module: torch.fx.GraphModule) -> list[Tensor]:
    found = []
    for node in module.graph.nodes:
        if node.op == "get_attr":
            path, _, name = node.target.rpartition(".")
            found.append(getattr(module.get_submodule(path), name))
    return found


def test_transposed_convolutions_have_a_scale_for_each_output_channel() -> None:
    layer = nn.ConvTranspose2d(3, 5, 2)
    candidate = lq_plugin.quantize(layer, [torch.randn(4, 3, 8, 8)])
    ((_, _, _, axis, *_),) = nodes_of(candidate, quantized.dequantize_per_channel.default)
    assert axis == 1
    scales = [tensor for tensor in tensors_of(candidate.converted("openvino").module) if tensor.shape == (5,)]
    assert any(
        torch.allclose(s, layer.weight.detach().abs().amax((0, 2, 3)) / limit) for s in scales for limit in (63, 127)
    )


def test_no_float_weight_is_left_and_the_candidates_graph_stays_float() -> None:
    candidate = lq_plugin.quantize(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), [GRID], PLAIN)
    before = candidate.graph.module(GRID)[0]
    state = candidate.converted("torch").module.state_dict()
    assert not any(tensor.is_floating_point() and tensor.dim() > 1 for tensor in state.values())
    assert torch.equal(candidate.graph.module(GRID)[0], before)


def test_an_embedding_looks_up_integers() -> None:
    specimen = ZOO["tied"]
    model = settled(specimen)
    ids = specimen.batch(torch.Generator().manual_seed(0), 4)
    for granularity, scheme in (("per_channel", Scheme()), ("per_tensor", Scheme(weight_granularity="per_tensor"))):
        converted = lq_plugin.quantize(model, [ids], scheme).converted("onnxruntime").module
        looked_up = [n for n in converted.graph.nodes if n.target is torch.ops.aten.embedding.default]
        assert all(node.args[0].op == "get_attr" for node in looked_up), granularity
        tables = [getattr(converted, node.args[0].target) for node in looked_up]
        assert [table.dtype for table in tables].count(torch.int8) == 2


def test_layers_with_equal_weights_share_them() -> None:
    specimen = ZOO["called_twice"]
    candidate = lq_plugin.quantize(settled(specimen), [specimen.batch(torch.Generator().manual_seed(0), 4)])
    state = candidate.converted("onnxruntime").module.state_dict()
    assert sorted(tuple(t.shape) for t in state.values() if t.dtype == torch.int8) == [(8, 64), (16, 3, 3, 3)]


def test_a_reduction_keeps_its_dimension_until_after_it() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x).mean(1))

    candidate = lq_plugin.quantize(Pooled().eval(), [torch.randn(4, 6, 8)])
    ((_, dims, keepdim),) = nodes_of(candidate, torch.ops.aten.mean.dim)
    assert (dims, keepdim) == ([1], True)
    assert candidate.converted("openvino").module(torch.randn(4, 6, 8))[0].shape == (4, 4)


def test_a_value_without_statistics_is_named() -> None:
    candidate = lq_plugin.quantize(nn.Linear(8, 4), [GRID], PLAIN)
    empty = Calibration({}, candidate.calibration.provenance)
    with pytest.raises(CalibrationError, match=r"no statistics for \['tensors_0'\]"):
        StaticCandidate("static", candidate.graph, empty, candidate.scheme).converted("torch")


def test_statistics_of_another_graph_with_the_same_names_are_refused() -> None:
    given, other = (
        lq_plugin.quantize(nn.Sequential(nn.Linear(8, 8), *more), [GRID], PLAIN) for more in ((nn.ReLU(),), ())
    )
    assert isinstance(given, StaticCandidate)
    assert isinstance(other, StaticCandidate)
    assert set(other.calibration.statistics) <= set(given.calibration.statistics)
    with pytest.raises(CalibrationError, match=r"calibration: it belongs to another graph"):
        replace(other, calibration=given.calibration).converted("torch")


def test_equal_constants_are_stored_once_and_the_graph_runs() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.first, self.second = nn.Linear(8, 4), torch.full((1,), 3.0), torch.full((1,), 3.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.first + self.second

    converted = lq_plugin.quantize(Scaled(), [GRID], PLAIN).converted("torch").module
    assert converted(GRID)[0].shape == (41, 4)
    assert len([tensor for tensor in converted.buffers() if tensor.numel() == 1 and tensor.item() == 3]) == 1


@pytest.mark.parametrize("observer", ["minmax", "histogram"])
def test_calibration_in_parts_and_merged_gives_the_same_scales(observer: str) -> None:
    scheme = Scheme(observer=observer)
    model = settled(ZOO["resnet"])
    batches = [ZOO["resnet"].batch(torch.Generator().manual_seed(seed), 8) for seed in range(4)]
    whole = lq_plugin.calibrate(model, batches, scheme)
    parts = [lq_plugin.calibrate(model, part, scheme).statistics for part in (batches[2:], batches[:2])]
    assert not isinstance(scheme.observer, str)
    merged = {name: scheme.observer.merge([part[name] for part in parts]) for name in whole.statistics}
    assert Calibration(merged, whole.provenance).ranges(scheme.observer) == whole.ranges(scheme.observer)


class Products(nn.Module):
    """Two products and a sum between linear layers, whose names an inserted product could move."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) * x
        return self.second(torch.sigmoid(y) * y)


def test_what_is_inserted_moves_no_names_and_no_statistics() -> None:
    given = lq_plugin.quantize(Products().eval(), [GRID], PLAIN)
    assert isinstance(given, StaticCandidate)
    rewritten = duplicate(given.graph)
    nodes = {node.name: node for node in rewritten.module.graph.nodes}
    with rewritten.module.graph.inserting_after(nodes["linear"]):
        doubled = insert(rewritten.module.graph, torch.ops.aten.mul.Tensor, (nodes["linear"], 2.0))
    with rewritten.module.graph.inserting_after(doubled):
        halved = insert(rewritten.module.graph, torch.ops.aten.mul.Tensor, (doubled, 0.5))
    doubled.meta = halved.meta = nodes["linear"].meta
    nodes["mul"].replace_input_with(nodes["linear"], halved)
    rewritten.module.recompile()
    again = fold(rewritten)
    kept = {node.name: node for node in again.module.graph.nodes}
    assert kept.keys() - nodes.keys() == {"lq_mul", "lq_mul_1"}
    assert kept["mul"].args[0] is kept["lq_mul_1"]
    assert again.structure == given.graph.structure
    assert again.digest != given.graph.digest
    candidate = replace(given, graph=again, reference=given.graph)
    assert candidate.placed("onnxruntime").scales == given.placed("onnxruntime").scales
    for runtime in ("onnxruntime", "torch"):
        converted = candidate.converted(runtime)
        torch.testing.assert_close(converted.module(GRID), given.converted(runtime).module(GRID))
        calculated = {name for name, node in kept.items() if node.op == "call_function"}
        assert calculated <= {node.name for node in converted.module.graph.nodes}


@pytest.mark.parametrize(
    ("granularity", "scale"), [("per_channel", torch.linspace(0.01, 0.02, 4)), ("per_tensor", torch.tensor(0.1))]
)
def test_learnt_scales_of_weights_are_the_converted_graphs(granularity: str, scale: Tensor) -> None:
    layer = nn.Linear(8, 4)
    layer.weight.data = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    given = lq_plugin.quantize(layer, [GRID], replace(PLAIN, weight_granularity=granularity, reduce_range=False))
    assert isinstance(given, StaticCandidate)
    candidate = replace(given, weight_scales={"linear": scale})
    converted = candidate.converted("openvino").module
    (integers,) = [tensor for tensor in tensors_of(converted) if tensor.dtype == torch.int8]
    expected = (layer.weight.detach() / scale.view(-1, 1)).round().clamp(-127, 127)
    assert torch.equal(integers.float(), expected)
    rounded = nn.functional.linear(GRID, expected * scale.view(-1, 1), layer.bias).detach()
    torch.testing.assert_close(converted(GRID)[0], rounded, atol=0.05, rtol=0)
    assert not torch.equal(given.converted("openvino").module(GRID)[0], converted(GRID)[0])
    with pytest.raises(ConfigError, match=r"weight_scales: 'linaer' is unknown. Did you mean 'linear'"):
        replace(given, weight_scales={"linaer": scale})
    with pytest.raises(ConfigError, match=r"weight_scales: a scale of shape \[3\] does not fit .* \[4, 8\]"):
        replace(given, weight_scales={"linear": torch.ones(3)}).converted("torch")


def test_a_candidates_reference_is_its_graph_and_stays_so_when_the_graph_is_rewritten() -> None:
    given = lq_plugin.quantize(nn.Linear(8, 4), [GRID], PLAIN)
    assert isinstance(given, StaticCandidate)
    assert given.reference is given.graph
    rewritten = replace(given, graph=duplicate(given.graph))
    assert rewritten.reference is given.graph
    dynamic = lq_plugin.quantize(nn.Linear(8, 4), [GRID], Scheme(method="dynamic", algorithms=()))
    assert dynamic.reference is dynamic.graph


def test_nothing_keeps_a_graph_that_was_converted() -> None:
    candidate = lq_plugin.quantize(nn.Linear(8, 4), [GRID], PLAIN)
    assert isinstance(candidate, StaticCandidate)
    weight = candidate.graph.module.get_parameter("target.weight")
    gc.collect()
    before = len(gc.get_referrers(weight))
    candidate.converted("openvino")
    gc.collect()
    assert len(gc.get_referrers(weight)) == before


class Counting(nn.Module):
    """Writes to a buffer in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.layer(x) + self.calls


@pytest.mark.parametrize(("module", "is_shared"), [(nn.Linear(8, 4), True), (Counting(), False)])
def test_copies_share_tensors_only_where_nothing_writes_to_them(module: nn.Module, is_shared: bool) -> None:
    candidate = lq_plugin.quantize(module, [GRID], PLAIN)
    copied = duplicate(candidate.graph, share_tensors=True)
    ours, theirs = (next(graph.module.parameters()) for graph in (candidate.graph, copied))
    assert (ours is theirs) is is_shared
