"""What came out of a run, for the top of its page: a sentence, what stands behind it, and the main figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lq_plugin.report import formats
from lq_plugin.report.manifest import Entry, Fp32, Manifest
from lq_plugin.report.problems import problems
from lq_plugin.selection import Budget


@dataclass(frozen=True)
class Fact:
    """One figure.

    Args:
        name: what it is.
        value: the number, as the manifest has it.
        form: name of a function of :mod:`~lq_plugin.report.formats`.
        note: what it is to be compared with.
    """

    name: str
    value: float | None
    form: str
    note: str


@dataclass(frozen=True)
class Verdict:
    """The outcome of a run.

    Args:
        sentence: it.
        tone: ``good`` where an artifact was selected, ``bad`` where nothing was made, else ``open``.
        reasons: what stands behind it, a sentence each.
        facts: main figures of the artifact that was selected.
    """

    sentence: str
    tone: Literal["good", "open", "bad"]
    reasons: tuple[str, ...]
    facts: tuple[Fact, ...] = ()


def verdict(manifest: Manifest) -> Verdict:
    """Return the outcome of a run."""
    chosen = manifest.chosen
    reasons = (*_budget(manifest.budget), *problems(manifest))
    if chosen is not None:
        return Verdict(_chosen(chosen, manifest), "good", reasons, tuple(_facts(chosen, manifest)))
    statuses = Counter(entry.status for entry in manifest.artifacts)
    made = len(manifest.artifacts) - statuses["failed"] - statuses["unsupported"]
    if not made:
        return Verdict("Keep FP32: no artifact could be made.", "bad", reasons)
    if statuses["ok"] and manifest.unselected:
        return Verdict("Keep FP32: it is faster than every artifact within the budget.", "open", reasons)
    if statuses["ok"]:
        return Verdict("Keep FP32: no artifact within the budget was selected.", "open", reasons)
    if statuses["over_budget"]:
        return Verdict("Keep FP32: no artifact is within the budget.", "bad", reasons)
    artifacts = "1 artifact was made, but it was" if made == 1 else f"{made} artifacts were made, but none was"
    return Verdict(f"Nothing is decided: {artifacts} {'not ' if made == 1 else ''}judged.", "open", reasons)


def _chosen(entry: Entry, manifest: Manifest) -> str:
    speedup = entry.speedup.vs_best_fp32 if entry.speedup else None
    said = [f"Use {entry.label}:"]
    if speedup is not None:
        said.append(f"{formats.times(speedup)} as fast as the fastest FP32, and")
    metric = manifest.budget.metric if manifest.budget else None
    return " ".join([*said, f"{metric} is within the budget." if metric else "not judged by a budget."])


def _budget(budget: Budget | None) -> Iterator[str]:
    if budget is None or budget.metric is None:
        yield "Nothing was judged by a budget."
        return
    of = " of FP32’s value" if budget.relative else ""
    allowed = formats.drop(budget.max_drop, budget.relative)
    if budget.mode is None:
        yield f"Budget: on validation, {budget.metric} may change by {allowed}{of}, up or down: its mode is not known."
        return
    better = "more" if budget.mode == "max" else "less"
    yield f"Budget: on validation, {budget.metric} may get worse by {allowed}{of}; {better} is better."


def _facts(entry: Entry, manifest: Manifest) -> Iterator[Fact]:
    fp32 = manifest.fp32_of(entry)
    if entry.speedup and entry.speedup.vs_best_fp32 is not None:
        best = f"{formats.milliseconds(entry.median)} ms; FP32 on {_fastest(fp32)} {formats.milliseconds(fp32.best)} ms"
        yield Fact("Speed vs fastest FP32", entry.speedup.vs_best_fp32, "times", best)
    metric = manifest.budget.metric if manifest.budget else None
    if metric is not None and metric in entry.metrics:
        reference = formats.metric(fp32.metrics.get(metric))
        note = f"{formats.change(entry.delta.get(metric))}; FP32 {reference}"
        yield Fact(metric, entry.metrics[metric], "metric", note)
    if entry.size_bytes is not None:
        share = entry.size_bytes / fp32.size_bytes if fp32.size_bytes else None
        yield Fact("Size", entry.size_bytes, "size", f"{formats.whole_percent(share)} of FP32’s weights")
    if entry.sqnr_db is not None:
        yield Fact("SQNR in dB", entry.sqnr_db, "decibels", "outputs, compared with FP32’s")
    total = len(entry.quantized_ops) + len(entry.float_ops)
    if total:
        yield Fact("Operators in INT8", len(entry.quantized_ops), "count", f"of {total}")


def _fastest(fp32: Fp32) -> str:
    return min(fp32.latency_ms, key=lambda runtime: fp32.latency_ms[runtime], default="")
