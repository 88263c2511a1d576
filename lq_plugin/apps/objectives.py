"""What a sweep optimizes: figures of the artifact that was selected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lq_plugin.errors import ConfigError, unknown_name
from lq_plugin.report.manifest import Entry, Manifest
from lq_plugin.selection import Budget, fastest

_BETTER = {"latency_ms": "min", "size_bytes": "min", "sqnr_db": "max"}


def objectives(manifest: Manifest | None, names: Sequence[str]) -> float | tuple[float, ...] | None:
    """Return figures of the selected artifact, in the order of their names.

    Args:
        manifest: of a run; ``None`` where nothing was evaluated.
        names: ``"metric"`` (the budget's), ``"latency_ms"``, ``"size_bytes"``, ``"sqnr_db"`` or a metric's name.

    Returns:
        A number where one name is given; ``None`` where nothing was selected, or no metric is known. Where FP32 is
        faster than every artifact, nothing is selected, and the fastest one within the budget stands in: a sweep
        compares jobs with each other.

    Raises:
        ConfigError: a name is none of these.
    """
    chosen = None if manifest is None else manifest.chosen or _fastest(manifest)
    if manifest is None or chosen is None:
        return None
    known: dict[str, Any] = {**chosen.figures}
    if manifest.budget is not None and manifest.budget.metric is not None:
        known["metric"] = chosen.metrics[manifest.budget.metric]
    elif "metric" in names:
        return None
    for name in names:
        if name not in known:
            raise unknown_name("objectives", name, known)
    values = tuple(known[name] for name in names)
    return values[0] if len(values) == 1 else values


def _fastest(manifest: Manifest) -> Entry | None:
    best = fastest([(entry.status, entry.median) for entry in manifest.artifacts])
    return None if best is None else manifest.artifacts[best]


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
