"""From the weights and statistics of a fit to artifacts on disk, measured, one of them selected. Knows no Trainer.

Every step is kept in a store under the digest of what determines it, before the next one begins: a run that was
interrupted continues by running again. A step that fails is recorded, and only what needs it is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lq_plugin import selection
from lq_plugin.artifacts.base import FORMATS, Artifact, export_one, formats_of, read
from lq_plugin.candidate import Candidate
from lq_plugin.errors import ArtifactError, ConfigError, UnsupportedError
from lq_plugin.evaluation.compare import Comparison, Protocol, Subject, compare
from lq_plugin.jobs import Job
from lq_plugin.progress import note
from lq_plugin.report import manifest
from lq_plugin.report.manifest import Config, Entry, Manifest
from lq_plugin.selection import Budget
from lq_plugin.steps import Step, attempt, say
from lq_plugin.store import Store, artifact_digest, remove

UNJUDGED = (
    "no budget was judged: no metric of validation is known, and the test split judges nothing. Log one in "
    "validation_step, or give metrics={…}, with 'validate' among the splits."
)


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Args:
        jobs: the candidates to make.
        folder: where artifacts and the manifest go; ``None`` where nothing is exported.
        formats: of the artifacts.
        protocol: how artifacts are evaluated; ``None`` where they are not.
        budget: how much of a metric may be dropped.
        monitor: the metric that the checkpoint monitors, and its direction, as far as there are any.
        config: sections of the manifest's ``config``.
        seed: that Lightning was given.
    """

    jobs: tuple[Job, ...] = ()
    folder: Path | None = None
    formats: Sequence[str] = ()
    protocol: Protocol | None = None
    budget: Budget = Budget()
    monitor: tuple[str | None, str | None] = (None, None)
    config: Config = Config()
    seed: int | None = None


@dataclass(frozen=True)
class Finished:
    """What came of a plan.

    Args:
        candidates: by their names.
        manifest: as it was written; ``None`` where nothing was exported.
        unjudged: the mistake or failure that kept every artifact from being evaluated or judged, if any.
    """

    candidates: Mapping[str, Step[Candidate]]
    manifest: Manifest | None = None
    unjudged: str | None = None


def finish(plan: Plan, store: Store) -> Finished:
    """Make candidates, export them, evaluate the artifacts, select one, and write the manifest after each of these.

    Args:
        plan: what is to be done.
        store: what earlier runs have finished of it.
    """
    if plan.folder is None:
        candidates = _candidates(plan, store)
        store.complete()
        return Finished(candidates)
    with _only_run_in(plan.folder):
        _remove_manifest(plan.folder)
        candidates = _candidates(plan, store)
        entries = [
            _exported(job, candidates[job.name], name, plan.folder, store)
            for job in plan.jobs
            for name in formats_of(job.scheme.method, plan.formats)
        ]
        finished = Finished(candidates, _written(plan, candidates, entries))
        if plan.protocol is not None:
            comparisons, unjudged = _compared(plan, candidates, entries)
            finished = replace(finished, manifest=_judged(plan, candidates, entries, comparisons))
    store.complete()
    return finished


def _candidates(plan: Plan, store: Store) -> dict[str, Step[Candidate]]:
    made: dict[str, Step[Candidate]] = {}
    for job in plan.jobs:
        known = Step[Candidate](error=job.failure)
        made[job.name] = attempt(f"candidate {job.name!r} could not be made", partial(job.candidate, store), known)
    return made


def _exported(job: Job, candidate: Step[Candidate], format_name: str, folder: Path, store: Store) -> Entry:
    """Make one artifact; say what became of it."""
    entry = Entry(job.name, job.scheme.method, FORMATS[format_name].runtime, format_name)
    path = folder / job.name / format_name

    def export() -> Artifact:
        assert candidate.result is not None
        return _export(candidate.result, path, format_name, store)

    step = attempt(f"{entry.label} failed", export, candidate, expected=(UnsupportedError,))
    if step.result is not None:
        return entry.exported(step.result, folder)
    remove_artifact(path)  # of an earlier run, which would be taken for this one's
    if candidate.result is not None and isinstance(step.error, UnsupportedError):
        return replace(entry, status="unsupported", error=str(step.error))
    return replace(entry, status="failed", error=step.reason)


def _export(candidate: Candidate, path: Path, format_name: str, store: Store) -> Artifact:
    """Take an artifact from the store, or make it and keep it there."""
    chosen = FORMATS[format_name]
    if candidate.scheme.method not in chosen.refuses:
        note(f"exporting {candidate.name}/{format_name} …")
    if chosen.load is None or candidate.scheme.method in chosen.refuses:  # it is not made of the graph, or of nothing
        return export_one(candidate, path, format_name)
    digest = candidate.digest(format_name)
    if store.take_artifact(digest, path):
        try:
            return read(path)
        except ArtifactError:
            store.drop_artifact(digest)
    artifact = export_one(candidate, path, format_name)
    store.keep_artifact(digest, path)
    return artifact
