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
    """Return the label of the fastest artifact within the budget, or ``None``."""
    best = fastest([(entry.status, entry.median) for entry in entries])
    return None if best is None else entries[best].label
