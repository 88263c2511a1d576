"""Records for the manifest: what algorithms did to a candidate, what its operators cost, what a search tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class AlgorithmStep:
    """One algorithm on one candidate.

    Args:
        candidate: the candidate's name.
        algorithm: the algorithm's name.
        outcome: ``kept`` if the outputs came closer to FP32 on held-out samples on any runtime, ``refused`` if they did
            not, ``not_tried`` or ``failed``.
        reason: why it was not kept, or not on all of these runtimes; empty if it was.
        before: SQNR of the outputs on held-out samples before this step, in dB by runtime; the mean of several outputs.
        after: the same after this step.
        kept_on: the runtimes on which it is kept.
        seconds: how long the step took, including the time to judge it.
        peak_memory_bytes: peak memory of the process when the step had ended; ``None`` where the system does not tell.
    """

    candidate: str
    algorithm: str
    outcome: str
    reason: str = ""
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int | None = None
    kept_on: tuple[str, ...] = ()


@dataclass(frozen=True)
class Learning:
    """What the algorithms of a candidate learnt from, and what each of them did.

    Args:
        samples: how many samples they learnt from.
        judged: how many samples were held out to judge them.
        left_out: how many samples were drawn but not used, because they hold nan or infinity, or are in a
            call that the graph does not take.
        share: the share of all validation samples that was drawn; ``None`` if their number is not known.
        seed: of the draw and of the algorithms.
        steps: every requested algorithm, in the order in which they run; once for all runtimes that quantize the same
            values.
    """

    samples: int
    judged: int
    left_out: int
    share: float | None
    seed: int
    steps: tuple[AlgorithmStep, ...] = ()

    def kept_on(self, runtime: str) -> tuple[str, ...]:
        """Return the algorithms that are kept on a runtime, in the order in which they ran."""
        return tuple(step.algorithm for step in self.steps if runtime in step.kept_on)


@dataclass(frozen=True)
class Sensitivity:
    """What one operator in INT8 costs.

    Args:
        name: the operator's name: its module and its node in the graph.
        op: its type.
        node: the name of its node.
        error: noise that its quantized inputs and weight cause at the outputs, as a share of the outputs' power, summed
            over the floating-point outputs.
        share: its share of the errors of all operators.
    """

    name: str
    op: str
    node: str
    error: float
    share: float


@dataclass(frozen=True)
class Trial:
    """One trial of a search for mixed precision.

    Args:
        candidate: the candidate's name.
        float_ops: names of the operators that were chosen to stay float.
        int8_share: the share in INT8, of the operators that could be.
        drop: drop of the budget's metric on validation, absolute or relative as in the budget; ``None`` if it could not
            be measured.
        within: whether that is within the budget.
        seconds: how long the trial took.
    """

    candidate: str
    float_ops: tuple[str, ...]
    int8_share: float
    drop: float | None
    within: bool
    seconds: float = 0.0


@dataclass(frozen=True)
class ValueRange:
    """The range of one quantized value, and what was observed of it.

    Args:
        name: the value's name: that of its node in the graph.
        low: the lowest value that is represented.
        high: the highest one.
        lowest: the lowest value that was observed, as far as the observer tells.
        highest: the highest one.
        clipped: the share of the observed values that the range leaves out; ``None`` where no histogram was kept.
        bins: counts of the observed values in up to 32 equal bins from the lowest to the highest; empty where no
            histogram was kept.
        runtimes: for whose artifacts it is represented so.
    """

    name: str
    low: float
    high: float
    lowest: float
    highest: float
    clipped: float | None = None
    bins: tuple[int, ...] = ()
    runtimes: tuple[str, ...] = ()
