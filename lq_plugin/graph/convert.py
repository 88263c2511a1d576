"""From a float graph, ranges and a placement to a graph with explicit quantize/dequantize (QDQ)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from lq_plugin.graph import pt2e
from lq_plugin.graph.folding import share_equal
from lq_plugin.graph.graph import Graph, duplicate
from lq_plugin.graph.int8_lstm import PREFIX, Int8Lstm, give_own_sizes
from lq_plugin.graph.nodes import arguments, attribute, constant, insert
from lq_plugin.graph.placement import Placement
from lq_plugin.graph.recurrent import Options
from lq_plugin.graph.torch_patches import isolated, modules_not_kept
from lq_plugin.noise import muted
from lq_plugin.observers import Range
from lq_plugin.qparams import QuantSpec, activation_qparams, weight_qparams

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed
_REDUCTIONS = (aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default)
_DEQUANTIZE = (
    quantized.dequantize_per_channel.default,
    quantized.dequantize_per_tensor.default,
    quantized.dequantize_per_tensor.tensor,
)


def convert(
    graph: Graph, placement: Placement, ranges: Mapping[str, Range], weight_scales: Mapping[str, Tensor] | None = None
) -> Graph:
    """Insert quantize/dequantize pairs and turn weights into integers.

    Args:
        graph: a folded graph; it is not changed.
        placement: where the pairs go, and which integers they make.
        ranges: lowest and highest value, by the names of ``placement.scales``'s values.
        weight_scales: learnt weight scales by operator name; all others are computed from the weights.

    Returns:
        A graph without the float weights that nothing uses any more.
    """
    with muted(), isolated(), modules_not_kept():
        module = duplicate(graph, share_tensors=True).module
        placement = _with_own_weights(module, placement)
        prepared = pt2e.prepare_pt2e(module, _PlacedQuantizer(placement, ranges, weight_scales or {}))
        _observe_weights(prepared)
        converted = pt2e.convert_pt2e(prepared)
        _look_up_integers(converted)
        _keep_reduced_dimensions(converted)
        _put_integer_lstms(converted, placement, ranges)
        share_equal(converted)
    return replace(graph, module=converted)


def _with_own_weights(module: fx.GraphModule, placement: Placement) -> Placement:
    """Give operators that read one weight along different axes a weight each, as in an autoencoder with tied weights.

    Its integers would have the scales of one axis, for which the other operator has no kernel: onnxruntime (1.32)
    refused such products, and OpenVINO (2026.4) computed convolutions wrongly.
    """
    nodes, axes, weights = {node.name: node for node in module.graph.nodes}, dict[str, int](), dict(placement.weights)
    for operator, (weight, axis) in placement.weights.items():
        if axes.setdefault(weight, axis) != axis:
            reader, shared = nodes[operator], nodes[weight]
            with module.graph.inserting_before(reader):
                own = constant(module, f"lq_{operator}_weight", attribute(module, shared), shared)
            reader.replace_input_with(shared, own)
            weights[operator] = own.name, axis
    return replace(placement, weights=weights)


class _PlacedQuantizer(pt2e.Quantizer):  # type: ignore[misc]
    """Annotates a graph as a placement says, with fixed scales for activations."""

    def __init__(self, placement: Placement, ranges: Mapping[str, Range], weight_scales: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.placement, self.ranges, self.weight_scales = placement, ranges, weight_scales

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        nodes = {node.name: node for node in model.graph.nodes}
        placement = self.placement
        made = (placement.outputs | placement.early) - placement.joined
        for name in {*placement.quantized, *made} - placement.hidden.keys():
            values = (value for value in placement.inputs.get(name, ()) if value not in placement.joined)
            inputs = {nodes[value]: self._activation(value) for value in values}
            if name in placement.weights:
                weight, axis = placement.weights[name]
                inputs[nodes[weight]] = self._weight(axis, self.weight_scales.get(name))
            output = self._activation(name) if name in made else None
            nodes[name].meta["quantization_annotation"] = pt2e.QuantizationAnnotation(
                input_qspec_map=inputs, output_qspec=output, _annotated=True
            )
        return model

    def validate(self, model: fx.GraphModule) -> None:
        pass

    def _activation(self, value: str) -> pt2e.FixedQParamsQuantizationSpec:
        spec = self.placement.activation_spec
        scale, zero_point = activation_qparams(self.ranges[self.placement.scales[value]], spec)
        limits = torch.iinfo(spec.dtype)  # where kernels saturate, whatever the levels
        return pt2e.FixedQParamsQuantizationSpec(
            dtype=spec.dtype,
            scale=scale,
            zero_point=zero_point,
            quant_min=limits.min,
            quant_max=limits.max,
            qscheme=torch.per_tensor_symmetric if spec.symmetric else torch.per_tensor_affine,
        )

    def _weight(self, axis: int, scale: Tensor | None) -> pt2e.QuantizationSpec:
        spec = self.placement.weight_spec
        return pt2e.QuantizationSpec(spec.dtype, _WeightObserver.with_args(spec=spec, axis=axis, scale=scale))


class _WeightObserver(pt2e.ObserverBase):  # type: ignore[misc]
    """Gives PT2E the scale and the zero point of a weight, which it expects from an observer."""

    def __init__(self, spec: QuantSpec, axis: int, scale: Tensor | None, **_: Any) -> None:
        super().__init__(spec.dtype)
        self.scale = scale
        self.spec, self.ch_axis, self.quant_min, self.quant_max = spec, axis, spec.lowest, spec.highest
        self.qscheme = torch.per_channel_affine if spec.per_channel else torch.per_tensor_affine
        self.qparams: tuple[Tensor, Tensor] | None = None

    def forward(self, weight: Tensor) -> Tensor:
        self.qparams = weight_qparams(weight, self.spec, self.ch_axis, self.scale)
        return weight

    def calculate_qparams(self) -> tuple[Tensor, Tensor] | None:
        return self.qparams


def _observe_weights(prepared: fx.GraphModule) -> None:
    for node in prepared.graph.nodes:
        if node.op == "call_module" and node.args and getattr(node.args[0], "op", None) == "get_attr":
            observer = prepared.get_submodule(node.target)
            if isinstance(observer, _WeightObserver):
                observer(attribute(prepared, node.args[0]))


def _look_up_integers(module: fx.GraphModule) -> None:
    """Look up rows of an embedding's integers and scales, in place of rows of the dequantized table.

    onnxruntime does not move the dequantization behind the look-up by itself: it would dequantize the whole table in
    every call (30,000 rows of 384: 4.7 ms instead of 0.7).
    """
    graph = module.graph
    for node in list(graph.nodes):
        table = node.args[0] if node.target is aten.embedding.default else None
        if not isinstance(table, fx.Node) or table.target not in _DEQUANTIZE:
            continue
        integers, scale, *_ = arguments(table)
        with graph.inserting_before(node):
            rows = insert(graph, aten.embedding.default, (integers, node.args[1]))
            if table.target is quantized.dequantize_per_channel.default:
                name = f"{node.name}_scale"
                module.register_buffer(name, attribute(module, scale).view(-1, 1))
                scales = insert(graph, aten.embedding.default, (graph.get_attr(name), node.args[1]))
                floats = insert(graph, aten.to.dtype, (rows, torch.float32))
                result = insert(graph, aten.mul.Tensor, (floats, scales))
            else:
                result = insert(graph, table.target, (rows, *table.args[1:]))
        node.replace_all_uses_with(result)
    graph.eliminate_dead_code()
    module.recompile()


def integer_lstm(module: fx.GraphModule, node: fx.Node, placement: Placement, ranges: Mapping[str, Range]) -> Int8Lstm:
    """Return what computes an LSTM of a graph on integers.

    Args:
        module: whose node it is.
        node: the LSTM; one that the placement quantizes.
        placement: says which integers weights become.
        ranges: lowest and highest value, by the name of the value.
    """
    (value,), hidden = placement.inputs[node.name], placement.hidden[node.name]
    weights, options = [attribute(module, weight) for weight in arguments(node)[3]], Options(*arguments(node)[4:])
    of_hidden = [ranges[name] for name in hidden]
    return Int8Lstm(weights, options, ranges[placement.scales[value]], of_hidden, placement.weight_spec)


def _put_integer_lstms(module: fx.GraphModule, placement: Placement, ranges: Mapping[str, Range]) -> None:
    nodes = [node for node in module.graph.nodes if node.name in placement.hidden]
    lstms = [integer_lstm(module, node, placement, ranges) for node in nodes]
    give_own_sizes(lstms)
    for node, lstm in zip(nodes, lstms, strict=True):
        module.add_submodule(f"{PREFIX}{node.name}", lstm)
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.call_module(f"{PREFIX}{node.name}", node.args[:1]))
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
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
            squeezed = insert(module.graph, aten.squeeze.dims, (node, dims))
        squeezed.meta = node.meta
        node.replace_all_uses_with(squeezed, delete_user_cb=lambda user, kept=squeezed: user is not kept)
        node.args, node.meta = (value, dims, True), {}
    module.recompile()
