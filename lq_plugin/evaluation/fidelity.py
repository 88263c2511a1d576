"""How close two outputs are, as a torchmetrics metric."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lq_plugin.graph.nesting import leaves, mapped, tensors
from lq_plugin.identity import tensors_digest
from lq_plugin.untrusted import MEBIBYTE

SQNR_SAMPLES = 512
_MOST_BYTES = 256 * MEBIBYTE  # of outputs that are kept; those of 512 segmented images may take more
_PLAIN = (str, int, float, bool, torch.dtype, type(None))


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


class FloatOutputs:
    """What the float target returned in its own loop, so that it need not run again beside each artifact.

    Its forward of 512 images costs several times what INT8 does for 1,000 (ResNet-18 at 224x224, AMD EPYC: 17 s of one
    core, 4.6 s on onnxruntime). An output is known only for the same call of the loop, with the same bytes as inputs.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], Any] = {}
        self._bytes = 0
        self._refused = False
        self._inputs: Any = hashlib.sha256()

    def keep(self, key: tuple[int, str] | None, output: Any) -> None:
        """Keep a copy of an output, as long as there is room; the caller may change it in place.

        Args:
            key: of the call.
            output: a tensor or a nest of containers with tensors.
        """
        size = sum(tensor.nbytes for tensor in tensors(output))
        if key is None or self._refused or self._bytes + size > _MOST_BYTES:
            return
        with suppress(Exception):  # a class that cannot be made again; the target will run beside artifacts
            self._known[key] = mapped(lambda tensor: tensor.detach().clone(), output)
            self._bytes += size

    def see(self, key: tuple[int, str] | None) -> None:
        """Take note of a call, whose output may be kept or not; ``None`` where it cannot be told from others."""
        self._inputs = None if self._inputs is None or key is None else self._inputs
        if self._inputs is not None:
            self._inputs.update(str(key).encode())

    @property
    def inputs(self) -> str | None:
        """Digest of all calls so far; ``None`` if it is not known."""
        return None if self._inputs is None else str(self._inputs.hexdigest())

    def refuse(self) -> None:
        """Keep nothing, now or later: a call of the target does more than return an output."""
        self._known, self._refused = {}, True

    @property
    def refused(self) -> bool:
        """Whether nothing is kept."""
        return self._refused

    def of(self, key: tuple[int, str] | None) -> Any:
        """Return what was kept for a call; ``None`` for nothing."""
        return None if key is None else self._known.get(key)


def call_key(number: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, str] | None:
    """Return what identifies a call of a loop: its number and a digest of all that it is given.

    Args:
        number: how many calls came before it.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Returns:
        ``None`` where an argument is neither a tensor nor plain.
    """
    given = list(leaves((tuple(args), dict(kwargs))))
    if not all(isinstance(leaf, (Tensor, *_PLAIN)) for leaf in given):
        return None
    plain = [None if isinstance(leaf, Tensor) else leaf for leaf in given]
    numbered = {str(place): leaf for place, leaf in enumerate(given) if isinstance(leaf, Tensor)}
    return number, f"{tensors_digest(numbered)} {list(kwargs)} {plain}"


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
