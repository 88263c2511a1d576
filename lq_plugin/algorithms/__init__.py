"""What makes a graph easier to quantize, learnt from samples that need no labels: one file an algorithm.

To add one, write a pure function from a candidate and samples to a candidate, add it to ``TABLE``, and its name to
``scheme.ALGORITHMS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lq_plugin.candidate import StaticCandidate

Run = Callable[[StaticCandidate, Sequence[Sequence[Tensor]], int], StaticCandidate]


@dataclass(frozen=True)
class Algorithm:
    """One algorithm.

    Args:
        name: as users write it.
        run: takes a candidate, calls of its graph to learn from, and a seed; returns a new candidate, or the same one
            where there is nothing to change.
        rewrites: whether it changes the float graph, which must go on computing the same; if not, it changes what
            quantization makes of it.
    """

    name: str
    run: Run
    rewrites: bool


TABLE: Mapping[str, Algorithm] = {}
