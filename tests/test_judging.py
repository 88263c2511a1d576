"""A gain counts where it is certain, not where it comes from few samples."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor, nn

import lq_plugin
from lq_plugin import Scheme
from lq_plugin.judging import EXACT_DB, Closeness, Judge, certainty, verdict


def closeness(*noise: Tensor) -> Closeness:
    """Of outputs with a power of 100 in each sample."""
    return Closeness(torch.full((len(noise), len(noise[0])), 100.0, dtype=torch.float64), torch.stack(noise).double())


EVEN = torch.linspace(1, 2, 16)


def test_a_gain_in_all_samples_is_kept() -> None:
    found = verdict({"openvino": closeness(EVEN)}, {"openvino": closeness(EVEN * 0.9)})
    assert (found.kept_on, found.reason) == (("openvino",), "")


def test_a_gain_in_a_single_sample_is_refused() -> None:
    before = EVEN.clone()
    before[3] = 100
    found = verdict({"openvino": closeness(before)}, {"openvino": closeness(EVEN)})
    assert found.kept_on == ()
    assert found.reason == ("+7.09 dB on openvino is uncertain: 1.0 standard errors; at least 2.5 are needed")


def test_each_runtime_has_its_own_verdict() -> None:
    before = dict.fromkeys(("onnxruntime", "openvino"), closeness(EVEN, EVEN))
    found = verdict(before, {"onnxruntime": closeness(EVEN / 4, EVEN * 1.1), "openvino": closeness(EVEN / 4, EVEN)})
    assert found.kept_on == ("openvino",)
    assert found.reason == "the worst output loses accuracy on onnxruntime"


def test_certainty_is_the_t_of_a_paired_test() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(9, generator=generator).double() for _ in range(2))
    fallen = (one - other).tolist()
    expected = statistics.mean(fallen) / (statistics.stdev(fallen) / 3)
    assert certainty(closeness(one), closeness(other)) == pytest.approx(expected)
    assert certainty(closeness(one, 100 * one), closeness(other, 100 * other)) == pytest.approx(expected)
    assert certainty(closeness(one[:1]), closeness(one[:1] / 2)) == math.inf


@pytest.mark.parametrize(
    ("noise", "decibels"), [(0.0, EXACT_DB), (1.0, 20.0), (torch.nan, -EXACT_DB), (torch.inf, -EXACT_DB)]
)
def test_decibels_are_finite(noise: float, decibels: float) -> None:
    assert closeness(torch.full((4,), noise)).decibels == [decibels]


class Pooling(nn.Module):
    """One output by sample, one for the whole batch, one with infinities."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, x.mean(0), torch.where(x > 0, x, -torch.inf)


@pytest.mark.parametrize(("forward", "units"), [(nn.Identity(), 24), (Pooling(), 3)])
def test_samples_are_told_apart_where_outputs_allow(forward: nn.Module, units: int) -> None:
    linear = nn.Linear(4, 4)
    calls = [torch.randn(8, 4) for _ in range(3)]
    candidate = lq_plugin.quantize(nn.Sequential(linear, forward).eval(), calls, Scheme(algorithms=()))
    judge = Judge.of(candidate, [(call,) for call in calls])
    found = judge.on_runtimes(candidate, ["openvino"])["openvino"]
    assert found.noise.shape[1] == units
    assert all(25 < each < 80 for each in found.decibels)
    assert judge.in_float(candidate).decibels == [EXACT_DB] * len(found.decibels)
