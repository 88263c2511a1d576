"""Sequential correction: layer by layer, weights are fitted to compensate for quantization errors up to that layer.

What: the graph runs once, float and quantized side by side. For each layer with a constant weight, the weight and bias
are fitted so that the layer's result comes nearest to that of the float layer, given the quantized input that it really
gets. The steps are: ridge least squares; the best range for each output channel; GPTQ rounding, in which later columns
compensate for each rounding error; the bias that keeps the mean. With fewer than 32 samples, which least squares would
overfit, only a factor and a bias for each output channel are fitted. Operators and statistics stay as they are; the new
scales become the candidate's ``weight_scales``.

When: convolutions, above all depthwise ones and those with channels of uneven range. Transformers with outliers need
smoothing first and may lose here, because their largest tokens dominate the error.

Cost: two runs of the graph, and a layer's second moments: 5 CPU seconds and 300 MB for a convolution with 256 channels
and a 3×3 kernel, 192 samples, one thread. Layers with more than 5,792 inputs get only a factor and a bias.

Measured on reloaded artifacts with 192 samples to learn from and others to judge by (mobile CNN: 1,000; zoo: 192). SQNR
in dB, share of predictions equal to FP32's, seconds with one thread:

| model | onnxruntime | OpenVINO | factor and bias alone | s |
| --- | --- | --- | --- | ---: |
| mobile CNN (MNIST, 32×32; 21 layers) | 37.5 → 39.5, .999 → 1 | 38.3 → 39.7, .999 → 1 | 39.3, 39.3 | .7 |
| its weights in 7 bits | 33.4 → 39.4, .999 → .998 | 33.2 → 39.2, .999 | 38.3, 38.5 | .8 |
| its channels uneven (σ .7) | 23.4 → 27.5, .993 → .995 | 23.7 → 27.4, .995 → .997 | 27.1, 26.9 | .8 |
| its channels uneven (σ 1.2) | -2.1 → 14.0, .337 → .965 | -1.7 → 14.1, .350 → .969 | 10.1, 9.9 | .8 |
| ResNet (zoo, random weights) | 39.9 → 41.2, .995 → 1 | 40.0 → 41.3, .995 → 1 | 41.0, 41.4 | .5 |
| U-Net (zoo, random weights) | 34.1 → 34.4, 1 | 34.7 → 35.0, 1 | 34.3, 34.9 | 3 |
| encoder (zoo, random weights) | 30.5 → 30.5, .995 | 30.5 → 30.6, .995 | 30.6, 30.6 | .1 |

Uneven: the output channels of the layers inside a block are multiplied by ``exp(σ n)``, n from a normal distribution,
and the next layer's weights are divided by it.

Not corrected: weights that several operators read (they are stored once and cannot fit all of them), embeddings, and
layers that stay float on one of the runtimes, such as transposed convolutions, for which rounded weights would only be
less accurate. A layer whose input holds nan or infinity gets no least squares.

Sources: Frantar et al., "GPTQ" (2023), https://arxiv.org/abs/2210.17323. Least squares to the float result: Hubara et
al., "Accurate Post Training Quantization With Small Calibration Sets" (2021), https://arxiv.org/abs/2006.10518. Bias
correction: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019),
https://arxiv.org/abs/1906.04721, here from measured means.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor, fx

from lq_plugin.algorithms import spilling
from lq_plugin.algorithms.columns import Product, product_of
from lq_plugin.algorithms.rounding import Grid, best_grid, grid, least_squares, moments, rounded
from lq_plugin.candidate import StaticCandidate
from lq_plugin.graph.graph import duplicate, writes
from lq_plugin.graph.nodes import arguments, attribute
from lq_plugin.graph.rewriting import put_constant, rewritten
from lq_plugin.graph.torch_patches import isolated

FEWEST_SAMPLES = 32  # with fewer, least squares overfits: 16 images did worse than a factor and a bias (mobile CNN)
_COLUMNS = 6000  # drawn for a layer of up to 256 inputs; in proportion for more inputs
_NUMBERS = 4 * 10**7  # the most numbers in a layer's columns: limits the time that wide layers take
_LARGEST = 2**25  # the most numbers in a layer's second moments, 256 MiB; wider layers get a factor and a bias
_FACTORS = (0.8, 1.25)  # limits of an output channel's factor where only factor and bias are fitted


def sequential(candidate: StaticCandidate, calls: Sequence[Sequence[Tensor]], seed: int) -> StaticCandidate:
    """Correct a candidate's weights and biases layer by layer.

    Args:
        candidate: it is not changed.
        calls: samples to learn from, as calls of the graph: lists of its flat input tensors.
        seed: of the draw of the positions that each layer is fitted to.

    Returns:
        A candidate with corrected weights, already rounded to their grid, or ``candidate`` itself if no layer can be
        corrected.
    """
    if not calls or not candidate.united.sources <= candidate.ranges.keys():
        return candidate
    with isolated():
        torch.manual_seed(seed)  # for a forward that draws random numbers
        learnt = _Lockstep(candidate, calls, Generator().manual_seed(seed)).run()
        if not learnt:
            return candidate
        graph = duplicate(candidate.graph, share_tensors=True)
        for node in list(graph.module.graph.nodes):
            if made := learnt.get(node.name):
                put_constant(graph.module, node, made.product.weight_position, made.weight)
                if made.bias is not None and made.product.bias_position is not None:
                    put_constant(graph.module, node, made.product.bias_position, made.bias)
        scales = {name: made.scale for name, made in learnt.items()}
        return replace(candidate, graph=rewritten(graph), weight_scales={**candidate.weight_scales, **scales})


@dataclass(frozen=True)
class Correction:
    """What was learnt for a layer.

    Args:
        product: the layer.
        weight: rounded to its grid.
        scale: as :func:`~lq_plugin.qparams.weight_qparams` takes it.
        bias: ``None`` if the layer has none.
    """

    product: Product
    weight: Tensor
    scale: Tensor
    bias: Tensor | None


@dataclass
class _Lockstep:
    """One pass over a graph, float and quantized side by side.

    Args:
        candidate: the candidate whose graph runs.
        calls: samples, as calls of the graph.
        generator: draws positions.
        wanted: results of the float graph, by node, one for each call; dropped after their last use, and on disk beyond
            1 GiB.
        values: the same of the quantized graph.
        learnt: corrections by operator name.
    """

    candidate: StaticCandidate
    calls: Sequence[Sequence[Tensor]]
    generator: Generator
    wanted: dict[fx.Node, list[Any]] = field(default_factory=dict)
    values: dict[fx.Node, list[Any]] = field(default_factory=dict)
    learnt: dict[str, Correction] = field(default_factory=dict)

    def run(self) -> dict[str, Correction]:
        """Return what was learnt, by operator name."""
        nodes = list(self.candidate.graph.module.graph.nodes)
        products = _products(self.candidate)
        last = {source: node for node in nodes for source in node.all_input_nodes}
        inputs = zip(*self.calls, strict=True)
        for node in nodes:
            if not products:
                break
            if node.op == "placeholder":
                self.wanted[node] = self.values[node] = list(next(inputs))
            elif node.op == "get_attr":
                self.wanted[node] = self.values[node] = self._constant(node)
            else:
                self.wanted[node] = self._kept(self._results(node, self.wanted))
                quantized = self._quantized(node, products.pop(node, None))
                self.values[node] = quantized if quantized is self.wanted[node] else self._kept(quantized)
            if node.name in self.candidate.united.outputs:
                self.values[node] = self._rounded(node)
            for done in [node, *node.all_input_nodes]:
                if last.get(done, node) is node:
                    del self.wanted[done], self.values[done]
        return self.learnt

    def _kept(self, results: list[Any]) -> list[Any]:
        """Results as they are kept: on disk where the activations that are still needed exceed the limit."""
        both = (*self.wanted.items(), *self.values.items())
        activations = (values for node, values in both if node.op != "get_attr")  # weights stay in memory as they are
        full = spilling.in_memory((*activations, results)) > spilling.LIMIT
        return spilling.on_disk(results) if full else results

    def _constant(self, node: fx.Node) -> list[Any]:
        value = operator.attrgetter(str(node.target))(self.candidate.graph.module)
        return [value.clone() if self.writes and isinstance(value, Tensor) else value] * len(self.calls)

    @cached_property
    def writes(self) -> bool:
        """Whether constants must be copied; all of them come first, so this would be a second model in memory."""
        return writes(self.candidate.graph.module)

    def _results(self, node: fx.Node, read: Mapping[fx.Node, Sequence[Any]]) -> list[Any]:
        """An operator's result in each call, for the given inputs."""
        target: Any = node.target
        results = []
        for call in range(len(self.calls)):
            of_call = {source: read[source][call] for source in node.all_input_nodes}
            args, kwargs = fx.map_arg((node.args, node.kwargs), of_call.__getitem__)
            results.append(target(*args, **kwargs))
        return results

    def _rounded(self, node: fx.Node) -> list[Tensor]:
        return [self.candidate.rounded_activation(node.name, value) for value in self.values[node]]

    def _quantized(self, node: fx.Node, product: Product | None) -> list[Any]:
        """A node's results in the quantized graph; a layer is corrected before it runs."""
        sources, placement = node.all_input_nodes, self.candidate.united
        if node.name not in placement.quantized and all(self.values[s] is self.wanted[s] for s in sources):
            return self.wanted[node]
        rounded_here = set(placement.inputs.get(node.name, ())) - placement.outputs
        read = {s: self._rounded(s) if s.name in rounded_here else self.values[s] for s in sources}
        if product is not None:
            return self._corrected(node, product, read)
        if node.name in placement.weights:
            (weight,) = (s for s in sources if s.name == placement.weights[node.name][0])
            read[weight] = [self.candidate.rounded_weight(node.name, self.values[weight][0])] * len(self.calls)
        return self._results(node, read)

    def _corrected(self, node: fx.Node, product: Product, read: dict[fx.Node, list[Any]]) -> list[Tensor]:
        """Learn the correction of a layer, and run the corrected layer."""
        spec = self.candidate.united.weight_spec
        x, weight = (arguments(node)[position] for position in (product.input_position, product.weight_position))
        matrix = product.matrix(self.values[weight][0].double())
        wanted, shared = self.wanted[node], product.shared(spec.per_channel)
        solved = self._solved(product, matrix, read[x], wanted)
        to = grid(matrix, spec, shared) if solved is None else solved[0]
        levels = to.nearest(matrix) if solved is None else solved[1]
        read[weight] = [product.weight((levels * to.scale).float())] * len(self.calls)
        results, scale = self._results(node, read), to.scale
        if solved is None:
            scale = to.scale * _factors(product, wanted, results, shared)
            read[weight] = [product.weight((levels * scale).float())] * len(self.calls)
            results = self._results(node, read)
        bias = None
        if product.bias_position is not None:
            shift = _means(product, wanted) - _means(product, results)
            shift = torch.where(shift.isfinite(), shift, 0).float()
            bias = self.values[arguments(node)[product.bias_position]][0] + shift
            results = [result + shift.view(-1, *(1,) * len(product.kernel)) for result in results]
        scale = scale.flatten() if spec.per_channel else scale.reshape(())
        self.learnt[node.name] = Correction(product, read[weight][0], scale, bias)
        return results

    def _solved(
        self, product: Product, matrix: Tensor, arriving: Sequence[Tensor], wanted: Sequence[Tensor]
    ) -> tuple[Grid, Tensor] | None:
        """The grid and the levels of the best matrix; ``None`` if it cannot be computed."""
        groups, _, size = matrix.shape
        samples = sum(self.candidate.graph.samples(call) for call in self.calls)
        if samples < FEWEST_SAMPLES or groups * size**2 > _LARGEST:
            return None
        count = min(max(1, size / 256) * _COLUMNS, _NUMBERS / (groups * size))
        places = [result.numel() // (groups * matrix.shape[1]) for result in wanted]
        part = count / max(1, sum(places))
        drawn = (
            product.columns(x, y, math.ceil(part * number), self.generator)
            for x, y, number in zip(arriving, wanted, places, strict=True)
        )
        given = moments(drawn, centred=product.bias_position is not None)
        if not given.finite:
            return None
        spec = self.candidate.united.weight_spec
        try:
            matrix = least_squares(matrix, given)
            to = best_grid(matrix, given.inputs, spec, product.shared(spec.per_channel))
            return to, rounded(matrix, given, to)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # many inputs are constant up to rounding errors
            return None


def _products(candidate: StaticCandidate) -> dict[fx.Node, Product]:
    """The layers to correct: INT8 on every runtime, and with a weight that no other layer reads or has a copy of."""
    module = candidate.graph.module
    constants = {node: attribute(module, node) for node in module.graph.nodes if node.op == "get_attr" and _read(node)}
    contents = {node: _content(value) for node, value in constants.items()}
    uses = Counter(content for node, content in contents.items() for _ in node.users)
    common = set[str].intersection(*(set(candidate.placed(runtime).weights) for runtime in candidate.runtimes))
    found = {node: product_of(node) for node in module.graph.nodes if node.name in common}
    return {
        node: product
        for node, product in found.items()
        if product is not None and uses[contents[node.args[product.weight_position]]] == 1
    }


def _read(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _content(value: Tensor) -> tuple[object, ...]:
    raw = value.detach().contiguous().flatten().view(torch.uint8).numpy()
    return value.dtype, tuple(value.shape), hashlib.sha256(raw.data).digest()


def _by_channel(product: Product, values: Tensor) -> Tensor:
    return values.movedim(product.channel_dim, 0).flatten(1).double()


def _means(product: Product, results: Sequence[Tensor]) -> Tensor:
    """Mean of each output channel over all calls."""
    sums, count = torch.zeros((), dtype=torch.float64), 0
    for result in results:
        values = _by_channel(product, result)
        sums, count = sums + values.sum(1), count + values.shape[1]
    return sums / count


def _factors(product: Product, wanted: Sequence[Tensor], results: Sequence[Tensor], shared: tuple[int, ...]) -> Tensor:
    """Factors of the scales with which the results come nearest to the wanted ones, up to a constant."""
    centres = [_means(product, side)[:, None] * (product.bias_position is not None) for side in (wanted, results)]
    sums = torch.zeros(2, *centres[0].shape, dtype=torch.float64)
    for pair in zip(wanted, results, strict=True):
        y, q = (_by_channel(product, side) - centre for side, centre in zip(pair, centres, strict=True))
        sums += torch.stack([(y * q).sum(1, keepdim=True), q.square().sum(1, keepdim=True)])
    products, squares = (part.view(product.groups, -1, 1).sum(shared, keepdim=True) for part in sums)
    factors = products / squares
    return torch.where(factors.isfinite(), factors, 1).clamp(*_FACTORS).float()
