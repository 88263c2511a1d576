"""Observers against independent references in numpy, on plain and on awkward values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lq_plugin.errors import ConfigError
from lq_plugin.observers import (
    OBSERVERS,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    Observer,
    PercentileObserver,
    Statistic,
)

MERGING = [MinMaxObserver(), HistogramObserver(), PercentileObserver(99.0)]
BINS = 4096


def parts(seed: int = 0) -> list[Tensor]:
    """Batches whose ranges differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(500, generator=generator) * scale + shift for scale, shift in ((1, 0), (30, 2), (0.01, -5))]


def seen(observer: Observer, batches: list[Tensor]) -> Statistic:
    statistic: Statistic = {}
    for batch in batches:
        statistic = observer.update(statistic, batch)
    return statistic


def equal(left: Statistic, right: Statistic) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("observer", MERGING, ids=lambda observer: observer.name)
def test_merged_parts_are_the_whole_bit_for_bit(observer: Observer) -> None:
    first, second, third = parts()
    merged = observer.merge([seen(observer, [first, third]), seen(observer, [second])])
    assert equal(merged, seen(observer, [torch.cat([first, second, third])]))


@pytest.mark.parametrize("observer", MERGING, ids=lambda observer: observer.name)
def test_the_order_of_batches_does_not_matter(observer: Observer) -> None:
    assert equal(seen(observer, parts()), seen(observer, parts()[::-1]))


@pytest.mark.parametrize("observer", MERGING, ids=lambda observer: observer.name)
def test_statistics_hold_tensors_only_and_survive_a_checkpoint(observer: Observer, tmp_path: object) -> None:
    torch.save(seen(observer, parts()), f"{tmp_path}/statistic.pt")
    assert equal(torch.load(f"{tmp_path}/statistic.pt", weights_only=True), seen(observer, parts()))


def _by_histc(values: Tensor) -> Statistic:
    """The histogram of one batch as stored calibrations hold it: by ``torch.histc``, on the finite values."""
    finite = values[torch.isfinite(values)].float().clamp(-(2.0**110), 2.0**110)
    largest = finite.abs().amax() if finite.numel() else torch.zeros(())
    limit = torch.exp2(torch.ceil(torch.log2(largest.clamp(min=2.0**-100))))
    return {"counts": torch.histc(finite, BINS, -limit.item(), limit.item()).long(), "limit": limit}


def _by_picking(values: Tensor) -> Statistic:
    """The extremes of one batch as stored calibrations hold them."""
    finite = values[torch.isfinite(values)]
    low, high = torch.aminmax(finite if finite.numel() else torch.zeros(1))
    return {"low": low.float().clamp(-(2.0**110), 2.0**110), "high": high.float().clamp(-(2.0**110), 2.0**110)}


def _identical(left: Statistic, right: Statistic) -> bool:
    """Equal to the last bit, the sign of a zero included."""
    return left.keys() == right.keys() and all(
        left[key].dtype == right[key].dtype
        and left[key].shape == right[key].shape
        and left[key].numpy().tobytes() == right[key].numpy().tobytes()
        for key in left
    )


def _edges(limit: float) -> Tensor:
    """The edges of all bins over ``[-limit, limit]`` and the numbers next to them inside it."""
    edges = torch.arange(-BINS // 2, BINS // 2 + 1) * (limit / (BINS // 2))
    far = torch.tensor(torch.inf)
    return torch.cat([edges, edges.nextafter(far)[:-1], edges.nextafter(-far)[1:]])


def _random(seed: int) -> list[Tensor]:
    """Random tensors of a random scale, as they come and as they may come."""
    generator = torch.Generator().manual_seed(seed)
    exponent, shift = torch.randint(-140, 128, (1,), generator=generator).item(), torch.randn(1, generator=generator)
    plain = (torch.randn(3, 8, 5, 6, generator=generator) + shift) * 2.0**exponent
    broken = plain.clone()
    broken.view(-1)[::7] = torch.tensor([torch.nan, torch.inf, -torch.inf])[seed % 3]
    kinds = [plain, plain.relu(), -plain.relu(), broken, plain.double(), plain.bfloat16(), broken.bfloat16()]
    kinds += [values.clamp(-60_000, 60_000).half() for values in (plain, broken)]
    views = [plain.contiguous(memory_format=torch.channels_last), plain.mT, plain[:, ::3], broken[..., 1::2]]
    return [*kinds, *views, plain[:1].expand(4, -1, -1, -1)]


def _around_powers_of_two() -> list[Tensor]:
    """Values whose largest is next to a power of two, where a rounded logarithm may tell either side."""
    units = torch.arange(-40, 41, dtype=torch.int32)  # in the last place
    exponents = (-101, -100, -50, 2, 7, 64, 109, 110, 126)
    near = [(torch.tensor(2.0**exponent).view(torch.int32) + units).view(torch.float32) for exponent in exponents]
    return [sign * values[:count] for values in near for count in range(1, len(units) + 1, 5) for sign in (1, -1)]


_AWKWARD: dict[str, Callable[[], list[Tensor]]] = {
    "edges": lambda: [_edges(2.0**exponent) for exponent in (-100, -37, -1, 0, 5, 110)],
    "edges of half precision": lambda: [_edges(4.0).half(), _edges(4.0).bfloat16()],
    "around powers of two": _around_powers_of_two,
    "constants": lambda: [torch.full((3, 5), x) for x in (0.0, -0.0, 1.0, 4.0, -4.0, 3.1, 1e-42, -1e-30, 3e38)],
    "zeros of both signs": lambda: [torch.tensor([0.0, -0.0] * 40), torch.tensor([-0.0, 0.0] * 40).view(8, 10).T],
    "nothing finite": lambda: [torch.tensor([torch.nan, torch.inf]), torch.full((2, 2), -torch.inf).bfloat16()],
    "one value": lambda: [torch.tensor(2.5), torch.tensor(torch.inf), torch.tensor([[-7.0]])],
    "no value": lambda: [torch.zeros(0), torch.zeros(3, 0)],
    "ends of other types": lambda: [
        torch.tensor([1e300, -2.0], dtype=torch.float64),
        torch.tensor([65504.0, -65504.0, 6e-8], dtype=torch.float16),
        torch.tensor([3.3e38, 1e-38], dtype=torch.bfloat16),
    ],
    "integers": lambda: [torch.arange(-9, 6), torch.tensor([-128, 127], dtype=torch.int8)],
    "random": lambda: [values for seed in range(60) for values in _random(seed)],
}


@pytest.mark.parametrize("kind", _AWKWARD)
def test_statistics_are_bit_for_bit_those_that_stored_calibrations_hold(kind: str) -> None:
    for values in _AWKWARD[kind]():
        assert _identical(HistogramObserver().update({}, values), _by_histc(values))
        assert _identical(MinMaxObserver().update({}, values), _by_picking(values))


def test_a_bin_counts_further_than_float32_can() -> None:
    zeros = 2**24 + 3
    statistic = HistogramObserver().update({}, torch.zeros(zeros, dtype=torch.bfloat16))
    assert statistic["counts"].max() == zeros


def test_minmax_is_the_range_of_everything() -> None:
    values = torch.cat(parts()).numpy()
    assert MinMaxObserver().range(seen(MinMaxObserver(), parts())) == (values.min().item(), values.max().item())


@pytest.mark.parametrize("averaging_constant", [0.1, 0.5, 1.0])
def test_the_moving_average_follows_its_recurrence(averaging_constant: float) -> None:
    low, high = (float(extreme(parts()[0].numpy())) for extreme in (np.min, np.max))
    for batch in parts()[1:]:
        low += averaging_constant * (batch.min().item() - low)
        high += averaging_constant * (batch.max().item() - high)
    observer = MovingAverageMinMaxObserver(averaging_constant)
    assert observer.range(seen(observer, parts())) == pytest.approx((low, high), rel=1e-5)


def test_moving_averages_of_processes_count_the_same() -> None:
    observer = MovingAverageMinMaxObserver()
    statistics = [seen(observer, [part]) for part in parts()]
    lows, highs = zip(*(observer.range(statistic) for statistic in statistics), strict=True)
    expected = (float(np.mean(lows)), float(np.mean(highs)))
    assert observer.range(observer.merge(statistics)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("percentile", [75.0, 99.0, 99.9])
def test_a_percentile_leaves_out_as_many_values_on_both_sides(percentile: float) -> None:
    values = np.sort(torch.cat(parts()).numpy())
    left_out = int(len(values) * (100 - percentile) / 100 + 1e-9)
    expected = float(values[left_out]), float(values[-1 - left_out])
    bin_width = float(2 * 2 ** np.ceil(np.log2(np.abs(values).max())) / BINS)
    assert PercentileObserver(percentile).range(seen(PercentileObserver(percentile), parts())) == pytest.approx(
        expected, abs=bin_width
    )


def test_the_whole_percentile_holds_every_value() -> None:
    values = torch.cat(parts())
    low, high = PercentileObserver(100).range(seen(PercentileObserver(100), parts()))
    assert low <= values.min()
    assert high >= values.max()


def test_the_histogram_clips_an_outlier_where_that_costs_less() -> None:
    values = torch.cat([torch.randn(2_000_000, generator=torch.Generator().manual_seed(0)), torch.tensor([60.0])])
    low, high = HistogramObserver().range(seen(HistogramObserver(), [values]))
    extremes = (float(values.min()), float(values.max()))
    assert high < 0.5 * extremes[1]
    assert _squared_error(values.numpy(), low, high) < 0.5 * _squared_error(values.numpy(), *extremes)


def test_the_histograms_range_is_the_best_of_a_search_on_the_values_themselves() -> None:
    values = torch.distributions.Laplace(0.5, 1.0).icdf(torch.linspace(1e-4, 1 - 1e-4, 20_000)).numpy()
    chosen = _squared_error(values, *HistogramObserver().range(seen(HistogramObserver(), [torch.from_numpy(values)])))
    grid = np.linspace(0.05, 1.0, 20)
    best = min(_squared_error(values, values.min() * low, values.max() * high) for low in grid for high in grid)
    assert chosen <= 1.1 * best


def _squared_error(values: np.ndarray, low: float, high: float) -> float:
    """Mean squared error of affine 8-bit quantization, with zero exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    levels = np.clip(np.round(values / scale + zero), 0, 255)
    return float((((levels - zero) * scale - values) ** 2).mean())


@pytest.mark.parametrize("name", OBSERVERS)
def test_infinite_and_undefined_values_are_left_out(name: str) -> None:
    observer = OBSERVERS[name]()
    batch = parts()[0]
    broken = torch.cat([batch, torch.tensor([torch.inf, -torch.inf, torch.nan])])
    assert equal(seen(observer, [broken]), seen(observer, [batch]))


@pytest.mark.parametrize("name", OBSERVERS)
def test_nothing_but_undefined_values_gives_a_range_of_zero(name: str) -> None:
    observer = OBSERVERS[name]()
    low, high = observer.range(seen(observer, [torch.full((4,), torch.nan)]))
    assert low == pytest.approx(0, abs=1e-20)
    assert high == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("value", [3.0, -3.0, 1e-12, 4.0])
def test_a_constant_is_inside_its_own_range(name: str, value: float) -> None:
    observer = OBSERVERS[name]()
    low, high = observer.range(seen(observer, [torch.full((64,), value)]))
    assert min(low, 0) <= value <= max(high, 0) or min(abs(low - value), abs(high - value)) <= abs(value) / 100
    assert max(abs(low), abs(high)) <= abs(value) * 1.01


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_at_the_end_of_float32_have_a_finite_range_that_is_known_to_be_wide(
    name: str, dtype: torch.dtype
) -> None:
    observer = OBSERVERS[name]()
    furthest = 3e38 if dtype == torch.float32 else 1e300
    batch = torch.tensor([furthest, -furthest, 1.0, 2.0], dtype=dtype)
    statistic = seen(observer, [batch, -batch / 2, torch.ones(4)])
    assert all(tensor.isfinite().all() for tensor in statistic.values())
    assert np.isfinite(observer.range(observer.merge([statistic, statistic]))).all()
    low, high = observer.extremes(statistic)
    assert low < -1e30
    assert high > 1e30
    assert "counts" not in statistic or int(statistic["counts"].sum()) == 3 * 4


@pytest.mark.parametrize("observer", MERGING, ids=lambda observer: observer.name)
def test_the_extremes_are_those_of_everything_seen(observer: Observer) -> None:
    values = torch.cat(parts())
    limit = 2.0 ** np.ceil(np.log2(float(values.abs().max())))
    expected = float(values.min()), float(values.max())
    assert observer.extremes(seen(observer, parts())) == pytest.approx(expected, abs=2 * limit / BINS)


@pytest.mark.parametrize("name", OBSERVERS)
def test_zeros_give_a_range_of_zero(name: str) -> None:
    observer = OBSERVERS[name]()
    low, high = observer.range(seen(observer, [torch.zeros(16)]))
    assert (low, high) == pytest.approx((0, 0), abs=1e-20)


@pytest.mark.parametrize("name", OBSERVERS)
def test_half_precision_is_observed_as_its_float_values(name: str) -> None:
    observer = OBSERVERS[name]()
    batch = parts()[0].bfloat16()
    assert equal(seen(observer, [batch]), seen(observer, [batch.float()]))


@pytest.mark.parametrize("observer", MERGING, ids=lambda observer: observer.name)
def test_zeros_merge_with_the_furthest_values(observer: Observer) -> None:
    zeros, masked = torch.zeros(8), torch.tensor([-1e9, torch.finfo(torch.float32).min, 0.0])
    low, high = observer.extremes(observer.merge([seen(observer, [zeros]), seen(observer, [masked])]))
    assert low < -1e30
    assert 0 <= high < 1e30
    assert equal(seen(observer, [zeros, masked]), seen(observer, [masked, zeros]))


def test_the_input_is_not_changed() -> None:
    for observer in OBSERVERS.values():
        batch = parts()[0]
        seen(observer(), [batch])
        assert torch.equal(batch, parts()[0])


@pytest.mark.parametrize("averaging_constant", [0.0, -1.0, 1.5])
def test_an_averaging_constant_out_of_range_is_refused(averaging_constant: float) -> None:
    with pytest.raises(ConfigError, match=r"averaging_constant: .* out of range"):
        MovingAverageMinMaxObserver(averaging_constant)


@pytest.mark.parametrize("percentile", [50.0, 0.0, 100.5])
def test_a_percentile_out_of_range_is_refused(percentile: float) -> None:
    with pytest.raises(ConfigError, match=r"percentile: .* out of range"):
        PercentileObserver(percentile)


@pytest.mark.parametrize("spread", [0.003, 1.0, 40.0])
def test_a_histogram_is_shown_in_few_bins_that_count_every_value(spread: float) -> None:
    values = spread * torch.randn(5000, generator=torch.Generator().manual_seed(0))
    observer = HistogramObserver()
    statistic = observer.update({}, values)
    bins, (low, high) = observer.bins(statistic), observer.extremes(statistic)
    assert (sum(bins), len(bins)) == (5000, 32)
    expected = np.histogram(values.numpy(), len(bins), (low, high))[0]
    # A bin's edge may lie within one of the statistic's own, much finer ones.
    assert np.abs(np.cumsum(bins) - np.cumsum(expected)).max() < 60
    outside = int(((values < -spread) | (values > 2 * spread)).sum())
    assert observer.share_outside(statistic, (-spread, 2 * spread)) == pytest.approx(outside / 5000, abs=0.005)
    assert observer.share_outside(statistic, (low, high)) == 0


def test_few_values_have_few_bins_and_none_have_none() -> None:
    observer = HistogramObserver()
    assert observer.bins(observer.update({}, torch.tensor([0.5, 0.5]))) == (2,)
    assert observer.bins(observer.update({}, torch.tensor([float("nan")]))) == ()
    minmax = MinMaxObserver()
    statistic = minmax.update({}, torch.ones(3))
    assert (minmax.bins(statistic), minmax.share_outside(statistic, (0.0, 0.5))) == ((), None)
