"""FP32 and every artifact of one run side by side, as rows for its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lq_plugin.report import formats
from lq_plugin.report.board import Row, groups, marked, reference, rows_of
from lq_plugin.report.manifest import Fp32, Manifest, computable
from lq_plugin.report.plots import Axis
from lq_plugin.report.strips import drop_strip, latency_axis, latency_strip

MOST = 100  # artifacts on a page


@dataclass(frozen=True)
class Compared:
    """One artifact, or FP32 on one runtime.

    Args:
        row: its figures.
        drop: the drop of the budget's metric beside what is allowed, as SVG; empty where there is none.
        latency: its latency and its spread, on the same scale for all, as SVG; empty where there is none.
        remark: ``selected``, ``fastest FP32``, or nothing.
    """

    row: Row
    drop: str
    latency: str
    remark: str


def rows(manifest: Manifest) -> list[Row]:
    """Return FP32 on every runtime, then the artifacts compared with it, for every target and its weights.

    The one that was selected is the winner; no other one is.
    """
    known = rows_of("", (), manifest, [(entry, None) for entry in manifest.artifacts[:MOST]])
    artifacts = [row for row in known if not row.is_fp32]
    shown = [replace(row, winner=row.label == manifest.selected) for row in marked(artifacts)]
    found: list[Row] = []
    for fp32, entries in groups(manifest):
        labels = {entry.label for entry in entries}
        timed = [_reference(fp32, runtime, manifest, artifacts) for runtime in fp32.latency_ms]
        found += timed or [_untimed(fp32, manifest)]
        found += [row for row in shown if row.label in labels]
    return found


def compared(shown: Sequence[Row], manifest: Manifest) -> list[Compared]:
    """Return rows with their small plots.

    Args:
        shown: see :func:`rows`.
        manifest: that they are of.
    """
    medians = [row.entry.median for row in shown if row.entry.median is not None]
    tails = [row.entry.latency_ms.p90 for row in shown if row.entry.latency_ms and row.entry.latency_ms.p90]
    axis = latency_axis([*medians, *tails]) if medians else None
    return [Compared(row, _drop(row), _latency(row, axis), _remark(row, manifest)) for row in shown]


def _reference(fp32: Fp32, runtime: str, manifest: Manifest, artifacts: Sequence[Row]) -> Row:
    batch_size, threads = (artifacts[0].batch_size, artifacts[0].threads) if artifacts else (None, None)
    return Row("", (), manifest, reference(fp32, runtime), batch_size, threads)


def _untimed(fp32: Fp32, manifest: Manifest) -> Row:
    """FP32 where no latency was measured."""
    timed = reference(replace(fp32, latency_ms={"torch": 1.0}), "torch")
    return Row("", (), manifest, replace(timed, latency_ms=None, speedup=None, fp32=fp32), None, None)


def _drop(row: Row) -> str:
    drop, budget = row.drop, row.budget
    if drop is None or budget.metric is None or row.manifest.budget is None or computable(budget.max_drop) is None:
        return ""
    within = row.entry.status != "over_budget"
    told = (
        f"{budget.metric}: drop {formats.drop(drop, budget.relative)}, "
        f"{formats.drop(budget.max_drop, budget.relative)} allowed"
    )
    return drop_strip(drop, budget.max_drop, within, told)


def _latency(row: Row, axis: Axis | None) -> str:
    latency = row.entry.latency_ms
    if latency is None or axis is None:
        return ""
    kind = "winner" if row.winner else "reference" if row.is_fp32 else "rest"
    spread = "" if latency.p90 is None else f", nine in ten calls at most {formats.milliseconds(latency.p90)} ms"
    return latency_strip(
        latency.median, latency.p90, axis, kind, f"median {formats.milliseconds(latency.median)} ms{spread}"
    )


def _remark(row: Row, manifest: Manifest) -> str:
    if row.winner:
        return "selected"
    fastest = row.is_fp32 and row.entry.median is not None and row.entry.median == manifest.fp32_of(row.entry).best
    return "fastest FP32" if fastest else ""
