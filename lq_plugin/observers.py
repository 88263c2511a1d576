"""How the range of a value is learnt from what passes through it.

An observer is a frozen dataclass of options with three pure methods. Its *statistic* is a dict of tensors, so that it
can live in a checkpoint, and statistics of several processes merge. To add an observer, write its dataclass and add it
to ``OBSERVERS``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lq_plugin.errors import ConfigError
from lq_plugin.qparams import QuantSpec, scale_of, zero_point_of
from lq_plugin.renamed import refuse_old

Statistic = dict[str, Tensor]
Range = tuple[float, float]  # lowest and highest value to represent
_BINS = 4096
_CLIP_STEPS = 100
_SHOWN_BINS = 32
_SEARCHED = QuantSpec(signed=False)  # what a histogram's range is best for; int8 gives the same
_FURTHEST = 2.0**110  # what is further from zero counts as this: float32 arithmetic on ranges and bins would overflow


@dataclass(frozen=True)
class Observer(ABC):
    """How a range is learnt. A statistic is whatever its methods make of it; an empty one has observed nothing."""

    name: ClassVar[str]

    @abstractmethod
    def update(self, statistic: Statistic, values: Tensor) -> Statistic:
        """Return the statistic after ``values``, a non-empty tensor of any shape."""

    @abstractmethod
    def merge(self, statistics: Sequence[Statistic]) -> Statistic:
        """Return the statistic of everything that went into the given ones, at least one."""

    @abstractmethod
    def range(self, statistic: Statistic) -> Range:
        """Return the lowest and the highest value to represent."""

    def extremes(self, statistic: Statistic) -> Range:
        """Return the lowest and the highest value observed, as far as the statistic tells."""
        return self.range(statistic)

    def bins(self, statistic: Statistic) -> tuple[int, ...]:
        """Return counts in up to 32 equal bins between the extremes; none where the statistic keeps no counts."""
        return ()

    def share_outside(self, statistic: Statistic, bounds: Range) -> float | None:
        """Return the share of the values that lie outside of a range; ``None`` where the statistic keeps no counts."""
        return None


@dataclass(frozen=True)
class MinMaxObserver(Observer):
    """Range of everything observed."""

    name: ClassVar[str] = "minmax"

    def update(self, statistic: Statistic, values: Tensor) -> Statistic:
        return self.merge([statistic, _extremes(values)]) if statistic else _extremes(values)

    def merge(self, statistics: Sequence[Statistic]) -> Statistic:
        return {
            "low": torch.stack([statistic["low"] for statistic in statistics]).amin(),
            "high": torch.stack([statistic["high"] for statistic in statistics]).amax(),
        }

    def range(self, statistic: Statistic) -> Range:
        return statistic["low"].item(), statistic["high"].item()


@refuse_old("momentum")
@dataclass(frozen=True)
class MovingAverageMinMaxObserver(Observer):
    """Exponential moving average of every batch's minimum and maximum.

    Averages over time cannot be replayed, so when statistics merge, each process counts the same.

    Args:
        averaging_constant: weight of a new batch, in (0, 1].
    """

    averaging_constant: float = 0.1
    name: ClassVar[str] = "moving_average"

    def __post_init__(self) -> None:
        if not 0 < self.averaging_constant <= 1:
            raise ConfigError(
                f"averaging_constant: {self.averaging_constant} is out of range. Allowed: above 0, up to 1."
            )

    def update(self, statistic: Statistic, values: Tensor) -> Statistic:
        new = _extremes(values)
        return {key: torch.lerp(statistic[key], new[key], self.averaging_constant) for key in new} if statistic else new

    def merge(self, statistics: Sequence[Statistic]) -> Statistic:
        return {key: torch.stack([statistic[key] for statistic in statistics]).mean() for key in ("low", "high")}

    def range(self, statistic: Statistic) -> Range:
        return statistic["low"].item(), statistic["high"].item()


class _HistogramStatistic(Observer):
    """Counts in equal bins over ``[-limit, limit]``, where ``limit`` is a power of two.

    A range that grows doubles the limit and adds the bins in pairs, which is exact: any order of updates and merges
    gives the same counts.
    """

    def update(self, statistic: Statistic, values: Tensor) -> Statistic:
        finite, low, high = _finite(values)
        finite, largest = finite.float(), torch.maximum(low.float().abs(), high.float().abs())
        if largest > _FURTHEST:
            finite, largest = finite.clamp(-_FURTHEST, _FURTHEST), largest.clamp(max=_FURTHEST)
        limit = torch.exp2(torch.ceil(torch.log2(largest.clamp(min=2.0**-100)))).cpu()
        # log2 is rounded: values that it leaves outside, by a few units in the last place, have no bin.
        if largest > limit.item():
            finite = finite[finite.abs() <= limit.item()]
        new = {"counts": _counts(finite, limit.item()), "limit": limit}
        return self.merge([statistic, new]) if statistic else new

    def merge(self, statistics: Sequence[Statistic]) -> Statistic:
        limit = torch.stack([statistic["limit"] for statistic in statistics]).amax()
        return {
            "counts": torch.stack([_widened(statistic, limit) for statistic in statistics]).sum(0),
            "limit": limit,
        }

    def extremes(self, statistic: Statistic) -> Range:
        return _occupied(statistic)[2:]

    def bins(self, statistic: Statistic) -> tuple[int, ...]:
        taken = statistic["counts"].nonzero().flatten()
        if not len(taken):
            return ()
        fine = statistic["counts"][taken[0] : taken[-1] + 1]
        # Each fine bin goes to the coarse one that its lower edge is in.
        coarse = torch.arange(len(fine)) * min(_SHOWN_BINS, len(fine)) // len(fine)
        return tuple(torch.zeros(int(coarse[-1]) + 1, dtype=fine.dtype).index_add_(0, coarse, fine).tolist())

    def share_outside(self, statistic: Statistic, bounds: Range) -> float | None:
        centers, counts, _, _ = _occupied(statistic)
        inside = (centers >= min(bounds[0], 0.0)) & (centers <= max(bounds[1], 0.0))  # zero is part of every range
        return float(counts[~inside].sum() / counts.sum())


@dataclass(frozen=True)
class HistogramObserver(_HistogramStatistic):
    """Range with the least mean squared error of 8-bit quantization, searched on a histogram of everything observed."""

    name: ClassVar[str] = "histogram"

    def range(self, statistic: Statistic) -> Range:
        centers, counts, low, high = _occupied(statistic)
        _, high = _least_error(centers, counts, [(low, high * n / _CLIP_STEPS) for n in range(1, _CLIP_STEPS + 1)])
        return _least_error(centers, counts, [(low * n / _CLIP_STEPS, high) for n in range(1, _CLIP_STEPS + 1)])


@dataclass(frozen=True)
class PercentileObserver(_HistogramStatistic):
    """Range that leaves out the outermost values on both sides, read from a histogram of everything observed.

    Args:
        percentile: share of the values kept below the upper and above the lower end, in percent, in (50, 100].
    """

    percentile: float = 99.99
    name: ClassVar[str] = "percentile"

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ConfigError(f"percentile: {self.percentile} is out of range. Allowed: above 50, up to 100.")

    def range(self, statistic: Statistic) -> Range:
        edges = _edges(statistic)
        share = statistic["counts"].cumsum(0).double() / statistic["counts"].sum()
        keep = self.percentile / 100
        low = int((share <= 1 - keep).sum())
        high = int((share < keep).sum()) + 1
        return edges[low].item(), edges[high].item()


OBSERVERS: dict[str, type[Observer]] = {
    observer.name: observer
    for observer in (HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver, PercentileObserver)
}


def _finite(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The finite values in one dimension, their lowest and their highest.

    Picking values out takes 60 times longer than finding their ends (1.6 million on a CPU: 14.5 ms and .23), and hardly
    any tensor needs it: where one value is not finite, an end is not.
    """
    finite = values.flatten()
    low, high = _ends(finite)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        finite = finite[torch.isfinite(finite)]
        low, high = _ends(finite)
    return finite, low, high


def _ends(values: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest of the values, nan if one of them is; zeros if there are none."""
    low, high = torch.aminmax(values if values.numel() else torch.zeros(1))
    return low, high


def _counts(values: Tensor, limit: float) -> Tensor:
    """How many float32 values lie in each bin over ``[-limit, limit]``, which holds all of them.

    The bins are those of ``torch.histc``, bit for bit: ``limit`` is a power of two, so the sum is the only step that
    rounds. ``bincount`` takes a fifth of the time (1.6 million after a ReLU on a CPU: 2.1 ms and 10.1), and is exact:
    ``histc`` counts in float32, where a bin stops at 2**24.
    """
    half = _BINS // 2
    bins = values.mul(half / limit).add_(half).to(torch.int16).clamp_(max=_BINS - 1)  # the upper end is in the last bin
    return torch.bincount(bins, minlength=_BINS).cpu()


def _extremes(values: Tensor) -> Statistic:
    _, low, high = _finite(values)
    return {name: end.float().clamp(-_FURTHEST, _FURTHEST).cpu() for name, end in (("low", low), ("high", high))}


def _widened(statistic: Statistic, limit: Tensor) -> Tensor:
    """The counts over ``[-limit, limit]``, a range at least as wide as the statistic's own."""
    counts = statistic["counts"]
    doublings = round(float(torch.log2(limit) - torch.log2(statistic["limit"])))  # the quotient may overflow float32
    for _ in range(min(doublings, _BINS)):
        paired = counts.view(-1, 2).sum(1)
        counts = torch.nn.functional.pad(paired, (_BINS // 4, _BINS // 4))
    return counts


def _edges(statistic: Statistic) -> Tensor:
    limit = statistic["limit"].item()
    return torch.linspace(-limit, limit, _BINS + 1, dtype=torch.float64)


def _occupied(statistic: Statistic) -> tuple[Tensor, Tensor, float, float]:
    """Centers and counts of the bins that hold something, and the outer edges of the first and the last."""
    edges, counts = _edges(statistic), statistic["counts"]
    taken = counts.nonzero().flatten()
    if not len(taken):
        return torch.zeros(1), torch.ones(1), 0.0, 0.0
    centers = (edges[:-1] + edges[1:]) / 2
    low, high = edges[taken[0]].item(), edges[taken[-1] + 1].item()
    return centers[taken], counts[taken].double(), low, high


def _least_error(centers: Tensor, counts: Tensor, ranges: Sequence[Range]) -> Range:
    """The range with the least squared error over the histogram when the levels are spread over it."""
    low, high = torch.tensor(ranges, dtype=torch.float64).hsplit(2)
    scale = scale_of(low, high, _SEARCHED).clamp(min=torch.finfo(torch.float32).tiny)
    zero = zero_point_of(low, scale, _SEARCHED)
    levels = (centers / scale + zero).round().clamp(_SEARCHED.lowest, _SEARCHED.highest)
    represented = (levels - zero) * scale
    errors = ((represented - centers) ** 2 * counts).sum(1)
    return ranges[int(errors.argmin())]
