"""What was learnt of a candidate: by algorithms, of its operators, and by a search. Frozen records for manifests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class AlgorithmStep:
    """One algorithm on one candidate.

    Args:
        candidate: its name.
        algorithm: the algorithm's name.
        outcome: ``kept`` where the outputs came closer to FP32 on the samples held out, ``refused`` where they did
            not, ``not_tried``, or ``failed``.
        reason: why it was not kept; empty otherwise.
        before: SQNR of the outputs on the samples held out, in dB by runtime, before this step. Several outputs have
            their mean.
        after: the same after it.
        seconds: that it took, judging it included.
    """

    candidate: str
    algorithm: str
    outcome: str
    reason: str = ""
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Learning:
    """What the algorithms of a candidate learnt from.

    Args:
        samples: how many samples they learnt from.
        judged: how many were held out to judge them.
        left_out: how many were drawn and not used, because they hold nan or infinity.
        share: of all validation samples that were drawn; ``None`` where their number is not known.
        seed: of the draw and of the algorithms.
        peak_memory_bytes: the most that the process took while they ran.
        steps: every algorithm asked for, in the order in which they ran.
    """

    samples: int
    judged: int
    left_out: int
    share: float | None
    seed: int
    peak_memory_bytes: int | None = None
    steps: tuple[AlgorithmStep, ...] = ()


@dataclass(frozen=True)
class Sensitivity:
    """What one operator in INT8 costs.

    Args:
        name: of the operator: its module, and its node in the graph.
        op: its type.
        node: the name of its node.
        error: noise that its quantized inputs and weight cause at the outputs, as a share of the outputs' power, summed
            over the floating outputs.
        share: of the errors of all operators.
    """

    name: str
    op: str
    node: str
    error: float
    share: float


@dataclass(frozen=True)
class Trial:
    """One mixed-precision candidate, as measured.

    Args:
        candidate: its name.
        float_ops: names of the operators that were chosen to stay float.
        int8_share: of the operators that could be INT8.
        drop: of the budget's metric on validation, in the budget's terms; ``None`` where it could not be measured.
        within: whether that is within the budget.
        seconds: that it took.
    """

    candidate: str
    float_ops: tuple[str, ...]
    int8_share: float
    drop: float | None
    within: bool
    seconds: float = 0.0
