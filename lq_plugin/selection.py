"""How much of a metric may be lost, and which artifact is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lq_plugin.errors import ConfigError, unknown_name

MODES = ("max", "min")


@dataclass(frozen=True)
class Budget:
    """How much of a metric may be lost.

    Args:
        metric: name of a metric that the module logs in validation; the first checkpoint's monitored metric by
            default, else the first one logged.
        max_loss: the largest loss allowed.
        relative: whether ``max_loss`` is a share of the FP32 value or an absolute amount.
        mode: ``"max"`` where more is better, ``"min"`` where less is; by default that of the checkpoint that monitors
            the metric. Where neither is known, a change in either direction is a loss.

    Example:
        >>> round(Budget(max_loss=0.01, mode="max").loss(fp32=0.80, int8=0.78), 3)
        0.025
    """

    metric: str | None = None
    max_loss: float = 0.01
    relative: bool = True
    mode: str | None = None

    def __post_init__(self) -> None:
        if self.max_loss < 0:
            raise ConfigError(f"max_loss: {self.max_loss} is negative. Allowed: 0 or more.")
        if self.mode is not None and self.mode not in MODES:
            raise unknown_name("mode", self.mode, MODES)

    def loss(self, fp32: float, int8: float) -> float:
        """Return how much was lost, in the budget's own terms; negative for a gain where the direction is known."""
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
    known_mode = budget.mode or (mode if metric == monitor else None)
    return Budget(metric, budget.max_loss, budget.relative, known_mode)


def lost(budget: Budget, metrics: Mapping[str, float], delta: Mapping[str, float]) -> float | None:
    """Return what an artifact lost of a resolved budget's metric; ``None`` where it has no metric.

    Args:
        budget: as returned by :func:`resolve`.
        metrics: of the artifact.
        delta: the same minus FP32.
    """
    if budget.metric is None:
        return None
    value = metrics[budget.metric]
    return budget.loss(value - delta[budget.metric], value)


def select(artifacts: Sequence[Mapping[str, Any]]) -> str | None:
    """Return ``<candidate>/<format>`` of the fastest artifact within the budget, or ``None``.

    Args:
        artifacts: the manifest's entries.
    """
    fit = [entry for entry in artifacts if entry["status"] == "ok" and entry["latency_ms"] is not None]
    best = min(fit, key=lambda entry: float(entry["latency_ms"]["median"]), default=None)
    return f"{best['candidate']}/{best['format']}" if best is not None else None
