"""Whether measured artifacts are within the budget, and which one is selected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lq_plugin.report.manifest import Entry
from lq_plugin.selection import Budget, fastest

_ROUNDING = 1e-5  # of a drop: .98 → .97 in float32 is a drop of .0100000501


def judged(entry: Entry, budget: Budget, unjudged: str | None = None) -> Entry:
    """Return an artifact with its status.

    Args:
        entry: as measured; what was not made or not measured stays as it is.
        budget: as returned by ``selection.resolve``.
        unjudged: why nothing can be judged by it, if so.
    """
    if entry.path is None or entry.fp32 is None:
        return entry
    if not entry.metrics and entry.error is not None:
        return replace(entry, status="failed")
    if unjudged is not None:
        return replace(entry, error=entry.error or unjudged)
    if budget.metric not in entry.delta:
        reason = f"{budget.metric} was not logged with the artifact in place of the target."
        return replace(entry, status="failed", error=entry.error or reason)
    drop = entry.drop(budget)
    allowed = budget.max_drop * (1 + _ROUNDING)
    return replace(entry, status="ok" if drop is not None and drop <= allowed else "over_budget")


def select(entries: Sequence[Entry]) -> str | None:
    """Return the label of the fastest artifact within the budget, or ``None``: where FP32 is faster there is none."""
    best = _fastest(entries)
    return None if best is None or _behind(best) else best.label


def unselected(entries: Sequence[Entry]) -> str | None:
    """Why no artifact is selected although one is within the budget; ``None`` if one is, or if none is within it."""
    best = _fastest(entries)
    if best is None or (ahead := _behind(best)) is None:
        return None
    runtime, latency = ahead
    return (
        f"Nothing is selected: FP32 is faster than every artifact within the budget ({latency:.3f} ms on {runtime}, "
        f"{best.median:.3f} ms for {best.label})"
    )


def _fastest(entries: Sequence[Entry]) -> Entry | None:
    """The artifact to select: one that FP32 is not faster than where there is one."""
    for among in ([entry for entry in entries if not _behind(entry)], entries):
        best = fastest([(entry.status, entry.median) for entry in among])
        if best is not None:
            return among[best]
    return None


def _behind(entry: Entry) -> tuple[str, float] | None:
    """The runtime on which FP32 is fastest, and its latency, where that is less than the artifact's."""
    if entry.median is None or entry.fp32 is None or not entry.fp32.latency_ms:
        return None
    runtime, latency = min(entry.fp32.latency_ms.items(), key=lambda each: each[1])
    return (runtime, latency) if latency < entry.median else None
