"""Algorithms that make a graph easier to quantize. They learn from unlabelled samples; each has a file of its own.

To add one, write a pure function from a candidate and samples to a candidate, add the function to ``TABLE`` and its
name to ``scheme.ALGORITHMS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lq_plugin.algorithms.equalization import equalization
from lq_plugin.algorithms.sequential import sequential
from lq_plugin.algorithms.smoothing import smoothing
from lq_plugin.candidate import StaticCandidate

Run = Callable[[StaticCandidate, Sequence[Sequence[Tensor]], int], StaticCandidate]


@dataclass(frozen=True)
class Algorithm:
    """One algorithm.

    Args:
        name: as users write it.
        run: takes a candidate, calls of its graph to learn from, and a seed; returns a new candidate, or the same one
            if there is nothing to change.
        rewrites: whether it rewrites the float graph, whose outputs must stay the same; otherwise it corrects weights
            for what quantization does to them.
    """

    name: str
    run: Run
    rewrites: bool


TABLE: Mapping[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm("equalization", equalization, rewrites=True),
        Algorithm("smoothing", smoothing, rewrites=True),
        Algorithm("sequential", sequential, rewrites=False),
    )
}
