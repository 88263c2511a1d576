"""What was measured on one artifact, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """What was measured on one artifact reloaded from disk.

    Args:
        metrics: what the module logs, and the metrics asked for, by name.
        delta: the same minus FP32.
        fp32: what it is compared with, the float model of its target and weights: ``{metrics, size_bytes, latency_ms,
            errors}``, with the latency by runtime, and why a runtime has none.
        latency_ms: ``{median, p90, batch_size, threads, rounds, calls, mode}``; ``None`` where nothing was measured.
        speedup: against FP32 in eager torch, and against the fastest FP32 runtime.
        sqnr_db: fidelity of the outputs to FP32 on validation data.
        reload_max_difference: largest difference between the outputs here and those of a new process; ``None`` for a
            format that needs the user's class, which a new process does not have.
        error: why something could not be measured.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    delta: Mapping[str, float] = field(default_factory=dict)
    fp32: Mapping[str, Any] | None = None
    latency_ms: Mapping[str, Any] | None = None
    speedup: Mapping[str, float] | None = None
    sqnr_db: float | None = None
    reload_max_difference: float | None = None
    error: str | None = None
