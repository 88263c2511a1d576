"""Scales, zero points and integers are the expected numbers, and nothing float is left behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, settled

import lq_plugin
from lq_plugin.candidate import StaticCandidate
from lq_plugin.errors import CalibrationError
from lq_plugin.graph.calibration import Calibration
from lq_plugin.scheme import Scheme

quantized = torch.ops.quantized_decomposed
GRID = torch.linspace(-1, 3, 41).view(-1, 1).expand(41, 8).contiguous()  # the range of every batch is [-1, 3]


def nodes_of(candidate: StaticCandidate, target: object, runtime: str = "openvino") -> list[tuple[Any, ...]]:
    graph = candidate.converted(runtime).module.graph
    return [node.args for node in graph.nodes if node.target is target]


def test_the_graphs_scale_is_that_of_what_was_seen() -> None:
    candidate = lq_plugin.quantize(nn.Linear(8, 4), [GRID], Scheme(observer="minmax"))
    ((_, scale, zero_point, lowest, highest, dtype),) = nodes_of(candidate, quantized.quantize_per_tensor.default)
    assert scale == pytest.approx(4 / 255)
    assert (zero_point, lowest, highest, dtype) == (64, 0, 255, torch.uint8)


@pytest.mark.parametrize(("reduce_range", "limit"), [(False, 127), (True, 63)])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_weights_are_rounded_to_the_nearest_of_their_levels(reduce_range: bool, limit: int, granularity: str) -> None:
    layer = nn.Linear(8, 4)
    scheme = Scheme(reduce_range=reduce_range, weight_granularity=granularity)
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
    candidate = lq_plugin.quantize(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), [GRID])
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
    candidate = lq_plugin.quantize(nn.Linear(8, 4), [GRID])
    empty = Calibration({}, candidate.calibration.provenance)
    with pytest.raises(CalibrationError, match=r"no statistics for \['tensors_0'\]"):
        StaticCandidate("static", candidate.graph, empty, candidate.scheme).converted("torch")


def test_statistics_of_another_graph_with_the_same_names_are_refused() -> None:
    given, other = (lq_plugin.quantize(nn.Sequential(nn.Linear(8, 8), *more), [GRID]) for more in ((nn.ReLU(),), ()))
    assert isinstance(given, StaticCandidate)
    assert isinstance(other, StaticCandidate)
    assert set(other.calibration.statistics) <= set(given.calibration.statistics)
    with pytest.raises(CalibrationError, match=r"calibration: it was gathered from another graph"):
        replace(other, calibration=given.calibration).converted("torch")


def test_equal_constants_are_stored_once_and_the_graph_runs() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.first, self.second = nn.Linear(8, 4), torch.full((1,), 3.0), torch.full((1,), 3.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.first + self.second

    converted = lq_plugin.quantize(Scaled(), [GRID]).converted("torch").module
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
