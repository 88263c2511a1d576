"""``report.html``: everything that a manifest says about one run, as a page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lq_plugin.durable import replace_file
from lq_plugin.printing import line
from lq_plugin.report import repeating
from lq_plugin.report.board import Row
from lq_plugin.report.compared import MOST, compared, rows
from lq_plugin.report.details import sections
from lq_plugin.report.manifest import Manifest
from lq_plugin.report.operators import fallen_back, kernels, operator_tables
from lq_plugin.report.page import rendered
from lq_plugin.report.scatter import scatters
from lq_plugin.report.value_ranges import range_tables
from lq_plugin.report.verdict import verdict

DETAILED = 10  # candidates with tables and plots of their own
FILE = "report.html"
TEMPLATE = "run.html"


def render(manifest: Manifest) -> str:
    """Return the page of a run.

    Args:
        manifest: of the run, from anywhere: nothing in it is trusted.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    shown = rows(manifest)
    artifacts = [row for row in shown if not row.is_fp32]
    detailed = _detailed(manifest)
    placements = [f"{row.label}: {row.entry.placement}" for row in artifacts if row.entry.placement]
    return rendered(
        TEMPLATE,
        "The report's page",
        manifest=manifest,
        model=line(manifest.config.model.rpartition(".")[2]),
        verdict=verdict(manifest),
        metric=manifest.budget.metric if manifest.budget else None,
        judged=any(row.drop is not None for row in artifacts),
        timed=next((row.entry.latency_ms for row in artifacts if row.entry.latency_ms), None),
        calls=_calls(artifacts),
        compared=compared(shown, manifest),
        left_out=max(len(manifest.artifacts) - MOST, 0),
        scatters=scatters(
            [(row.label, row) for row in artifacts],
            [(row.label, row) for row in shown if row.is_fp32],
        ),
        metrics=list(dict.fromkeys(name for row in shown for name in row.entry.metrics)),
        with_metrics=_with_metrics(shown),
        tables=operator_tables(detailed),
        kernels=kernels(detailed),
        remarks=[*fallen_back(detailed), *placements],
        undetailed=len(_candidates(manifest)) - len(_candidates(detailed)),
        details=sections(detailed),
        ranges=range_tables(detailed),
        loading=repeating.loading(detailed),
        command=repeating.command(manifest),
        configuration=repeating.configuration(manifest),
        provenance=repeating.provenance(detailed),
        environment=repeating.environment(manifest),
    )


def write(folder: Path, manifest: Manifest) -> Path:
    """Write the page beside the manifest in one step.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    return replace_file(folder / FILE, render(manifest))


def _candidates(manifest: Manifest) -> list[str]:
    """The candidates, the one of the selected artifact first."""
    selected = [manifest.chosen.candidate] if manifest.chosen else []
    return list(dict.fromkeys([*selected, *(entry.candidate for entry in manifest.artifacts)]))


def _detailed(manifest: Manifest) -> Manifest:
    """The manifest of the first candidates only, so that the page of a run with hundreds of them stays small."""
    names = set(_candidates(manifest)[:DETAILED])
    return replace(
        manifest,
        artifacts=tuple(entry for entry in manifest.artifacts if entry.candidate in names),
        calibration={name: found for name, found in manifest.calibration.items() if name in names},
        notes={name: found for name, found in manifest.notes.items() if name in names},
        steps=tuple(step for step in manifest.steps if step.candidate in names),
        sensitivity={name: found for name, found in manifest.sensitivity.items() if name in names},
        ranges={name: found for name, found in manifest.ranges.items() if name in names},
        trials=tuple(trial for trial in manifest.trials if trial.candidate in names),
    )


def _calls(artifacts: Sequence[Row]) -> str:
    """How many calls were timed, from the artifact with the fewest to the one with the most."""
    counts = [row.entry.latency_ms.calls for row in artifacts if row.entry.latency_ms and row.entry.latency_ms.calls]
    if not counts:
        return "all"
    return f"{counts[0]}" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"


def _with_metrics(shown: list[Row]) -> list[Row]:
    """The rows with metrics; those of FP32 are the same on every runtime, so one is enough for each model."""
    found: list[Row] = []
    for row in shown:
        known = any(row.is_fp32 and other.is_fp32 and other.entry.fp32 == row.entry.fp32 for other in found)
        if row.entry.metrics and not known:
            found.append(row)
    return found
