"""How close two outputs are, as a torchmetrics metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lq_plugin.graph.nesting import tensors


class SignalToQuantizationNoise(Metric):
    """Signal-to-quantization-noise ratio (SQNR) in decibels over everything seen.

    ``10 log10(sum(float²) / sum((float - quantized)²))``, pooled over all floating tensors of an output.

    Example:
        >>> sqnr = SignalToQuantizationNoise()
        >>> sqnr.update(torch.tensor([1.01]), torch.tensor([1.0]))
        >>> round(sqnr.compute().item())
        40
    """

    higher_is_better = True
    full_state_update = False
    signal: Tensor
    noise: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("signal", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("noise", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, quantized: Any, reference: Any) -> None:
        """Add one output.

        Args:
            quantized: a tensor or a nest of containers with tensors.
            reference: the float output of the same structure.
        """
        for given, wanted in zip(_floats(quantized), _floats(reference), strict=True):
            self.signal += wanted.double().square().sum().cpu()
            self.noise += (given.to(wanted.device).double() - wanted.double()).square().sum().cpu()

    def compute(self) -> Tensor:
        """Return the ratio in decibels; infinite for equal outputs."""
        return 10 * torch.log10(self.signal / self.noise)


def max_difference(given: Any, wanted: Any) -> float:
    """Return the largest absolute difference between two outputs of the same structure."""
    differences = [
        (left.double() - right.double()).abs().amax().item()
        for left, right in zip(_floats(given), _floats(wanted), strict=True)
        if left.numel()
    ]
    return max(differences, default=0.0)


def _floats(output: Any) -> list[Tensor]:
    return [tensor for tensor in tensors(output) if tensor.is_floating_point()]
