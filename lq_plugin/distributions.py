"""What was observed of every value that a candidate quantizes, beside the range that it is quantized in."""

from __future__ import annotations

from dataclasses import replace

from lq_plugin.candidate import Candidate, StaticCandidate
from lq_plugin.learning import ValueRange
from lq_plugin.observers import Observer


def value_ranges(candidate: Candidate, most: int) -> tuple[ValueRange, ...]:
    """Return the ranges of the quantized values, once for runtimes that have the same one; none for dynamic candidates.

    Args:
        candidate: with its statistics.
        most: how many to return; those that clip most come first.
    """
    if not isinstance(candidate, StaticCandidate):
        return ()
    found: dict[ValueRange, list[str]] = {}
    for runtime in candidate.runtimes:
        own = candidate.variants.get(runtime, candidate)
        for name, source in own.placed(runtime).scales.items():
            found.setdefault(_range(own, name, source), []).append(runtime)
    every = [replace(made, runtimes=tuple(sorted(runtimes))) for made, runtimes in found.items()]
    return tuple(sorted(every, key=lambda made: -(made.clipped or 0.0))[:most])


def _range(candidate: StaticCandidate, name: str, source: str) -> ValueRange:
    observer = candidate.scheme.observer
    assert isinstance(observer, Observer)
    statistic = candidate.statistics.get(name) or candidate.statistics[source]
    low, high = candidate.ranges[source]
    lowest, highest = observer.extremes(statistic)
    clipped = observer.share_outside(statistic, (low, high))
    return ValueRange(name, low, high, lowest, highest, clipped, observer.bins(statistic))
