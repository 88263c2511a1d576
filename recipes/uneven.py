"""Makes channels between two layers very different in size, which INT8 with one scale per activation handles badly."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class _Multiplied(nn.Module):
    """A parametrization: multiplies the parameter by constants."""

    factors: Tensor

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.register_buffer("factors", factors, persistent=False)  # rebuilt from the model's options

    def forward(self, parameter: Tensor) -> Tensor:
        return parameter * self.factors


def make_uneven(norm: nn.Module, reader: nn.Module, factors: Tensor) -> None:
    """Multiply the channels of a normalization layer by factors, and divide by them in the layer that reads them.

    With powers of two the model's results stay the same, bit for bit, in training too. Only the ranges of the channels
    in between change, as they do in networks that are trained for a long time.

    Args:
        norm: BatchNorm or LayerNorm with weight and bias; changed in place.
        reader: the convolution or linear layer that reads its output, with at most a positively homogeneous activation
            in between; changed in place.
        factors: positive, of shape ``(channels,)``.
    """
    for name in ("weight", "bias"):
        parametrize.register_parametrization(norm, name, _Multiplied(factors))
    weight = reader.weight
    assert isinstance(weight, Tensor)
    depthwise = isinstance(reader, nn.Conv2d) and reader.groups == len(factors)
    rest = (1,) * (weight.dim() - 2)
    shape = (-1, 1, *rest) if depthwise else (1, -1, *rest)
    parametrize.register_parametrization(reader, "weight", _Multiplied((1 / factors).view(shape)))


def powers_of_two(channels: int, most: int, generator: torch.Generator) -> Tensor:
    """Draw a factor for each channel, from ``2 ** -most`` to ``2 ** most``; all ones where ``most`` is zero."""
    return 2.0 ** torch.randint(-most, most + 1, (channels,), generator=generator)
