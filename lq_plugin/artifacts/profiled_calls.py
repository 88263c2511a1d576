"""How often an artifact is called under a runtime's profiler, and which of the calls count."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

_FIRST = 5  # these do not count
CALLS = _FIRST + 35


def typical(times: Sequence[float]) -> float:
    """Return the median of a node's times in all calls that count."""
    return statistics.median(times[_FIRST:])
