"""One job of a sweep that finished: the same job of a later sweep takes its results over and does nothing again.

Hydra starts all jobs of a multirun again, in a new folder. So a finished job leaves a record beside its fit: the
manifest, and the folder of the run that holds the artifacts. The record is small and refers to the artifacts, it does
not keep them. It holds the manifest itself because a job first removes the one in its folder, which is the same folder
again where ``hydra.sweep.dir`` is fixed.

A manifest is taken over whole, with the latency and the speed-up over FP32 that one session has measured together.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from lq_plugin import ArtifactExport, checksums
from lq_plugin.apps import fits, sources
from lq_plugin.durable import write_whole
from lq_plugin.output_folder import only_run_in, write_page
from lq_plugin.pipeline import UNJUDGED
from lq_plugin.progress import note
from lq_plugin.report import manifest
from lq_plugin.report.decoder import encode
from lq_plugin.report.environment import environment
from lq_plugin.report.files import AS_MEASURED, compared
from lq_plugin.report.manifest import Entry, Manifest
from lq_plugin.report.runs import JOB, QUANTIZED
from lq_plugin.store import STALE, Store, copy_folder, inside, put_aside, remove
from lq_plugin.untrusted import naming, read_json

AGAIN = "fit.skip_finished=false runs it again"
_THREADS = torch.get_num_threads()  # before any job of this process sets them
_UNDECISIVE = ("fit", "paths")  # sections of a configuration that change no result of a job


@dataclass(frozen=True)
class KeptJob:
    """A job of a sweep and, where it finished earlier, the record of it.

    Args:
        digest: of what determines its results, except the weights; see :func:`digest`.
        store: beside the fit.
        folder: where this run writes its artifacts and manifest.
        skips: whether it is skipped where it finished earlier.
    """

    digest: str
    store: Store
    folder: Path
    skips: bool = True

    @property
    def _file(self) -> Path:
        return self.store.jobs() / f"{self.digest}.json"

    def taken_over(self, weights: str) -> Manifest | None:
        """Put the results of the same job of an earlier sweep into the folder of this run.

        Args:
            weights: what identifies the weights that are quantized.

        Returns:
            The manifest; ``None`` where there is none, or not all of its artifacts are as they were measured.
        """
        if not self.skips or not os.path.lexists(self._file):
            return None
        try:
            found, source, content = self._record()
        except ValueError as error:
            what = f"the record of a finished job in {self._file}: {error}"
            put_aside(self._file, what, "made again when the job has run", AGAIN)
            return None
        if found != weights:
            return None
        with only_run_in(self.folder):
            if wrong := _copied(source, self.folder, content.artifacts):
                note(f"this job finished earlier in {source}, but {wrong}; it runs again")
                return None
            manifest.write(self.folder, content)
            write_page(self.folder, content)
        note(f"this job finished earlier in {source}: its results are taken over; {AGAIN}")
        self._write(weights, content)  # this folder may outlive the other one
        return content

    def keep(self, weights: str, trainer: Any) -> None:
        """Record that this job finished, unless it has to run again: it exported nothing, or something failed.

        Args:
            weights: what identifies the weights that were quantized; empty where they are not kept.
            trainer: whose ``ArtifactExport`` has the results.
        """
        for exporter in trainer.callbacks:
            if not weights or not isinstance(exporter, ArtifactExport) or exporter.manifest is None:
                continue
            here = exporter.folder is not None and exporter.folder.resolve() == self.folder.resolve()
            if here and all(map(_is_final, exporter.manifest.artifacts)):
                self._write(weights, exporter.manifest)

    def _write(self, weights: str, content: Manifest) -> None:
        record = {"weights": weights, "folder": str(self.folder.absolute()), "manifest": content.to_json()}
        try:
            write_whole(self._file, json.dumps(record | {"digest": checksums.of_json(record)}).encode())
        except OSError as error:
            note(f"this finished job could not be recorded for a later sweep ({error})")
        _forget(self._file.parent)

    def _record(self) -> tuple[str, Path, Manifest]:
        with naming("it"):
            record = read_json(inside(self.store.folder, f"{self._file.parent.name}/{self._file.name}"))
            if not isinstance(record, dict) or not isinstance(record.get("folder"), str):
                raise ValueError("does not say where the artifacts are")
            told = {name: value for name, value in record.items() if name != "digest"}
            if record.get("digest") != checksums.of_json(told):
                raise ValueError("was changed after it was stored: its digest differs")
        return str(record.get("weights")), Path(record["folder"]), Manifest.from_json(record.get("manifest"))


def of(config: DictConfig, store: Store, weights: str) -> KeptJob:
    """Return the job of a configuration, and name it in its folder: reports list what became of it in the last sweep.

    Args:
        config: of the whole run, after the random generators were seeded.
        store: beside the fit.
        weights: what determines the weights that are quantized.
    """
    folder = Path(config.paths.output_dir)
    job = KeptJob(digest(config), store, folder / QUANTIZED, config.fit.skip_finished)
    write_whole(folder / JOB, json.dumps({"job": checksums.of_json([job.digest, weights])[:16]}).encode())
    return job


def digest(config: DictConfig) -> str:
    """Name a job after its configuration, the code, the packages and the CPU; output folders do not matter.

    Args:
        config: of the whole run, after the random generators were seeded.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True)
    decisive = {name: section for name, section in plain.items() if name not in _UNDECISIVE}
    content = {
        "config": fits.without_folder(decisive, config.paths.output_dir),
        "code": sources.versions([KeptJob, *map(get_object, fits.targets(decisive))]),
        "environment": encode(replace(environment(), threads=_THREADS)),
    }
    return checksums.of_json(content, default=str)[:16]


def _is_final(entry: Entry) -> bool:
    """Whether another run would give the same; a failure, such as a full disk, may not happen again."""
    return entry.status != "failed" and (entry.status != "not_evaluated" or entry.error in (None, UNJUDGED))


def _copied(source: Path, folder: Path, entries: Sequence[Entry]) -> str | None:
    """Copy the artifacts of a run, and return what is wrong with them, if anything is."""
    if wrong := _wrong(source, entries):
        return wrong
    if source.resolve() == folder.resolve():
        return None
    try:
        for path in (entry.path for entry in entries if entry.path is not None):
            for left in (folder / path).parent.glob(f".{(folder / path).name}-*"):  # by a run that was killed
                remove(left)
            copy_folder(source / path, folder / path)
    except (OSError, ValueError) as error:
        return f"its artifacts cannot be copied ({error})"
    return _wrong(folder, entries)


def _wrong(folder: Path, entries: Sequence[Entry]) -> str | None:
    return next(_differences(folder, entries), None)


def _differences(folder: Path, entries: Sequence[Entry]) -> Iterator[str]:
    for entry in entries:
        # One by one, because what is compared of a whole run is limited.
        ((state, wrong),) = compared(folder, [entry])
        if entry.path is not None and state != AS_MEASURED:
            yield f"{entry.label} there is {state or 'not compared'}" + (f" ({wrong})" if wrong else "")


def _forget(folder: Path) -> None:
    """Remove records of results that are gone, and what killed runs left. Each is looked at once a week."""
    for file in folder.glob("*"):
        with suppress(OSError):  # another job was faster
            if time.time() - file.lstat().st_mtime < STALE:
                continue
            try:
                record = read_json(file)
                known = os.path.lexists(record["folder"])
            except (ValueError, TypeError, KeyError):  # put aside, or half-written
                known = False
            os.utime(file) if known else remove(file)
