"""What was quantized and what was not: nothing is silent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Kernel:
    """One kernel that a runtime chose for a convolution, a product or a recurrent layer.

    Args:
        name: of its node in the runtime's optimized graph.
        type: as the runtime names it.
        operators: types of operators that it may compute, one of them for each kernel; empty if they are not known.
        int8: whether it computes on integers.
        nodes: names of the exported nodes that it computes, as far as the runtime keeps them. A convolution or
            product has the name of its node in the graph.
    """

    name: str
    type: str
    operators: frozenset[str]
    int8: bool
    nodes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Duration:
    """How long a node of a runtime's optimized graph takes.

    Args:
        nodes: names of the exported nodes that it computes, as far as they are known; see :class:`Kernel`.
        microseconds: of one call.
    """

    nodes: frozenset[str]
    microseconds: float


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
class Measured:
    """A decision made by measuring.

    Args:
        int8: to compute on integers; where that is most of an artifact, whether it is faster than FP32.
        reason: why not, or what was measured.
        float_ops: names of the graph's operators that go back to float.
        saved: microseconds of a call that INT8 saves, by the name of the operator; negative where it costs time.
    """

    int8: bool
    reason: str
    float_ops: tuple[str, ...] = ()
    saved: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Coverage:
    """Every operator of an artifact that computes on integers, and every one that computes on floats and why.

    Args:
        quantized: those that compute on integers.
        float_ops: those that compute on floats.
        measured: decisions made by measuring, by a digest of what was measured; another export reads them back.
    """

    quantized: Sequence[QuantizedOp]
    float_ops: Sequence[FloatOp]
    measured: Mapping[str, Measured] = field(default_factory=dict)
