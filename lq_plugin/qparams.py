"""Scales and zero points of ranges: the only place that knows how many levels there are and where zero lies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from lq_plugin.errors import ConfigError

_SMALLEST_SCALE = torch.finfo(torch.float32).eps  # as torch and torchao have it


@dataclass(frozen=True)
class QuantSpec:
    """Which integers stand for numbers.

    Args:
        bits: how many of the 8 bits are used.
        signed: int8 and not uint8.
        symmetric: zero is the middle level; else it is where it fits the range best.
        per_channel: each output channel has a scale of its own.

    Example:
        >>> spec = QuantSpec(bits=7, symmetric=True)
        >>> spec.lowest, spec.highest, QuantSpec(signed=False).highest
        (-63, 63, 255)
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = False
    per_channel: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Type of the integers."""
        return torch.int8 if self.signed else torch.uint8

    @property
    def highest(self) -> int:
        """The highest level."""
        return int(2 ** (self.bits - self.signed) - 1)

    @property
    def lowest(self) -> int:
        """The lowest level that a range is spread over: there are as many below a middle level as above it."""
        return self.highest - self.steps

    @property
    def steps(self) -> int:
        """How many steps lie between the lowest and the highest level."""
        return int(2**self.bits - (2 if self.symmetric else 1))


def scale_of(low: Tensor, high: Tensor, spec: QuantSpec) -> Tensor:
    """Return the scale that spreads the levels over a range, or over each of many; zero is made part of it."""
    below, above = (-low).clamp(min=0), high.clamp(min=0)
    return torch.maximum(below, above) / (spec.steps / 2) if spec.symmetric else (above + below) / spec.steps


def zero_point_of(low: Tensor, scale: Tensor, spec: QuantSpec) -> Tensor:
    """Return the level of zero, as a float tensor, where the lowest level stands for ``low`` or for zero."""
    if spec.symmetric:
        return torch.full_like(scale, spec.lowest + spec.steps // 2)
    return spec.lowest + ((-low).clamp(min=0) / scale).round().clamp(max=spec.steps)


def activation_qparams(bounds: tuple[float, float], spec: QuantSpec) -> tuple[float, int]:
    """Return the scale and the zero point of an activation's range.

    Example:
        >>> activation_qparams((-1.0, 2.984375), QuantSpec(signed=False))
        (0.015625, 64)
    """
    low, high = torch.tensor(bounds, dtype=torch.float64)
    scale = scale_of(low, high, spec)
    zero_point = zero_point_of(low, scale.clamp(min=torch.finfo(scale.dtype).tiny), spec)
    return max(scale.item(), _SMALLEST_SCALE), int(zero_point)


def weight_qparams(weight: Tensor, spec: QuantSpec, axis: int, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the scale and the zero point of a weight, or those of its channels.

    Args:
        weight: a finite float tensor.
        spec: which integers it becomes.
        axis: of its output channels.
        scale: one that was learnt; by default the one that spreads the levels over the range.

    Raises:
        ConfigError: the learnt scale has the wrong shape.
    """
    rows = weight.float().transpose(0, axis).flatten(1) if spec.per_channel else weight.float().flatten()
    low, high = pad(rows, (0, 1)).aminmax(dim=-1)  # zero is part of every range, even of an empty weight's
    if scale is None:
        scale = scale_of(low, high, spec).clamp(min=_SMALLEST_SCALE)
    elif scale.shape != low.shape:
        raise ConfigError(
            f"weight_scales: a scale of shape {list(scale.shape)} does not fit a weight of shape {list(weight.shape)}. "
            f"Give one of shape {list(low.shape)}."
        )
    levels = torch.int64 if spec.symmetric else torch.int32  # as PT2E's own observers have it
    return scale.float(), zero_point_of(low, scale, spec).to(levels)


def rounded_activation(values: Tensor, bounds: tuple[float, float], spec: QuantSpec) -> Tensor:
    """Return an activation, quantized and dequantized.

    Args:
        values: float32, of any shape.
        bounds: lowest and highest value to represent.
        spec: which integers it becomes.
    """
    scale, zero_point = activation_qparams(bounds, spec)
    limits = torch.iinfo(spec.dtype)  # kernels saturate here, even if fewer levels are used
    return torch.fake_quantize_per_tensor_affine(values, scale, zero_point, limits.min, limits.max)


def integers_of(weight: Tensor, spec: QuantSpec, axis: int) -> tuple[Tensor, Tensor]:
    """Return a weight as integers, and the scale of each of its channels or of all.

    Args:
        weight: a finite float tensor.
        spec: which integers it becomes; symmetric, so that every zero point is 0.
        axis: of its output channels.
    """
    scale, _ = weight_qparams(weight, spec, axis)
    shaped = scale.view([-1 if dim == axis else 1 for dim in range(weight.dim())]) if spec.per_channel else scale
    return (weight / shaped).round().clamp(spec.lowest, spec.highest).to(spec.dtype), scale


def rounded_weight(weight: Tensor, spec: QuantSpec, axis: int, scale: Tensor | None = None) -> Tensor:
    """Return a weight, quantized and dequantized; see :func:`weight_qparams`."""
    scale, zero_point = weight_qparams(weight, spec, axis, scale)
    if spec.per_channel:
        shape = [-1 if dim == axis else 1 for dim in range(weight.dim())]
        scale, zero_point = scale.view(shape), zero_point.view(shape)
    integers = (weight / scale + zero_point).round().clamp(spec.lowest, spec.highest)
    return (integers - zero_point) * scale
