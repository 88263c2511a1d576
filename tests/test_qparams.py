"""Scales, zero points and levels are the expected numbers, and those of torch's own observers."""

from __future__ import annotations

import pytest
import torch
from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver

from lq_plugin.qparams import QuantSpec, activation_qparams, weight_qparams
from lq_plugin.scheme import Scheme


@pytest.mark.parametrize(
    ("dtype", "symmetric", "bounds", "expected"),
    [
        ("uint8", False, (-1.0, 3.0), (4 / 255, 64)),
        ("uint8", False, (0.5, 2.55), (0.01, 0)),  # zero is always in the range
        ("uint8", False, (-2.55, -1.0), (0.01, 255)),
        ("uint8", True, (-1.0, 2.54), (0.02, 128)),
        ("int8", False, (-1.0, 3.0), (4 / 255, -64)),
        ("int8", True, (-1.27, 1.0), (0.01, 0)),
    ],
)
def test_scale_and_zero_point_are_the_expected_numbers(
    dtype: str, symmetric: bool, bounds: tuple[float, float], expected: tuple[float, int]
) -> None:
    spec = QuantSpec(signed=dtype == "int8", symmetric=symmetric)
    scale, zero_point = activation_qparams(bounds, spec)
    assert (scale, zero_point) == (pytest.approx(expected[0]), expected[1])
    assert str(spec.dtype) == f"torch.{dtype}"


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bounds", [(0.0, 0.0), (1e-30, 1e-30), (-1e-30, 0.0)])
def test_an_empty_range_still_has_a_scale_above_zero(bounds: tuple[float, float], symmetric: bool) -> None:
    spec = QuantSpec(signed=False, symmetric=symmetric)
    scale, zero_point = activation_qparams(bounds, spec)
    assert scale > 0
    assert spec.lowest <= zero_point <= spec.highest


@pytest.mark.parametrize(
    ("scheme", "levels"),
    [
        (Scheme(reduce_range=False), (-127, 127)),
        (Scheme(reduce_range=True), (-63, 63)),
        (Scheme(reduce_range=False, weight_symmetric=False), (-128, 127)),
        (Scheme(reduce_range=True, weight_symmetric=False), (-64, 63)),
    ],
)
@pytest.mark.parametrize(("per_channel", "axis"), [(False, 0), (True, 0), (True, 1)])
def test_weights_have_the_scales_that_torchs_observers_give(
    scheme: Scheme, levels: tuple[int, int], per_channel: bool, axis: int
) -> None:
    spec = QuantSpec(scheme.weights.bits, symmetric=scheme.weight_symmetric, per_channel=per_channel)
    assert (spec.lowest, spec.highest) == levels
    weight = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0)) * torch.logspace(-9, 2, 4).view(4, 1)
    weight[1] = weight[1].abs()
    weight[2] = 0
    kind = "symmetric" if scheme.weight_symmetric else "affine"
    options = {"dtype": torch.qint8, "quant_min": levels[0], "quant_max": levels[1]}
    reference = (
        PerChannelMinMaxObserver(ch_axis=axis, qscheme=getattr(torch, f"per_channel_{kind}"), **options)
        if per_channel
        else MinMaxObserver(qscheme=getattr(torch, f"per_tensor_{kind}"), **options)
    )
    reference(weight)
    for given, expected in zip(weight_qparams(weight, spec, axis), reference.calculate_qparams(), strict=True):
        assert torch.equal(given.flatten(), expected.flatten().to(given.dtype))
