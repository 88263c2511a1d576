"""Algorithms that make a model easier to quantize. They learn from unlabelled samples; each has a file of its own.

To add one, write a pure function from a candidate and samples to a candidate, add the function to ``TABLE`` and its
name to its method in ``scheme.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lq_plugin.algorithms.equalization import equalization
from lq_plugin.algorithms.ranges import ranges
from lq_plugin.algorithms.sequential import sequential
from lq_plugin.algorithms.smoothing import smoothing
from lq_plugin.algorithms.weight_rounding import weight_rounding

# A method's algorithms take and return its own candidates.
Run = Callable[[Any, Sequence[Sequence[Tensor]], int], Any]


@dataclass(frozen=True)
class Algorithm:
    """One algorithm.

    Args:
        name: as users write it.
        run: takes a candidate, calls of its graph to learn from, and a seed; returns a new candidate, or the same one
            if there is nothing to change.
        rewrites: whether it rewrites the float graph, whose outputs must stay the same; otherwise it corrects weights
            or ranges for what quantization does to them.
    """

    name: str
    run: Run
    rewrites: bool


TABLE: Mapping[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm("equalization", equalization, rewrites=True),
        Algorithm("smoothing", smoothing, rewrites=True),
        Algorithm("ranges", ranges, rewrites=False),
        Algorithm("sequential", sequential, rewrites=False),
        Algorithm("rounding", weight_rounding, rewrites=False),
    )
}
