"""Ranges: for each quantized value, clipped or not, by what that costs at the outputs.

What: an observer that clips weighs the errors of rounding against those of clipping at the value itself, as if they
were alike. At the outputs they are not: clipping changes the largest elements, all in one direction. So both errors are
carried to the outputs by gradients of random projections (see :func:`~lq_plugin.algorithms.fisher.costs`), and a value
gets the whole range that was observed unless clipping costs clearly less. Weights, operators and statistics stay as
they are; what is chosen becomes the candidate's ``learnt_ranges``.

When: with the histogram and percentile observers. There is nothing to choose after ``minmax``.

Cost: for each of 64 samples, one forward and eight backward passes: 1 CPU second for a ResNet-18 on 32×32 images.

Measured on trained models, with samples that nobody had seen (192 to observe and to learn from, 512 to compare; SQNR of
the graph in dB, one thread):

| model | onnxruntime | OpenVINO | whole ranges / values | s |
| --- | ---: | ---: | ---: | ---: |
| ResNet-18 | 37.9 → 43.2 | 37.9 → 43.2 | 24 / 30 | 1.1 |
| text encoder, 4 layers | 48.9 → 51.2 | 48.9 → 51.2 | 11 / 16 | 1.4 |
| mobile CNN | 36.7 → 36.7 | 36.5 → 37.2 | 7 / 21 | .5 |
| vision transformer | 42.8 → 42.7 | 45.0 → 45.1 | 10 / 18 | .4 |
| U-Net | 41.2 → 41.2 | 42.4 → 42.4 | 10 / 21 | 1.0 |

Source: Hessian-aware quantization weighs errors by what they do to the loss; here by what they do to the outputs. The
signed estimate is that of the sensitivity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from lq_plugin.algorithms.fisher import costs, pieces
from lq_plugin.candidate import StaticCandidate
from lq_plugin.graph.torch_patches import isolated
from lq_plugin.observers import Observer, Range
from lq_plugin.qparams import rounded_activation

SAMPLES = 64  # with 32 a U-Net and a mobile CNN lost up to .3 dB to noise; more took longer and gained nothing
# Clipping must cost less than the whole range by this factor. Other samples have larger values than those observed: on
# text from another part of the corpus an encoder lost 4 dB to ranges that were .1 dB better on the observed one.
MARGIN = 1.1


def ranges(candidate: StaticCandidate, calls: Sequence[Sequence[Tensor]], seed: int) -> StaticCandidate:
    """Choose between the observer's range and the whole observed one, for each quantized value.

    Args:
        candidate: it is not changed.
        calls: samples to learn from, as calls of the graph: lists of its flat input tensors.
        seed: of the random projections.

    Returns:
        A candidate with other ranges; ``candidate`` itself if no range changes.
    """
    whole = _whole(candidate)
    if not whole or not calls:
        return candidate
    clipped, unclipped = _costs(candidate, whole, calls, seed)
    chosen = {origin: bounds for origin, bounds in whole.items() if unclipped[origin] <= MARGIN * clipped[origin]}
    return replace(candidate, learnt_ranges={**candidate.learnt_ranges, **chosen}) if chosen else candidate


def _whole(candidate: StaticCandidate) -> dict[str, Range]:
    """The whole observed range of each value that has a narrower one, by the value whose statistic is used."""
    observer = candidate.scheme.observer
    assert isinstance(observer, Observer)
    origins = set(candidate.united.scales.values()) & candidate.statistics.keys()
    observed = {origin: observer.extremes(candidate.statistics[origin]) for origin in sorted(origins)}
    return {
        origin: (low, high)
        for origin, (low, high) in observed.items()
        if low < candidate.ranges[origin][0] or high > candidate.ranges[origin][1]
    }


class _Rounding(fx.Interpreter):
    """Runs the float graph, and keeps the errors of values with their own range and with another one."""

    def __init__(self, candidate: StaticCandidate, whole: Mapping[str, Range]) -> None:
        super().__init__(candidate.graph.module)
        self.candidate, self.whole = candidate, whole
        self.errors: dict[str, tuple[Tensor, Tensor]] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        origin = self.candidate.united.scales.get(n.name)
        if origin is not None and origin in self.whole and isinstance(result, Tensor) and result.is_floating_point():
            spec = self.candidate.united.activation_spec
            clipped, unclipped = (
                (rounded_activation(result, bounds, spec) - result).nan_to_num(0.0, 0.0, 0.0)
                for bounds in (self.candidate.ranges[origin], self.whole[origin])
            )
            self.errors[n.name] = (clipped, unclipped)
        return result


def _costs(
    candidate: StaticCandidate, whole: Mapping[str, Range], calls: Sequence[Sequence[Tensor]], seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """What errors cost with the ranges as they are and with the whole ones; summed over values that share a range."""
    generator, origins = torch.Generator().manual_seed(seed), candidate.united.scales
    clipped, unclipped = (dict.fromkeys(whole, 0.0) for _ in range(2))
    for piece in pieces(candidate.graph, calls, SAMPLES):
        with isolated():
            rounding = _Rounding(candidate, whole)
            rounding.run(*(tensor.detach().clone() for tensor in piece))
        samples = candidate.graph.samples(piece)
        for name, (before, after) in costs(candidate.graph, rounding.errors, piece, generator).items():
            clipped[origins[name]] += samples * before
            unclipped[origins[name]] += samples * after
    return clipped, unclipped
