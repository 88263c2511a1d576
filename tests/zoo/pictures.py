"""Inputs that resemble photographs."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


def images(generator: Generator, samples: int, channels: int = 3, size: int = 32) -> Tensor:
    """Draw smooth shapes plus noise: nearer to photographs than white noise."""
    shapes = torch.randn(samples, channels, 4, 4, generator=generator)
    noise = torch.randn(samples, channels, size, size, generator=generator)
    return F.interpolate(shapes, size=size, mode="bilinear") + 0.2 * noise
