"""What a sweep optimizes: figures of the artifact that was selected."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from lq_plugin.errors import ConfigError, unknown_name
from lq_plugin.report.manifest import Entry, Manifest
from lq_plugin.selection import Budget, fastest

OVER_BUDGET = "over_budget"
_BETTER = {"latency_ms": "min", "size_bytes": "min", "sqnr_db": "max", OVER_BUDGET: "min"}


def objectives(manifest: Manifest | None, names: Sequence[str]) -> float | tuple[float, ...] | None:
    """Return figures of the selected artifact, in the order of their names.

    Args:
        manifest: of a run; ``None`` where nothing was evaluated.
        names: ``"metric"`` (the budget's), ``"latency_ms"``, ``"size_bytes"``, ``"sqnr_db"``, a metric's name, or
            ``"over_budget"``: by how much the drop exceeds the budget's, so at most 0 within it.

    Returns:
        A number where one name is given; ``None`` where nothing was selected, or no metric is known. Where FP32 is
        faster than every artifact, nothing is selected, and the fastest one within the budget stands in: a sweep
        compares jobs with each other. Where none is within the budget, and ``"over_budget"`` is asked for, the one
        that exceeds it least stands in.

    Raises:
        ConfigError: a name is none of these.
    """
    chosen = None if manifest is None else manifest.chosen or _fastest(manifest)
    if manifest is not None and manifest.budget is not None and chosen is None and OVER_BUDGET in names:
        chosen = _closest(manifest.artifacts, manifest.budget)
    if manifest is None or chosen is None:
        return None
    known: dict[str, Any] = {**chosen.figures}
    if manifest.budget is not None and manifest.budget.metric is not None:
        known["metric"] = chosen.metrics[manifest.budget.metric]
        known[OVER_BUDGET] = _excess(chosen, manifest.budget)
    elif "metric" in names or OVER_BUDGET in names:
        return None
    for name in names:
        if name not in known:
            raise unknown_name("objectives", name, known)
    values = tuple(known[name] for name in names)
    return values[0] if len(values) == 1 else values


def _fastest(manifest: Manifest) -> Entry | None:
    best = fastest([(entry.status, entry.median) for entry in manifest.artifacts])
    return None if best is None else manifest.artifacts[best]


def _closest(entries: Sequence[Entry], budget: Budget) -> Entry | None:
    over = [entry for entry in entries if entry.status == OVER_BUDGET]
    return min(over, key=lambda entry: (_excess(entry, budget), entry.median or inf), default=None)


def _excess(entry: Entry, budget: Budget) -> float:
    """The drop beyond the budget's; 0 where only rounding is, as the status says."""
    drop = entry.drop(budget)
    if drop is None:
        return inf
    return min(drop - budget.max_drop, 0.0) if entry.status == "ok" else drop - budget.max_drop


def check_directions(directions: Sequence[str] | str | None, names: Sequence[str], budget: Budget) -> None:
    """Refuse a sweeper that optimizes an objective in the wrong direction.

    Args:
        directions: ``"maximize"`` or ``"minimize"`` for each objective, as the sweeper was told; ``None`` for a
            sweeper that has none.
        names: of the objectives.
        budget: says whether a higher or a lower metric is better, where that is known.

    Raises:
        ConfigError: naming the objective.
    """
    if directions is None:
        return
    better = _BETTER | ({"metric": budget.mode, str(budget.metric): budget.mode} if budget.mode else {})
    for name, direction in zip(names, [directions] if isinstance(directions, str) else directions, strict=False):
        if name in better and not direction.startswith(better[name]):
            more = "more" if better[name] == "max" else "less"
            metric = budget.metric if name == "metric" else name
            raise ConfigError(
                f"hydra.sweeper.direction: {direction!r} for {name!r}, but {more} {metric} is better. "
                f"Give one of maximize, minimize for each of {list(names)}."
            )
