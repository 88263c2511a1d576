"""Padded positions of ``nn.TransformerEncoder``, which its fast path sets to zero and its other path does not.

In eval mode torch takes the fast path where it can. No graph can hold it, and INT8 layers cannot be in it, so what it
does to padding is done here after the other path.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import Tensor, nn

_forward: Any = nn.TransformerEncoder.forward


def leave_fast_path(encoder: nn.TransformerEncoder) -> None:
    """Disable an encoder's fast path for good; what it computes stays the same."""
    if encoder.use_nested_tensor and "forward" not in vars(encoder):
        encoder.forward = MethodType(zeroing, encoder)  # type: ignore[method-assign]
    encoder.use_nested_tensor = False


def zeroing(
    self: Any,
    src: Tensor,
    mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool | None = None,
) -> Tensor:
    """The forward of an encoder that would take the fast path, without it."""
    output: Tensor = _forward(self, src, mask, src_key_padding_mask, is_causal)
    if src_key_padding_mask is None or mask is not None or src.dim() != 3:
        return output
    inside = src_key_padding_mask.logical_not()
    ragged = (inside[:, 1:] > inside[:, :-1]).any()  # the fast path is for padding at the end alone
    zeros = output.new_zeros(output.shape[-1])
    empty = zeros if self.norm is None else self.norm(zeros)
    return output.where((inside | ragged).unsqueeze(-1), empty)
