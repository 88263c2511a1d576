"""How far a metric may drop, and what is best among several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lq_plugin.errors import ConfigError, unknown_name
from lq_plugin.options import check_types
from lq_plugin.renamed import refuse_old

MODES = ("max", "min")


@refuse_old("max_loss")
@dataclass(frozen=True)
class Budget:
    """How far a metric may drop.

    Args:
        metric: name of a metric that the module logs in validation; the first checkpoint's monitored metric by
            default, else the first one logged.
        max_drop: the largest drop allowed.
        relative: whether ``max_drop`` is a share of the FP32 value or an absolute amount.
        mode: ``"max"`` where more is better, ``"min"`` where less is; by default that of the checkpoint that monitors
            the metric. Where neither is known, a change in either direction is a drop.

    Example:
        >>> round(Budget(max_drop=0.01, mode="max").drop(fp32=0.80, int8=0.78), 3)
        0.025
    """

    metric: str | None = None
    max_drop: float = 0.01
    relative: bool = True
    mode: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if not self.max_drop >= 0:
            raise ConfigError(f"max_drop: {self.max_drop} is not allowed. Allowed: 0 or more.")
        if self.mode is not None and self.mode not in MODES:
            raise unknown_name("mode", self.mode, MODES)

    def drop(self, fp32: float, int8: float) -> float:
        """Return the drop from FP32 to INT8 in the budget's terms; negative for a gain where the direction is known."""
        change = {"max": fp32 - int8, "min": int8 - fp32}.get(self.mode or "", abs(fp32 - int8))
        return change / abs(fp32) if self.relative and fp32 else change


def resolve(budget: Budget, logged: Sequence[str], monitor: str | None, mode: str | None) -> Budget:
    """Fill in the metric and its direction.

    Args:
        budget: as configured.
        logged: metrics that the module logs in validation, in order.
        monitor: the checkpoint's monitored metric, if any.
        mode: that checkpoint's direction.

    Raises:
        ConfigError: the budget names a metric that is not logged.
    """
    if budget.metric is not None and budget.metric not in logged:
        raise unknown_name("budget.metric", budget.metric, logged)
    metric = budget.metric or (monitor if monitor in logged else next(iter(logged), None))
    known_mode = budget.mode or (mode if metric is not None and metric == monitor else None)
    return Budget(metric, budget.max_drop, budget.relative, known_mode)


def fastest(artifacts: Sequence[tuple[str, float | None]]) -> int | None:
    """Return the position of the fastest artifact within its budget, or ``None``; of equals the first.

    Args:
        artifacts: status and median latency of each; what was not timed has ``None``.

    Example:
        >>> fastest([("ok", 2.0), ("over_budget", 0.5), ("ok", 1.0), ("ok", None)])
        2
    """
    fit = [(latency, n) for n, (status, latency) in enumerate(artifacts) if status == "ok" and latency is not None]
    return min(fit)[1] if fit else None


def pareto_front(points: Sequence[Sequence[float]]) -> set[int]:
    """Return the positions of the points that no other point dominates; of equal points all or none.

    A point dominates another if it is nowhere worse and somewhere better.

    Args:
        points: the same objectives of each, all to be minimized.

    Example:
        >>> sorted(pareto_front([(1, 3), (2, 2), (3, 1), (3, 3)]))
        [0, 1, 2]
    """
    return {n for n, point in enumerate(points) if not any(_dominates(other, point) for other in points)}


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
