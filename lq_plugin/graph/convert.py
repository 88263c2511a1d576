"""From a float graph, ranges and a placement to a graph with explicit quantize/dequantize (QDQ)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx

from lq_plugin.graph import pt2e
from lq_plugin.graph.folding import share_equal
from lq_plugin.graph.graph import Graph, duplicate
from lq_plugin.graph.nodes import arguments, attribute
from lq_plugin.graph.placement import Placement
from lq_plugin.graph.torch_patches import isolated
from lq_plugin.noise import muted
from lq_plugin.observers import Range
from lq_plugin.scheme import Scheme

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed
_REDUCTIONS = (aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default)
_DEQUANTIZE = (
    quantized.dequantize_per_channel.default,
    quantized.dequantize_per_tensor.default,
    quantized.dequantize_per_tensor.tensor,
)


def convert(graph: Graph, placement: Placement, ranges: Mapping[str, Range], scheme: Scheme) -> Graph:
    """Insert quantize/dequantize pairs and turn weights into integers.

    Args:
        graph: a folded graph; it is not changed.
        placement: where the pairs go.
        ranges: lowest and highest value, by the names of ``placement.scales``'s values.
        scheme: dtypes and granularity.

    Returns:
        A graph without the float weights that nothing uses any more.
    """
    with muted(), isolated():
        prepared = pt2e.prepare_pt2e(duplicate(graph).module, _PlacedQuantizer(placement, ranges, scheme))
        _observe_weights(prepared)
        converted = pt2e.convert_pt2e(prepared)
        _look_up_integers(converted)
        _keep_reduced_dimensions(converted)
        share_equal(converted)
    return replace(graph, module=converted)


class _PlacedQuantizer(pt2e.Quantizer):  # type: ignore[misc]
    """Annotates a graph as a placement says, with fixed scales for activations."""

    def __init__(self, placement: Placement, ranges: Mapping[str, Range], scheme: Scheme) -> None:
        super().__init__()
        self.placement, self.ranges, self.scheme = placement, ranges, scheme

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        nodes = {node.name: node for node in model.graph.nodes}
        for name in {*self.placement.quantized, *self.placement.outputs}:
            inputs = {nodes[value]: self._activation(value) for value in self.placement.inputs.get(name, ())}
            if name in self.placement.weights:
                weight, axis = self.placement.weights[name]
                inputs[nodes[weight]] = _weight_spec(self.scheme, axis)
            output = self._activation(name) if name in self.placement.outputs else None
            nodes[name].meta["quantization_annotation"] = pt2e.QuantizationAnnotation(
                input_qspec_map=inputs, output_qspec=output, _annotated=True
            )
        return model

    def validate(self, model: fx.GraphModule) -> None:
        pass

    def _activation(self, value: str) -> pt2e.FixedQParamsQuantizationSpec:
        scale, zero_point, lowest, highest = activation_qparams(self.ranges[self.placement.scales[value]], self.scheme)
        return pt2e.FixedQParamsQuantizationSpec(
            dtype=getattr(torch, self.scheme.activation_dtype),
            scale=scale,
            zero_point=zero_point,
            quant_min=lowest,
            quant_max=highest,
            qscheme=torch.per_tensor_symmetric if self.scheme.activation_symmetric else torch.per_tensor_affine,
        )


def activation_qparams(bounds: Range, scheme: Scheme) -> tuple[float, int, int, int]:
    """Scale, zero point and the smallest and largest integer that represent a range; zero is always exact."""
    lowest, highest = (0, 255) if scheme.activation_dtype == "uint8" else (-128, 127)
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    if scheme.activation_symmetric:
        scale = max(-low, high) / 127
        zero_point = lowest + 128
    else:
        scale = (high - low) / 255
        zero_point = lowest + (round(-low / scale) if scale > 0 else 0)
    smallest = torch.finfo(torch.float32).eps
    return max(scale, smallest), min(max(zero_point, lowest), highest), lowest, highest


def _weight_spec(scheme: Scheme, axis: int) -> pt2e.QuantizationSpec:
    per_channel = scheme.weight_granularity == "per_channel"
    highest = 63 if scheme.reduce_range else 127
    kind = "symmetric" if scheme.weight_symmetric else "affine"
    return pt2e.QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=pt2e.PerChannelMinMaxObserver if per_channel else pt2e.MinMaxObserver,
        quant_min=-highest if scheme.weight_symmetric else -highest - 1,
        quant_max=highest,
        qscheme=getattr(torch, f"{scheme.weight_granularity}_{kind}"),
        ch_axis=axis if per_channel else None,
    )


def _observe_weights(prepared: fx.GraphModule) -> None:
    for node in prepared.graph.nodes:
        if node.op == "call_module" and node.args and getattr(node.args[0], "op", None) == "get_attr":
            observer = prepared.get_submodule(node.target)
            if isinstance(observer, pt2e.ObserverBase):
                observer(attribute(prepared, node.args[0]))


def _look_up_integers(module: fx.GraphModule) -> None:
    """Look up rows of an embedding's integers and scales, in place of rows of the dequantized table.

    onnxruntime does not move the dequantization behind the look-up by itself: it would dequantize the whole table in
    every call (30,000 rows of 384: 4.7 ms in place of 0.7).
    """
    graph = module.graph
    for node in list(graph.nodes):
        table = node.args[0] if node.target is aten.embedding.default else None
        if not isinstance(table, fx.Node) or table.target not in _DEQUANTIZE:
            continue
        integers, scale, *_ = arguments(table)
        with graph.inserting_before(node):
            rows = graph.call_function(aten.embedding.default, (integers, node.args[1]))
            if table.target is quantized.dequantize_per_channel.default:
                name = f"{node.name}_scale"
                module.register_buffer(name, attribute(module, scale).view(-1, 1))
                scales = graph.call_function(aten.embedding.default, (graph.get_attr(name), node.args[1]))
                floats = graph.call_function(aten.to.dtype, (rows, torch.float32))
                result = graph.call_function(aten.mul.Tensor, (floats, scales))
            else:
                result = graph.call_function(table.target, (rows, *table.args[1:]))
        node.replace_all_uses_with(result)
    graph.eliminate_dead_code()
    module.recompile()


def _keep_reduced_dimensions(module: fx.GraphModule) -> None:
    """Reduce float values with the dimensions kept, and drop them afterwards.

    OpenVINO (2026.4) moves a multiplication by channel, such as LayerNorm's, through a reduction and into the quantizer
    that follows, which then takes the channels from the dimension that was reduced: a linear layer after mean pooling
    came out at 10 dB.
    """
    for node in list(module.graph.nodes):
        if node.target not in _REDUCTIONS:
            continue
        value, dims, keep = (*arguments(node), None, False)[:3]
        if not dims or keep or value.target in _DEQUANTIZE:
            continue
        with module.graph.inserting_after(node):
            squeezed = module.graph.call_function(aten.squeeze.dims, (node, dims))
        squeezed.meta = node.meta
        node.replace_all_uses_with(squeezed, delete_user_cb=lambda user, kept=squeezed: user is not kept)
        node.args, node.meta = (value, dims, True), {}
    module.recompile()
