"""Smoothing (SmoothQuant): moves activation outliers into the weights of the linear layers that read them.

What: each channel of a linear layer's input is divided by a scale ``s = amax**a / wmax**(1 - a)``, and the weights that
read it are multiplied by it. The function stays the same, and one scale then fits all channels of the input. For each
value, ``a`` and a clipping of the range are searched together for the least error of the outputs of the layers that
read it, weighted by a diagonal Fisher estimate (see fisher.py). If only these layers read the value, the division is
folded into the LayerNorm or linear layer that computes it. Otherwise a multiplication is inserted before them, if that
gains enough.

When: transformers, in which a few channels after each LayerNorm are far larger than the rest. Values that a convolution
computes, and weights that several operators share, are left alone.

Cost: two passes over the samples, the Fisher estimate, and for each value up to 56 products of :data:`ROWS` rows with
the weights that read it.

Source: Xiao et al., "SmoothQuant" (2022), https://arxiv.org/abs/2211.10438. The search for ranges and the Fisher
weights are additions: a prototype on a 6-layer text encoder had 18.6 dB plain, 20.6 dB with all output errors weighted
equally, and 23.7 dB with Fisher weights.

Measured on artifacts, with samples that neither calibration nor the algorithm has seen (192 samples to learn from, one
thread). All kernels stay as they were, none falls back to float, and the float outputs stay equal to 134 dB or more:

| model | plain, dB: onnxruntime | smoothed, dB: onnxruntime, OpenVINO | insertions / values | seconds |
| --- | ---: | ---: | ---: | ---: |
| 3-layer transformer, pre-norm, digits; outliers × 30 | 17.0 | 40.6, 40.4 | 2 / 14 | 1.3 |
| the same, post-norm | 34.8 | 41.2, 41.2 | 10 / 14 | 1.0 |
| encoder of the tests (random weights) | 34.1 | 39.0, 39.0 | 4 / 9 | 1.1 |
| the same, outliers × 30 | 29.0 | 38.1, 38.1 | 6 / 9 | .5 |
| vision transformer of the tests | 39.0 | 41.6, 42.4 | 2 / 9 | .4 |
| the same, outliers × 30 | 23.1 | 41.5, 42.4 | 2 / 9 | .5 |
| decoder of the tests | 36.6 | 37.4, 37.4 | 5 / 15 | .5 |
| MLP of the tests, for which it is not meant | 33.2 | 33.0, 33.0 | 1 / 3 | .1 |
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, fx

from lq_plugin.algorithms.fisher import SAMPLES, weighted_values
from lq_plugin.candidate import StaticCandidate
from lq_plugin.graph.calibration import Recording
from lq_plugin.graph.channels import Reader, Site, divide_channels, sites
from lq_plugin.graph.graph import Graph, duplicate
from lq_plugin.graph.nodes import arguments, attribute
from lq_plugin.graph.placement import Placement
from lq_plugin.graph.rewriting import insert_before, put_constant, rewritten
from lq_plugin.graph.torch_patches import isolated
from lq_plugin.observers import Range, Statistic
from lq_plugin.qparams import rounded_activation, rounded_weight

aten = torch.ops.aten
ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CLIPS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)  # shares of the observed range
# The best range is widened by this factor. Other samples have larger values, and once every channel fills the range,
# any of them may exceed it: without this, an MLP lost 5 dB on other samples.
MARGIN = 1.2
ROWS = 1024  # of each value: those whose errors cost most
MOST_SAMPLES = 64  # for the Fisher estimate, if a sample has few rows: an MLP lost 2.4 dB with 32, .2 with 64
GAIN = 0.98  # the most of the error that may be left by a change that costs no time
GAIN_OF_INSERTED = 0.7  # and by a change that inserts an operator
_HARDLY = 0.3
_FLATTEST = 1e-4  # of the largest channel: smaller ones count as this, because they may be larger in other samples
_SMALLEST = torch.finfo(torch.float32).eps


@dataclass
class _Evidence:
    """What was observed of a value that linear operators read.

    Args:
        low: lowest value of each channel.
        high: highest value of each channel.
        seen: number of rows observed.
        rows: those rows of the value whose errors cost most.
        weights: what errors cost at the readers' outputs, for these rows.
    """

    low: Tensor = field(default_factory=lambda: torch.tensor(torch.inf))
    high: Tensor = field(default_factory=lambda: torch.tensor(-torch.inf))
    seen: int = 0
    rows: Tensor = field(default_factory=lambda: torch.empty(0))
    weights: Tensor = field(default_factory=lambda: torch.empty(0))

    def widen(self, value: Tensor) -> None:
        rows = value.reshape(-1, value.shape[-1])
        self.seen += len(rows)
        if len(rows):
            self.low, self.high = torch.minimum(self.low, rows.amin(0)), torch.maximum(self.high, rows.amax(0))

    def add(self, value: Tensor, weights: Sequence[Tensor]) -> None:
        rows = value.reshape(-1, value.shape[-1])
        costs = torch.cat([weight.reshape(-1, weight.shape[-1]) for weight in weights], 1)
        if len(self.rows):
            rows, costs = torch.cat([self.rows, rows]), torch.cat([self.weights, costs])
        kept = costs.sum(1).topk(min(ROWS, len(costs))).indices
        self.rows, self.weights = rows[kept], costs[kept]


@dataclass(frozen=True)
class _Choice:
    """The best choice for a site: a scale for each channel, if any, and the range to represent."""

    bounds: Range
    scale: Tensor | None = None


def smoothing(candidate: StaticCandidate, calls: Sequence[Sequence[Tensor]], seed: int) -> StaticCandidate:
    """Smooth the inputs of a candidate's linear layers.

    Args:
        candidate: it is not changed.
        calls: samples to learn from, each a list of the graph's flat input tensors on the CPU.
        seed: of the Fisher estimate's random projections.

    Returns:
        A candidate whose graph computes the same float function; the candidate itself if there is nothing to gain.
    """
    places = sites(candidate.graph, candidate.united, candidate.weight_scales.keys())
    if not places or not calls:
        return candidate
    with isolated():
        known = _observed(candidate.graph, places, calls, seed)
        found = ((site, _searched(candidate, site, known)) for site in places)
        chosen = [(site, choice) for site, choice in found if choice is not None]
        known.clear()  # more than the model's weights, if it is large
        return _applied(candidate, chosen, calls) if chosen else candidate


class _Watched(fx.Interpreter):
    """Runs a graph and observes the ranges of values."""

    def __init__(self, module: fx.GraphModule, known: Mapping[str, _Evidence]) -> None:
        super().__init__(module)
        self.known = known

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if n.name in self.known:
            self.known[n.name].widen(result)
        return result


def _observed(
    graph: Graph, places: Sequence[Site], calls: Sequence[Sequence[Tensor]], seed: int
) -> dict[str, _Evidence]:
    """What is observed of each value that linear operators read, by its name."""
    readers = [reader for site in places for reader in site.readers]
    known = {reader.value: _Evidence() for reader in readers}
    for tensors in calls:
        _Watched(graph.module, known).run(*(tensor.detach().clone() for tensor in tensors))
    rows = statistics.median(evidence.seen for evidence in known.values()) / max(1, sum(map(graph.samples, calls)))
    samples = round(min(max(SAMPLES, ROWS / max(rows, 1)), MOST_SAMPLES))
    values = {*known, *(reader.name for reader in readers)}
    for weighted in weighted_values(graph, values, calls, seed, samples):
        for name, evidence in known.items():
            outputs = [weighted[reader.name].weight for reader in readers if reader.value == name]
            evidence.add(weighted[name].value, outputs)
        del weighted, outputs  # so that two pieces are never in memory
    return known


def _searched(candidate: StaticCandidate, site: Site, known: Mapping[str, _Evidence]) -> _Choice | None:
    """The best scale and range for a site; ``None`` to leave it alone."""
    evidence = {reader.value: known[reader.value] for reader in site.readers}
    matrices = {reader: _matrix(candidate.graph.module, reader) for reader in site.readers}
    trial = _Trial(candidate.united, evidence, matrices)
    low, high = trial.ends
    if not bool(low.isfinite().all() & high.isfinite().all()):  # nan, or nothing was observed
        return None
    unscaled, origin = torch.ones_like(low), candidate.united.scales[site.readers[0].value]
    before = trial.error(unscaled, trial.rounded(unscaled), candidate.ranges[origin])
    clipped, clip = trial.clipped(unscaled)
    scales = _scales(low, high, torch.cat(list(matrices.values())))
    smoothed, clip_of_smoothed, scale = min(
        ((*trial.clipped(scale), scale) for scale in scales), key=lambda found: found[0]
    )
    if smoothed < min(before, clipped) * (GAIN if site.absorber else GAIN_OF_INSERTED):
        return _Choice(trial.bounds(scale, clip_of_smoothed * MARGIN), scale)
    if clipped < before * GAIN and _is_alone(candidate.united, site, origin):
        return _Choice(trial.bounds(unscaled, clip * MARGIN))
    return None


@dataclass(frozen=True)
class _Trial:
    """Tries scales and ranges on one site.

    Args:
        placed: which integers activations and weights become.
        evidence: what was observed of the values that are read.
        matrices: the weights, of shape (outputs, inputs).
    """

    placed: Placement
    evidence: Mapping[str, _Evidence]
    matrices: Mapping[Reader, Tensor]

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest value of each channel."""
        values = self.evidence.values()
        return torch.stack([each.low for each in values]).amin(0), torch.stack([each.high for each in values]).amax(0)

    def bounds(self, scale: Tensor, clip: float) -> Range:
        """Return a share of a scaled value's range. A lower end close to zero, as after GELU, is kept."""
        low, high = (self.ends[0] / scale).amin().item(), (self.ends[1] / scale).amax().item()
        return (low * clip if low < -_HARDLY * high else low, high * clip)

    def clipped(self, scale: Tensor) -> tuple[float, float]:
        """Return the least error for a scale, and the share of the range that gives it."""
        rounded, best = self.rounded(scale), (math.inf, 1.0)
        for clip in CLIPS:
            found = self.error(scale, rounded, self.bounds(scale, clip))
            if found >= best[0]:  # the error first falls and then rises
                break
            best = (found, clip)
        return best

    def rounded(self, scale: Tensor) -> dict[str, Tensor]:
        """Return the quantized weights that read each scaled value, of shape (outputs, inputs)."""
        return {
            value: torch.cat([rounded_weight(matrix * scale, self.placed.weight_spec, 0) for matrix in matrices])
            for value, matrices in self.read.items()
        }

    def error(self, scale: Tensor, rounded: Mapping[str, Tensor], bounds: Range) -> float:
        """Return the error that quantized inputs and weights cause at the readers' outputs."""
        total = 0.0
        for value, evidence in self.evidence.items():
            given = rounded_activation(evidence.rows / scale, bounds, self.placed.activation_spec) @ rounded[value].T
            total += ((given - self.wanted[value]).square() * evidence.weights).sum().item()
        return total

    @cached_property
    def read(self) -> dict[str, list[Tensor]]:
        """The weights that read each value."""
        return {
            value: [matrix for reader, matrix in self.matrices.items() if reader.value == value]
            for value in self.evidence
        }

    @cached_property
    def wanted(self) -> dict[str, Tensor]:
        """Results of the float weights for each value."""
        return {value: self.evidence[value].rows @ torch.cat(matrices).T for value, matrices in self.read.items()}


def _scales(low: Tensor, high: Tensor, weights: Tensor) -> list[Tensor]:
    largest, steepest = torch.maximum(-low, high).clamp(min=0), weights.abs().amax(0)
    largest = largest.clamp(min=max(_FLATTEST * largest.amax().item(), _SMALLEST))
    steepest = steepest.clamp(min=max(_FLATTEST * steepest.amax().item(), _SMALLEST))
    logarithms = [alpha * largest.log() - (1 - alpha) * steepest.log() for alpha in ALPHAS]
    return [(each - each.mean()).exp() for each in logarithms]


def _matrix(module: fx.GraphModule, reader: Reader) -> Tensor:
    """A reader's weight, of shape (outputs, inputs)."""
    node = next(node for node in module.graph.nodes if node.name == reader.name)
    return attribute(module, node.args[reader.weight]).movedim(reader.axis, 1)


def _is_alone(placed: Placement, site: Site, origin: str) -> bool:
    """Whether only a site's readers use a range."""
    values, readers = {reader.value for reader in site.readers}, {reader.name for reader in site.readers}
    using = {value for value, source in placed.scales.items() if source == origin}
    reading = {name for name, given in placed.inputs.items() if using & set(given)}
    return using <= values and reading <= readers


def _applied(
    candidate: StaticCandidate, chosen: Sequence[tuple[Site, _Choice]], calls: Sequence[Sequence[Tensor]]
) -> StaticCandidate:
    graph = duplicate(candidate.graph, share_tensors=True)
    nodes = {node.name: node for node in graph.module.graph.nodes}
    learnt, changed = dict(candidate.learnt_ranges), set[str]()
    for site, choice in chosen:
        names = {candidate.united.scales[site.readers[0].value]}
        if choice.scale is not None:
            if site.absorber:
                divide_channels(graph.module, nodes[site.absorber], choice.scale)
            else:
                names = {_multiplied(graph.module, site, nodes, choice.scale)}
            for reader in site.readers:
                _scale_weight(graph.module, nodes[reader.name], reader, choice.scale)
            changed |= names
        learnt |= dict.fromkeys(names, choice.bounds)
    graph = rewritten(graph) if changed else candidate.graph
    statistics = {**candidate.new_statistics, **_statistics(candidate, graph, changed, calls)}
    return replace(candidate, graph=graph, new_statistics=statistics, learnt_ranges=learnt)


def _multiplied(module: fx.GraphModule, site: Site, nodes: Mapping[str, fx.Node], scale: Tensor) -> str:
    """Insert the division before a value's readers, and return the name of its result."""
    value, first = nodes[site.readers[0].value], nodes[site.readers[0].name]
    quotient = insert_before(module, first, aten.mul.Tensor, value, 1 / scale, "smoothing")
    for reader in site.readers:
        nodes[reader.name].replace_input_with(value, quotient)
    return quotient.name


def _scale_weight(module: fx.GraphModule, node: fx.Node, reader: Reader, scale: Tensor) -> None:
    weight = attribute(module, arguments(node)[reader.weight])
    put_constant(module, node, reader.weight, weight * scale.view(-1, 1).movedim(0, reader.axis))


def _statistics(
    candidate: StaticCandidate, graph: Graph, values: set[str], calls: Sequence[Sequence[Tensor]]
) -> Mapping[str, Statistic]:
    """Observe changed and new values."""
    if not values:
        return {}
    recording = Recording.start(duplicate(graph, share_tensors=True), candidate.scheme, values)
    for tensors in calls:
        recording.observe(tensors)
    return recording.statistics()
