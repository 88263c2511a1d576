"""What a leaderboard holds: rows, jobs without figures, and notes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lq_plugin import selection
from lq_plugin.report.manifest import EAGER, Entry, Fp32, LatencyRecord, Manifest, Speedup, computable
from lq_plugin.selection import Budget

FP32 = "fp32"
REFERENCE = "reference"
_NOT_JUDGED = Budget(max_drop=0.0)


@dataclass(frozen=True)
class Row:
    """One artifact of one run, or its FP32 model on one runtime.

    Args:
        run: folder of the run, below the one that all runs have in common.
        overrides: what Hydra was given for this job.
        manifest: of the run.
        entry: the artifact; ``failed`` too where its files are not those that were measured. For FP32 an entry of
            candidate and method ``"fp32"``, no format and status ``reference``.
        batch_size: of the calls that were timed in the run.
        threads: that they were timed with.
        config: the options that differ among the runs.
        files: ``as measured``, ``changed`` or ``missing``, compared with the manifest.
        pareto: whether no comparable artifact is better in accuracy, latency or size without being worse in another.
        winner: whether it is the fastest one within its budget among those that are comparable.
    """

    run: str
    overrides: tuple[str, ...]
    manifest: Manifest
    entry: Entry
    batch_size: int | None
    threads: int | None
    config: Mapping[str, Any] = field(default_factory=dict)
    files: str | None = None
    pareto: bool = False
    winner: bool = False

    @property
    def is_fp32(self) -> bool:
        """Whether it is about FP32; no artifact has this status."""
        return self.entry.status == REFERENCE

    @property
    def label(self) -> str:
        """``<candidate>/<format>``, and for FP32 the runtime."""
        return f"FP32 {self.entry.runtime}" if self.is_fp32 else self.entry.label

    @property
    def model(self) -> str:
        """What was quantized, as far as known: its class, which only configured runs record, and its size."""
        name, size = self.manifest.config.model, self.manifest.fp32.size_bytes
        return name if size is None else f"{name} of {size} bytes"

    @property
    def cpu(self) -> str:
        """What its latency was measured on."""
        return self.manifest.environment.cpu

    @property
    def budget(self) -> Budget:
        """What it was judged by."""
        return self.manifest.budget or _NOT_JUDGED

    @property
    def drop(self) -> float | None:
        """The drop of the budget's metric, in the budget's terms."""
        return None if self.is_fp32 else self.entry.drop(self.budget)

    @property
    def speedup(self) -> Speedup:
        """Over FP32; empty where it was not measured."""
        return self.entry.speedup or Speedup()

    @property
    def size_share(self) -> float | None:
        """Its size as a share of the bytes of the FP32 weights."""
        size, fp32 = self.entry.size_bytes, self.manifest.fp32_of(self.entry).size_bytes
        return size / fp32 if size is not None and fp32 else None

    @property
    def setting(self) -> tuple[Any, ...]:
        """What has to be equal for figures to be comparable: metric and direction, and how latency was measured."""
        return (self.budget.metric, self.budget.mode, self.cpu, self.batch_size, self.threads)

    @property
    def accuracy(self) -> float | None:
        """What to minimize: the budget's metric in its direction; where that is unknown, how far it is from FP32."""
        value = computable(self.entry.metrics.get(self.budget.metric or ""))
        if value is None or self.budget.mode is None:
            return self.entry.drop(Budget(self.budget.metric))
        return -value if self.budget.mode == "max" else value

    @property
    def objectives(self) -> tuple[float, float, float] | None:
        """Accuracy, latency and size, all to be minimized; ``None`` unless all three were measured."""
        accuracy, median, size = self.accuracy, self.entry.median, self.entry.size_bytes
        return None if accuracy is None or median is None or size is None else (accuracy, median, size)


@dataclass(frozen=True)
class Failed:
    """A job without figures: it stopped, or its manifest cannot be read.

    Args:
        run: folder of the run.
        overrides: what Hydra was given for this job.
        error: the reason, in one line.
    """

    run: str
    overrides: tuple[str, ...]
    error: str


@dataclass(frozen=True)
class Leaderboard:
    """Every run found, in the order of their folders.

    Args:
        artifacts: one row per artifact, those that failed included.
        fp32: one row per run and runtime of FP32.
        failed: jobs without figures.
        notes: what a reader has to know to compare the rows.
    """

    artifacts: tuple[Row, ...]
    fp32: tuple[Row, ...]
    failed: tuple[Failed, ...]
    notes: tuple[str, ...]

    @property
    def jobs(self) -> tuple[Row | Failed, ...]:
        """Everything that belongs to a run."""
        return *self.artifacts, *self.fp32, *self.failed

    @property
    def manifests(self) -> dict[str, Manifest]:
        """The manifest of every run that has artifacts, by the name of the run."""
        return {row.run: row.manifest for row in self.artifacts}

    @property
    def ranked(self) -> list[Row]:
        """The artifacts for a reader: winners, then what is within the budget, what is over it, what was not timed."""
        return sorted(
            self.artifacts,
            key=lambda row: (
                not row.winner,
                row.entry.median is None,
                row.entry.status != "ok",
                row.entry.median or 0.0,
            ),
        )


def reference(fp32: Fp32, runtime: str) -> Entry:
    """Return FP32 on one runtime as an entry, to stand beside the artifacts."""
    return Entry(
        FP32,
        FP32,
        runtime,
        format="",
        size_bytes=fp32.size_bytes if runtime == EAGER else None,  # that of the weights; no other is known
        metrics=fp32.metrics,
        delta=dict.fromkeys(fp32.metrics, 0.0),
        fp32=fp32,
        latency_ms=LatencyRecord(fp32.latency_ms[runtime]),
        speedup=fp32.speedup(fp32.latency_ms[runtime]),
        status=REFERENCE,
    )


def rows_of(
    run: str, overrides: tuple[str, ...], content: Manifest, artifacts: Iterable[tuple[Entry, str | None]]
) -> Iterator[Row]:
    """Return the rows of one manifest: FP32 on every runtime, and every artifact.

    Args:
        run: its name.
        overrides: what Hydra was given for it.
        content: the manifest.
        artifacts: its entries, each with what is known of its files; see :class:`Row`.
    """
    timed = next((entry.latency_ms for entry in content.artifacts if entry.latency_ms), None)
    batch_size, threads = (timed.batch_size, timed.threads) if timed else (None, None)
    for runtime in content.fp32.latency_ms:
        yield Row(run, overrides, content, reference(content.fp32, runtime), batch_size, threads)
    for entry, state in artifacts:
        shown = replace(entry, sqnr_db=computable(entry.sqnr_db))
        yield Row(run, overrides, content, shown, batch_size, threads, files=state)


def marked(rows: Sequence[Row]) -> list[Row]:
    """Return rows with the Pareto front and the winner marked among those of each setting."""
    front: set[int] = set()
    winners: set[int | None] = set()
    for setting in {row.setting for row in rows}:
        group = [n for n, row in enumerate(rows) if row.setting == setting]
        measured = {n: point for n in group if (point := rows[n].objectives) and rows[n].entry.status != "failed"}
        front |= {list(measured)[n] for n in selection.pareto_front(list(measured.values()))}
        best = selection.fastest([(rows[n].entry.status, rows[n].entry.median) for n in group])
        winners.add(None if best is None else group[best])
    return [replace(row, pareto=n in front, winner=n in winners) for n, row in enumerate(rows)]


def groups(manifest: Manifest) -> list[tuple[Fp32, list[Entry]]]:
    """Return every FP32 model with the artifacts that are compared with it: those of the same target and weights."""
    found: list[tuple[Fp32, list[Entry]]] = [(manifest.fp32, [])]
    for entry in manifest.artifacts:
        fp32 = manifest.fp32_of(entry)
        entries = next((entries for known, entries in found if known == fp32), None)
        if entries is None:
            found.append((fp32, entries := []))
        entries.append(entry)
    return found


def columns(row: Row) -> dict[str, Any]:
    """Return a row as it stands in ``leaderboard.json`` and ``.csv``."""
    entry, budget = row.entry, row.budget
    return {
        "run": row.run,
        "overrides": row.overrides,
        "config": row.config,
        "model": row.model,
        "cpu": row.cpu,
        "candidate": entry.candidate,
        "method": entry.method,
        "format": None if row.is_fp32 else entry.format,
        "runtime": entry.runtime,
        "status": entry.status,
        "error": entry.error,
        "metrics": entry.metrics,
        "delta": entry.delta,
        "metric": budget.metric,
        "mode": budget.mode,
        "drop": row.drop,
        "max_drop": budget.max_drop,
        "relative": budget.relative,
        "latency_ms": entry.median,
        "batch_size": row.batch_size,
        "threads": row.threads,
        "speedup_vs_torch_fp32": row.speedup.vs_torch_fp32,
        "speedup_vs_best_fp32": row.speedup.vs_best_fp32,
        "size_bytes": entry.size_bytes,
        "size_share": row.size_share,
        "sqnr_db": entry.sqnr_db,
        "files": row.files,
        "pareto": row.pareto,
        "winner": row.winner,
    }
