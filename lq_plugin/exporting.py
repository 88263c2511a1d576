"""Artifacts of candidates on disk: exported, taken from the store if an earlier run has made them, placed anew."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lq_plugin.artifacts.base import FORMATS, Artifact, check_formats, export_one, formats_of, read, rearranged
from lq_plugin.artifacts.digest import artifact_digest
from lq_plugin.artifacts.layout import PLAIN
from lq_plugin.candidate import Candidate
from lq_plugin.errors import ArtifactError, CaptureError, LqError, UnsupportedError
from lq_plugin.evaluation.latency import Latency
from lq_plugin.evaluation.placing import MeasuredPlacement, check_placement, placed_as
from lq_plugin.jobs import Job
from lq_plugin.placing import decided
from lq_plugin.progress import doing, note
from lq_plugin.report import readme
from lq_plugin.report.environment import environment
from lq_plugin.report.manifest import Entry, Manifest
from lq_plugin.steps import Step, attempt, logger, reason_of, say
from lq_plugin.store import STORE, Store, remove


def export(
    candidate: Candidate,
    folder: str | os.PathLike[str],
    formats: Sequence[str] | None = None,
    threads: int | None = None,
    placement: str = "runtime",
) -> dict[str, Artifact]:
    """Export a candidate, one folder a format.

    Args:
        candidate: what to export.
        folder: where the formats' folders are made; an existing one is replaced when the new one is complete.
        formats: keys of ``FORMATS``; all that the candidate's method has by default. ``"torch"`` is always made of a
            dynamic candidate.
        threads: how many threads will run the artifact; give :func:`~lq_plugin.load` the same number. The runtime
            chooses by default. Whether a GRU is faster in INT8 is measured with this number.
        placement: ``"auto"``: measure whether a static candidate is faster than FP32 on each runtime, for one sample;
            where it is not, operators that cost more than they gain go back to float, if that is measured to be faster
            on this machine. The decisions are kept in the folder, and read back by the next call. What cannot be
            measured is logged, and stays as the runtime wants it. ``"runtime"``: place it as the runtime wants it, and
            measure nothing for that.

    Returns:
        The artifacts by format. A format that does not exist for the candidate is left out, with a warning that says
        why. An error is raised after all other formats were made.

    Raises:
        ConfigError: an unknown format or placement, or too few threads.
        UnsupportedError: none of the formats exists for the candidate.
        MissingExtraError: a format needs a package that is not installed.
        ExportError: a runtime's exporter refused the graph.
    """
    method = candidate.scheme.method
    asked = [name for name in FORMATS if method not in FORMATS[name].refuses] if formats is None else formats
    artifacts: dict[str, Artifact] = {}
    refused: dict[str, str] = {}
    failed: LqError | None = None
    measured = check_placement(placement) == "auto"
    placing = MeasuredPlacement(Latency(threads=threads), Store(Path(folder) / STORE).decisions()) if measured else None
    for name in formats_of(method, check_formats(asked)):
        try:
            artifacts[name] = _placed_artifact(candidate, Path(folder) / name, name, threads, placing)
        except UnsupportedError as error:
            refused[name] = str(error)
        except LqError as error:
            failed = failed or error
    if failed is not None:
        failed.add_note(f"Still exported to {str(folder)!r}: {', '.join(artifacts) or 'nothing'}.")
        raise failed
    if not artifacts:
        raise UnsupportedError(f"formats: {list(asked)} cannot be made from candidate {candidate.name!r}: {refused}.")
    for name, reason in refused.items():
        logger.warning("%s/%s is unsupported: %s", candidate.name, name, reason)
    readme.write(Path(folder), _manifest(candidate, artifacts, Path(folder)))
    return artifacts


def _manifest(candidate: Candidate, artifacts: Mapping[str, Artifact], folder: Path) -> Manifest:
    """What is known of artifacts that nothing was measured of."""
    entries = [Entry(candidate.name, one.method, one.runtime, one.format) for one in artifacts.values()]
    made = zip(entries, artifacts.values(), strict=True)
    return Manifest(
        artifacts=tuple(entry.exported(artifact, folder) for entry, artifact in made),
        calibration={candidate.name: provenance(candidate)},
        environment=environment(),
    )


def _placed_artifact(
    candidate: Candidate, path: Path, format_name: str, threads: int | None, placing: MeasuredPlacement | None
) -> Artifact:
    """Export a candidate, and once more where another placement turns out to be faster."""
    if placing is None or not placing.applies(candidate, format_name):
        return export_one(candidate, path, format_name, threads)
    if (known := placing.known(candidate, format_name)) is not None:
        return export_one(placed_as(candidate, format_name, known), path, format_name, threads)
    artifact = export_one(candidate, path, format_name, threads)
    placed = decided(placing, candidate, format_name, path)
    return artifact if placed is candidate else export_one(placed, path, format_name, threads)


def exported(
    job: Job,
    candidate: Step[Candidate],
    format_name: str,
    folder: Path,
    store: Store,
    threads: int | None,
    told: set[str],
    layout: str = PLAIN,
) -> Entry:
    """Make one artifact of a candidate and record the outcome; what cannot be made is recorded with the reason.

    Args:
        job: whose candidate it is.
        candidate: the candidate, or why there is none.
        format_name: of the artifact.
        folder: of the run.
        store: steps that earlier runs have finished.
        threads: number of threads that the runtime will use; ``None`` for its choice.
        layout: of the artifact's folder.
        told: why graphs could not be captured, as far as it was logged; the same reason is not logged in full again.
    """
    entry = Entry(job.name, job.scheme.method, FORMATS[format_name].runtime, format_name)
    path = folder / job.name / format_name

    def export() -> Artifact:
        assert candidate.result is not None
        artifact = artifact_of(candidate.result, path, format_name, store, threads)
        return artifact if layout == PLAIN else rearranged(artifact)

    step = attempt(f"{entry.label} failed", export, candidate, expected=(UnsupportedError, CaptureError))
    if isinstance(step.error, CaptureError) and candidate.result is not None:
        _say_once(f"{entry.label} failed", step.error, told)
    if step.result is not None:
        return entry.exported(step.result, folder)
    if path.exists():  # an artifact of an earlier run would pass for one of this run
        attempt(f"{str(path)!r} of an earlier run cannot be removed", partial(remove, path))
    with suppress(OSError):  # another format of the candidate is in it, or there is none
        path.parent.rmdir()
    if isinstance(step.error, UnsupportedError):
        return replace(entry, status="unsupported", error=str(step.error))
    return replace(entry, status="failed", error=step.reason)


def _say_once(what: str, error: CaptureError, told: set[str]) -> None:
    """Log a failed capture, which every format that needs a graph has in common."""
    if reason_of(error) in told:
        logger.error("%s: no graph could be captured, see above.", what)
    else:
        told.add(say(what, error))


def provenance(candidate: Candidate) -> Mapping[str, Any]:
    """Return where a candidate's weights and statistics come from, and what its algorithms learnt from."""
    origin = vars(candidate.provenance)
    if candidate.learning is None:
        return origin
    return {**origin, "algorithms": {key: item for key, item in vars(candidate.learning).items() if key != "steps"}}


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
    with doing(f"exporting {label}"):
        artifact = export_one(candidate, path, format_name, threads)
    if digest is not None:  # else it is made of more than the graph
        store.keep_artifact(digest, path)
    return artifact
