"""The ranges of quantized values and what they clip, as rows for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lq_plugin.learning import ValueRange
from lq_plugin.report import formats
from lq_plugin.report.manifest import Manifest, computable
from lq_plugin.report.strips import histogram

MOST = 60  # values on a page, of all candidates together: a histogram takes about 3.5 KB


@dataclass(frozen=True)
class RangeTable:
    """The quantized values of one candidate.

    Args:
        candidate: its name.
        rows: a value and its histogram as SVG, which is empty where none was kept; those that clip most come first.
        total: how many values there are.
    """

    candidate: str
    rows: Sequence[tuple[ValueRange, str]]
    total: int


def range_tables(manifest: Manifest) -> list[RangeTable]:
    """Return the quantized values of every candidate of which they are known."""
    known = {name: found for name, found in manifest.ranges.items() if found}
    most = MOST // max(len(known), 1)
    return [
        RangeTable(name, [(made, _histogram(made)) for made in found[:most]], len(found))
        for name, found in known.items()
    ]


def _histogram(made: ValueRange) -> str:
    ends = [computable(value) for value in (made.lowest, made.highest, made.low, made.high)]
    lowest, highest, low, high = ends
    if not made.bins or lowest is None or highest is None or low is None or high is None:
        return ""
    told = f"{made.name}: {formats.small_percent(made.clipped)} clipped"
    return histogram(made.bins, (lowest, highest), (low, high), told)
