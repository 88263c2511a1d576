"""Artifacts of candidates on disk: taken from the store if an earlier run has made them, else exported."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from lq_plugin.artifacts.base import FORMATS, Artifact, export_one, read
from lq_plugin.artifacts.digest import artifact_digest
from lq_plugin.candidate import Candidate
from lq_plugin.errors import ArtifactError, CaptureError, UnsupportedError
from lq_plugin.jobs import Job
from lq_plugin.progress import note
from lq_plugin.report.manifest import Entry
from lq_plugin.steps import Step, attempt, logger, reason_of, say
from lq_plugin.store import Store, remove


def exported(
    job: Job,
    candidate: Step[Candidate],
    format_name: str,
    folder: Path,
    store: Store,
    threads: int | None,
    told: set[str],
) -> Entry:
    """Make one artifact of a candidate and record the outcome; what cannot be made is recorded with the reason.

    Args:
        job: whose candidate it is.
        candidate: the candidate, or why there is none.
        format_name: of the artifact.
        folder: of the run.
        store: steps that earlier runs have finished.
        threads: number of threads that the runtime will use; ``None`` for its choice.
        told: why graphs could not be captured, as far as it was logged; the same reason is not logged in full again.
    """
    entry = Entry(job.name, job.scheme.method, FORMATS[format_name].runtime, format_name)
    path = folder / job.name / format_name

    def export() -> Artifact:
        assert candidate.result is not None
        return artifact_of(candidate.result, path, format_name, store, threads)

    step = attempt(f"{entry.label} failed", export, candidate, expected=(UnsupportedError, CaptureError))
    if isinstance(step.error, CaptureError) and candidate.result is not None:
        _say_once(f"{entry.label} failed", step.error, told)
    if step.result is not None:
        return entry.exported(step.result, folder)
    if path.exists():  # an artifact of an earlier run would pass for one of this run
        attempt(f"{str(path)!r} of an earlier run cannot be removed", partial(remove, path))
    if isinstance(step.error, UnsupportedError):
        return replace(entry, status="unsupported", error=str(step.error))
    return replace(entry, status="failed", error=step.reason)


def _say_once(what: str, error: CaptureError, told: set[str]) -> None:
    """Log a failed capture, which every format that needs a graph has in common."""
    if reason_of(error) in told:
        logger.error("%s: no graph could be captured, see above.", what)
    else:
        told.add(say(what, error))


def artifact_of(
    candidate: Candidate, path: Path, format_name: str, store: Store, threads: int | None = None
) -> Artifact:
    """Take an artifact from the store, or make it and keep it there.

    Args:
        candidate: what is exported.
        path: folder of the artifact.
        format_name: of the artifact.
        store: steps that earlier runs have finished.
        threads: number of threads that the runtime will use; ``None`` for its choice.

    Raises:
        LqError: the candidate has no such form, or cannot be exported.
    """
    chosen, label = FORMATS[format_name], f"{candidate.name}/{format_name}"
    if candidate.scheme.method in chosen.refuses:
        return export_one(candidate, path, format_name)  # says why not
    digest = None if chosen.load is None else artifact_digest(candidate, format_name, threads)
    if digest is not None and store.take_artifact(digest, path):
        with suppress(ArtifactError):
            artifact = read(path)
            note(f"{label} taken from a run that was interrupted")
            return artifact
        store.drop_artifact(digest)
    note(f"exporting {label} …")
    artifact = export_one(candidate, path, format_name, threads)
    if digest is not None:  # else it is made of more than the graph
        store.keep_artifact(digest, path)
    return artifact
