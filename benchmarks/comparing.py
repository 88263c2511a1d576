"""What a cell says: the fastest lane of each kind, ours against the others, and whether what is selected is slower."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.lanes import LANES

BOUND = 1.05  # of the time of the best of the other tools
Result = dict[str, Any]


@dataclass(frozen=True)
class Ratio:
    """Of two lanes' times.

    Args:
        within: the median of the ratios of rounds, in which noise that outlasts a round cancels out.
        quietest: of both lanes' fastest rounds, for a machine that others use in bursts.
    """

    within: float
    quietest: float

    @property
    def is_above(self) -> bool:
        """Whether it is above the bound; noise seldom makes both so."""
        return min(self.within, self.quietest) > BOUND

    def __str__(self) -> str:
        text = f"{self.within:.2f} ({self.quietest:.2f})"
        return f"**{text}**" if self.is_above else text


@dataclass(frozen=True)
class Comparison:
    """The fastest lanes of a cell; ``None`` where no lane of that kind ran."""

    fp32: str | None
    peer: str | None
    ours: str | None
    ratio: Ratio | None
    selected: str | None
    selected_ratio: float | None


def times(lane: Result, rounds: slice = slice(None)) -> list[float]:
    """The median of each round, in milliseconds."""
    return [turn["median_ms"] for turn in lane.get("rounds", [])[rounds]]


def fastest(lanes: Result, kind: str, rounds: slice = slice(None)) -> str | None:
    """The lane of least median among those of a kind that ran."""
    ran = {name: times(lane, rounds) for name, lane in lanes.items() if LANES[name].kind == kind}
    return min((name for name in ran if ran[name]), key=lambda name: statistics.median(ran[name]), default=None)


def ratio(lanes: Result, above: str, below: str) -> Ratio:
    """Within the rounds in which both took part, and between their quietest rounds."""
    one, other = times(lanes[above]), times(lanes[below])
    within = statistics.median(a / b for a, b in zip(one, other, strict=False))
    return Ratio(within, min(one) / min(other))


def compare(lanes: Result) -> Comparison:
    """Ours against the best INT8 of the others, or against FP32 where they have none.

    The selected artifact is chosen by every second round, as a user's selection is made by measurement before use, and
    compared with the fastest FP32 runtime in the others: whoever is chosen by noise does not look fast by the same
    noise. None is selected where FP32 is faster.
    """
    fp32, ours = fastest(lanes, "fp32"), fastest(lanes, "ours")
    peer = fastest(lanes, "peer") or fp32
    found = ratio(lanes, ours, peer) if ours and peer else None
    return Comparison(fp32, peer, ours, found, *_selected(lanes))


def _selected(lanes: Result) -> tuple[str | None, float | None]:
    first, second = slice(0, None, 2), slice(1, None, 2)
    chosen, rival = fastest(lanes, "ours", first), fastest(lanes, "fp32", first)
    if chosen is None or rival is None:
        return None, None
    if statistics.median(times(lanes[chosen], first)) >= statistics.median(times(lanes[rival], first)):
        return None, None
    best = fastest(lanes, "fp32", second)
    if best is None or not times(lanes[chosen], second):
        return chosen, None
    return chosen, statistics.median(times(lanes[chosen], second)) / statistics.median(times(lanes[best], second))


def family(model: str) -> str:
    """The model without its length: three lengths of one encoder weigh as much as one model."""
    return model.rstrip("0123456789").rstrip("_") if model.startswith("bert_") else model


def geometric_mean(found: Iterable[tuple[str, float]]) -> float | None:
    """Over models, and before that over the rows of each."""
    grouped: dict[str, list[float]] = {}
    for model, value in found:
        grouped.setdefault(family(model), []).append(math.log(value))
    means = [statistics.mean(logs) for logs in grouped.values()]
    return math.exp(statistics.mean(means)) if means else None


def spread(lane: Result) -> tuple[float, float, float]:
    """Median of the rounds' medians; the quietest of them; median of the rounds' 90 % quantiles; in milliseconds."""
    medians = times(lane)
    return (
        statistics.median(medians),
        min(medians),
        statistics.median(turn["p90_ms"] for turn in lane["rounds"]),
    )


def settings(cells: Result) -> Sequence[tuple[int, int]]:
    """Batch sizes and threads of all cells, in order."""
    found = {tuple(map(int, key.split("/"))) for model in cells.values() for key in model}
    return sorted((batch, threads) for batch, threads in found)
