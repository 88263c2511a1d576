"""Cross-layer equalization: evens out the ranges of the channels between two layers, so that one scale fits them all.

What: output channel ``c`` of the first layer is divided by ``s[c]``, and the same input channel of the second layer is
multiplied by it. All operators in between are positively homogeneous (ReLU, leaky ReLU, pooling), so the float model
computes the same function.

When: an activation has one scale for all of its channels. Equalization helps if some channels are much smaller than
others, as after depthwise convolutions and wherever BatchNorm was folded. For the first layer's weight it costs
nothing, because each output channel has a scale of its own. The weight of a dense second layer may lose accuracy,
because its input channels share a scale. So scales are searched on a grid, ``s = activation_range**α /
weight_range**β`` (the paper's are ``α = β = 1/2``), and those with the least rounding error at the second layer's
output are taken, or none.

Clamps: with ReLU6 in between, scaling would give each channel a clamp limit of its own, which no INT8 kernel supports.
Such layers are left alone: ten such limits in a mobile CNN of 21 INT8 operators took onnxruntime from .040 to .084 ms
(10 float operators and 10 more pairs of quantize and dequantize) and from 36.8 to 33.0 dB. The reverse gains both speed
and accuracy: if a model clamps each channel at a constant of its own, the scales are chosen so that all limits become
equal, and kernels fuse the one clamp that is left.

Cost: two passes over the samples. Nothing at run time.

Measured on the recipe ``fashion_mobile`` (a clamp limit for each channel, uneven by up to 2**5 each way), artifacts on
10,000 test images:

| accuracy | plain | equalized | float operators |
| --- | ---: | ---: | --- |
| FP32 | .8746 | | 10 |
| onnxruntime | .1000 | .8738 | 10 → 0 |
| OpenVINO | .1000 | .8742 | 10 → 0 |

On networks with even channels it gains up to 2 dB or finds nothing to do. It can overfit the largest values of few
samples: with some 60 vectors to learn from, a multilayer perceptron lost 9 dB on other data. Hence ``_LEAST_GAIN``, the
floor for ranges (``_FURTHEST``), and the check on held-out samples.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019),
https://arxiv.org/abs/1906.04721.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx

from lq_plugin.algorithms.pairs import Kernel, Pair, channel_axis, clamp_limits, is_transposed, pairs
from lq_plugin.candidate import StaticCandidate
from lq_plugin.graph.calibration import Recording
from lq_plugin.graph.graph import Graph, duplicate
from lq_plugin.graph.nodes import arguments, operator_type
from lq_plugin.graph.placement import Placement
from lq_plugin.graph.rewriting import put_constant, rewritten
from lq_plugin.graph.torch_patches import isolated
from lq_plugin.qparams import scale_of

aten = torch.ops.aten
_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_LEAST_GAIN = 0.75  # the most of the error that may be left: ranges seen in few samples are uncertain
_SWEEPS = 3  # where a whole weight has one scale, pairs that share a layer depend on each other
_FURTHEST = 2.0**10  # from the largest range to the smallest: a channel that hardly fired in the samples may fire later


def equalization(candidate: StaticCandidate, calls: Sequence[Sequence[Tensor]], seed: int) -> StaticCandidate:
    """Equalize the ranges of channels between pairs of layers.

    Args:
        candidate: it is not changed.
        calls: samples, as calls of the graph: lists of its flat input tensors.
        seed: not used, because nothing is random.

    Returns:
        A candidate whose graph computes the same float function. Statistics of the values that were changed come from
        the samples. The candidate itself if there is nothing to gain.
    """
    with isolated():
        found = [pair for pair in pairs(candidate.graph.module) if _is_free(candidate, pair)]
        if not found or not calls:
            return candidate
        layers = dict.fromkeys(node for pair in found for node in (pair.first, pair.second))
        inputs = _observed(candidate.graph.module, layers.keys(), calls)
        found = [pair for pair in found if {pair.first.name, pair.second.name} <= inputs.keys()]
        kernels = {node.name: Kernel.of(node) for node in layers}
        state = _State(kernels, inputs, _gains(found, kernels))
        changed = _equalize(found, state, candidate.united)
        if not changed:
            return candidate
        return _with_new_statistics(candidate, _written(candidate.graph, state.kernels, changed), changed, calls)


@dataclass(frozen=True)
class _Channels:
    """What was observed of a value, by channel.

    Args:
        low: the lowest value, at most zero.
        high: the highest value, at least zero.
        power: the mean square.
    """

    low: Tensor
    high: Tensor
    power: Tensor

    def divided(self, scales: Tensor) -> _Channels:
        return _Channels(self.low / scales, self.high / scales, self.power / scales.square())

    @property
    def largest(self) -> Tensor:
        """The range of each channel, at least four standard deviations, because few samples may show less."""
        return torch.maximum(torch.maximum(self.high, -self.low), 4 * self.power.sqrt())


@dataclass(frozen=True)
class _State:
    """What scales change, by the layer's name.

    Args:
        kernels: the weights.
        inputs: what was observed of the layer's input.
        gains: how much a squared error of one in each output channel counts.
    """

    kernels: dict[str, Kernel]
    inputs: dict[str, _Channels]
    gains: dict[str, Tensor]

    def scale(self, pair: Pair, scales: Tensor) -> None:
        """Divide the channels between two layers by scales."""
        first, second, repeated = pair.first.name, pair.second.name, scales.repeat_interleave(pair.repeat)
        self.kernels[first] = self.kernels[first].with_outputs_divided(scales)
        self.kernels[second] = self.kernels[second].with_inputs_multiplied(repeated)
        self.inputs[second] = self.inputs[second].divided(repeated)
        self.gains[first] = self.gains[first] * scales.square()


def _is_free(candidate: StaticCandidate, pair: Pair) -> bool:
    """Whether no scale or range was learnt for anything that equalization would change."""
    learnt = {*candidate.weight_scales, *candidate.learnt_ranges}
    return not learnt & {*pair.values, pair.second.name}


def _observed(module: fx.GraphModule, layers: Set[fx.Node], calls: Sequence[Sequence[Tensor]]) -> dict[str, _Channels]:
    """Run the samples and observe the inputs of layers."""
    sums: dict[str, list[Tensor]] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n in layers:
                value = self.env[arguments(n)[0]]
                _add(sums.setdefault(n.name, []), value, channel_axis(n, value))
            return super().run_node(n)

    for tensors in calls:
        Watch(module).run(*(tensor.clone() for tensor in tensors))
    seen = {name: parts for name, parts in sums.items() if parts}
    return {name: _Channels(low, high, power / count) for name, (low, high, power, count) in seen.items()}


def _add(sums: list[Tensor], value: Tensor, axis: int) -> None:
    if not value.numel():
        return
    rows = value.transpose(0, axis).flatten(1)
    low, high = rows.aminmax(dim=1)
    new = [low.double().clamp(max=0), high.double().clamp(min=0), rows.double().square().sum(1)]
    new.append(torch.tensor(float(rows.shape[1])))
    if sums:
        new = [torch.minimum(sums[0], new[0]), torch.maximum(sums[1], new[1]), sums[2] + new[2], sums[3] + new[3]]
    sums[:] = new


def _gains(found: Sequence[Pair], kernels: Mapping[str, Kernel]) -> dict[str, Tensor]:
    """Return how much an error in each output channel of a layer counts at the end of the layer's chain of pairs.

    Along a chain, an error is multiplied by the weights that read it. After the last layer all channels have one scale,
    so there each counts the same.
    """
    gains = {pair.second.name: _ones(kernels[pair.second.name]) for pair in found}
    for pair in reversed(found):
        columns = kernels[pair.second.name].columns(gains[pair.second.name])
        gains[pair.first.name] = columns.view(-1, pair.repeat).sum(1)
    return gains


def _ones(kernel: Kernel) -> Tensor:
    count, outputs = kernel.weight.shape[:2]
    return torch.ones(count * outputs, dtype=torch.float64)


def _equalize(found: Sequence[Pair], state: _State, placement: Placement) -> dict[Pair, Tensor]:
    """Scale the state where that helps, and return the scales."""
    total: dict[Pair, Tensor] = {}
    for _ in range(_SWEEPS):
        better = False
        for pair in found:
            scales = _clamp_scales(pair) if pair.clamp else _scales(_Error.of(pair, state, placement))
            if scales is not None and not (pair.clamp and pair in total):
                better = True
                total[pair] = total.get(pair, 1.0) * scales
                state.scale(pair, scales)
        if not better:
            break
    return total


def _clamp_scales(pair: Pair) -> Tensor:
    """Return the scales that make all clamp limits of a pair equal."""
    assert pair.clamp is not None
    limits = clamp_limits(pair.clamp).double().flatten()
    return limits / limits.log().mean().exp()


def _scales(error: _Error) -> Tensor | None:
    """Return the scales with the least error; ``None`` if they gain too little."""
    best, least = None, _LEAST_GAIN * error(torch.ones_like(error.activations))
    for scales in _grid(error.activations, error.weights):
        if (now := error(scales)) < least:
            best, least = scales, now
    return best


def _grid(activations: Tensor, weights: Tensor) -> Iterator[Tensor]:
    activations, weights = _normalized(activations), _normalized(weights)
    for power, inverse in product(_EXPONENTS, _EXPONENTS):
        yield activations**power / weights**inverse


def _normalized(ranges: Tensor) -> Tensor:
    """Ranges with a geometric mean of one; a channel that is always zero gets one."""
    alive = ranges > 0
    if not alive.any():
        return torch.ones_like(ranges)
    bounded = ranges.clamp(min=ranges.amax() / _FURTHEST)
    return torch.where(alive, bounded / bounded[alive].log().mean().exp(), 1.0)


@dataclass(frozen=True)
class _Error:
    """Expected squared rounding error of the second layer's output, as a function of the scales.

    Rounding errors are assumed to be uniform and independent: a twelfth of the squared step each.
    """

    pair: Pair
    placement: Placement
    first: Kernel
    second: Kernel
    source: _Channels  # the first layer's input
    between: _Channels  # the second layer's input
    gains: Tensor  # of the second layer's output channels

    @classmethod
    def of(cls, pair: Pair, state: _State, placement: Placement) -> _Error:
        first, second = pair.first.name, pair.second.name
        kernels, inputs = state.kernels, state.inputs
        return cls(pair, placement, kernels[first], kernels[second], inputs[first], inputs[second], state.gains[second])

    @cached_property
    def activations(self) -> Tensor:
        """The range of every channel."""
        return self.between.largest.view(-1, self.pair.repeat).amax(1)

    @cached_property
    def weights(self) -> Tensor:
        """The range of the second layer's weights for each channel, weighted by the gains of their rows."""
        largest = self.second.weight.abs().amax(3) * self._by_group(self.gains).sqrt().unsqueeze(2)
        return largest.amax(1).reshape(-1, self.pair.repeat).amax(1)

    def __call__(self, scales: Tensor) -> Tensor:
        """Return the error with these scales, one for each channel."""
        repeated = scales.repeat_interleave(self.pair.repeat)
        columns = self._columns * repeated.square()
        error = torch.zeros((), dtype=torch.float64)
        if self.pair.values & self.placement.scales.keys():
            between, spec = self.between.divided(repeated), self.placement.activation_spec
            error += scale_of(between.low.amin(), between.high.amax(), spec).square() * columns.sum()
        if self.pair.first.name in self.placement.weights:
            step = self._steps(self.pair.first, self.first.with_outputs_divided(scales))
            made = (step.square() * self._reached(self.first, self.source.power)).flatten()
            error += (made.repeat_interleave(self.pair.repeat) * columns).sum()
        if self.pair.second.name in self.placement.weights:
            step = self._steps(self.pair.second, self.second.with_inputs_multiplied(repeated))
            reached = self._reached(self.second, self.between.power / repeated.square())
            error += (step.square() * reached * self._by_group(self.gains)).sum()
        return error / 12

    @cached_property
    def _columns(self) -> Tensor:
        return self.second.columns(self.gains)

    def _by_group(self, outputs: Tensor) -> Tensor:
        return outputs.view(self.second.weight.shape[:2])

    def _steps(self, layer: fx.Node, kernel: Kernel) -> Tensor:
        """The quantization step of every row of a weight, by group."""
        spec = self.placement.weight_spec
        low, high = kernel.weight.amin((2, 3)), kernel.weight.amax((2, 3))
        if not spec.per_channel:
            low, high = low.amin().expand_as(low), high.amax().expand_as(high)
        elif is_transposed(layer):  # its channel axis is that of one group's outputs
            low, high = low.amin(0).expand_as(low), high.amax(0).expand_as(high)
        return scale_of(low, high, spec)

    @staticmethod
    def _reached(kernel: Kernel, power: Tensor) -> Tensor:
        """The squared error that an error of one in every weight of a row causes in its result, by group."""
        count, _, inputs, positions = kernel.weight.shape
        return power.view(count, inputs).sum(1, keepdim=True) * positions


def _written(graph: Graph, kernels: Mapping[str, Kernel], changed: Mapping[Pair, Tensor]) -> Graph:
    """Return a copy of the graph with scaled weights, and with one clamp limit for all channels."""
    copy = duplicate(graph, share_tensors=True)
    nodes = {node.name: node for node in copy.module.graph.nodes}
    for layer in dict.fromkeys(node for pair in changed for node in (pair.first, pair.second)):
        kernel = kernels[layer.name]
        put_constant(copy.module, nodes[layer.name], 1, kernel.as_weight(layer))
        if kernel.bias is not None:
            put_constant(copy.module, nodes[layer.name], 2, kernel.bias.to(layer.meta["val"].dtype))
    for pair, scales in changed.items():
        if pair.clamp is not None:
            _share_clamp(nodes[pair.clamp.name], float((clamp_limits(pair.clamp).flatten() / scales).mean()))
    return rewritten(copy)


def _share_clamp(node: fx.Node, limit: float) -> None:
    """Replace limits by channel, and a ReLU before them, by one clamp with a single limit: kernels fuse it."""
    value = arguments(node)[0]
    if operator_type(value) == "relu":
        node.target, node.args = aten.hardtanh.default, (arguments(value)[0], 0.0, limit)
    elif node.target is aten.clamp.Tensor and arguments(node)[1] is not None:
        node.target, node.args = aten.hardtanh.default, (value, 0.0, limit)
    else:
        node.target, node.args = aten.clamp.default, (value, None, limit)


def _with_new_statistics(
    candidate: StaticCandidate, graph: Graph, changed: Mapping[Pair, Tensor], calls: Sequence[Sequence[Tensor]]
) -> StaticCandidate:
    """Return a candidate with the new graph, and observe the values that were changed."""
    made = replace(candidate, graph=graph)
    values = {value for pair in changed for value in pair.values}
    quantized = made.united.sources
    recording = Recording.start(
        duplicate(graph, share_tensors=True),
        candidate.scheme,
        quantized & values | quantized - candidate.statistics.keys(),
    )
    for tensors in calls:
        recording.observe(tensors)
    return replace(made, new_statistics={**candidate.new_statistics, **recording.statistics()})
