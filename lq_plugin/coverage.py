"""What was quantized and what was not: nothing is silent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class QuantizedOp:
    """An operator that computes on integers."""

    name: str
    op: str


@dataclass(frozen=True)
class FloatOp:
    """An operator that stays float, and why."""

    name: str
    op: str
    reason: str


@dataclass(frozen=True)
class Coverage:
    """Every operator of an artifact that computes on integers, and every one that computes on floats and why."""

    quantized: Sequence[QuantizedOp]
    float_ops: Sequence[FloatOp]
