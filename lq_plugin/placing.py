"""Placements of a run's candidates: recalled from earlier runs, and decided on once latencies are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from lq_plugin.artifacts.base import FORMATS
from lq_plugin.candidate import Candidate, StaticCandidate
from lq_plugin.evaluation.compare import Subject, Timed
from lq_plugin.evaluation.placing import MeasuredPlacement
from lq_plugin.steps import Step, attempt

Candidates = Mapping[str, Step[Candidate]]  # by name


def recalled(placing: MeasuredPlacement, candidates: Candidates, formats: Sequence[str]) -> Candidates:
    """Return the candidates with the placements that an earlier run has decided on for these formats."""
    return {
        name: Step(placing.recalled(step.result, formats)) if isinstance(step.result, StaticCandidate) else step
        for name, step in candidates.items()
    }


def placed(placing: MeasuredPlacement, candidates: Candidates, subject: Subject, known: Timed) -> Candidates:
    """Decide on the placements of a subject's artifacts where that was not done before.

    Args:
        placing: measures.
        candidates: those that the artifacts were made from, and others.
        subject: the artifacts.
        known: their latencies; nothing is decided about what was not timed.

    Returns:
        All candidates, with the operators left float that are faster so.
    """
    for entry in subject.entries:
        candidate = candidates[entry.candidate].result
        floats, int8 = known.median(FORMATS[entry.format].lane), known.median(entry.label)
        if floats is None or int8 is None or entry.placement is not None:
            continue
        if placing.applies(candidate, entry.format):
            made = decided(placing, candidate, entry.format, subject.path(entry), (floats, int8))
            candidates = {**candidates, entry.candidate: Step(made)}
    return candidates


def decided(
    placing: MeasuredPlacement,
    candidate: StaticCandidate,
    format_name: str,
    path: Path,
    before: tuple[float, float] | None = None,
) -> StaticCandidate:
    """Return a candidate with the fastest placement found, or as it is; a failure is logged, and costs no artifact.

    Args:
        placing: measures.
        candidate: a static candidate for whose format nothing was decided yet.
        format_name: one whose runtime has a profiler.
        path: folder of the candidate's artifact in this format.
        before: milliseconds of a call of FP32 and of that artifact, where they are known.
    """
    what = f"the placement of {candidate.name}/{format_name} cannot be decided on"
    return attempt(what, partial(placing.decided, candidate, format_name, path, before)).result or candidate
