"""Finished steps, each under the digest of what determines it, in a folder that outlives the folder of a run.

A run that was interrupted continues by running again: what exists under the right digest is not made again, and results
of other weights, options or code have another digest. Calibrations are files of torch.save, artifacts are folders as
they are exported, and measured decisions are JSON. Whatever is read is checked first.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from lq_plugin import checksums
from lq_plugin.artifacts.description import as_json, decisions
from lq_plugin.artifacts.layout import files
from lq_plugin.coverage import Measured
from lq_plugin.durable import put_in_place, write_whole
from lq_plugin.errors import CalibrationError
from lq_plugin.graph.calibration import Calibration
from lq_plugin.kept import Results
from lq_plugin.progress import note
from lq_plugin.torch_file import read
from lq_plugin.untrusted import naming, read_json, regular_file

CALIBRATIONS = "calibrations"
RESULTS = ("algorithms", "latencies", "scores", "sensitivities", "trials")
STORE = ".lq_plugin"  # below the default_root_dir of a Trainer, or the folder that export writes to
_ABANDONED = 3600.0  # seconds after which a half-written file must come from a killed run
STALE = 7 * 24 * 3600.0  # seconds after which an interrupted run is not expected to continue


class Store:
    """A folder of finished steps.

    Args:
        folder: where they are; made when something is kept.
        keeps_calibrations: whether calibrations stay when a run is complete, for other runs of the same weights.
        advice: how a user can ignore what is kept, for the notes.
    """

    def __init__(self, folder: Path, keeps_calibrations: bool = False, advice: str | None = None) -> None:
        self.folder = folder
        self._keeps_calibrations = keeps_calibrations
        self._advice = advice or f"remove {folder} to start from scratch"
        self._used: set[Path] = set()

    def calibrations(self, graph_digest: str, inputs: str = "", observed: str = "*") -> list[Calibration]:
        """Return earlier calibrations; damaged ones are put aside.

        Args:
            graph_digest: of the graph and its weights.
            inputs: digest of a call, which tells one data set from another.
            observed: digest of the options that say what was observed and how; any by default.
        """
        found = []
        for file in sorted(self._kept(CALIBRATIONS).glob(f"{observed}-{_key(graph_digest, inputs)}-*.pt")):
            try:
                found.append(self._calibration(file))
                self._used.add(file)
            except (CalibrationError, ValueError) as error:
                what = f"the calibration kept in {file}: {error}"
                put_aside(file, what, "made again when needed", self._advice)
        return found

    def keep_calibration(self, calibration: Calibration, inputs: str = "") -> None:
        """Keep a calibration; see :meth:`calibrations`."""
        name = f"{calibration.provenance.observed}-{_key(calibration.provenance.digest, inputs)}"
        content = io.BytesIO()
        torch.save(calibration.state_dict(), content)
        file = self._kept(CALIBRATIONS) / f"{name}-{_short(content.getvalue())}.pt"
        with _noted(f"the calibration of {name}"):
            if not any(file.parent.glob(f"{name}-*.pt")):
                write_whole(file, content.getvalue())
                self._used.add(file)

    def take_artifact(self, digest: str, path: Path) -> bool:
        """Copy an earlier artifact to a path; whoever reads it there checks it.

        Returns:
            Whether there was one.
        """
        kept = self._kept("artifacts") / digest
        if not kept.is_dir() or kept.is_symlink():
            return False
        self._used.add(kept)
        try:
            copy_folder(kept, path)
        except ValueError:  # there is more in it than files
            self.drop_artifact(digest)
            return False
        except OSError:  # another run has just removed it, or the disk is full, which the export will report
            return False
        return True

    def keep_artifact(self, digest: str, path: Path) -> None:
        """Keep an artifact that was exported to a path."""
        kept = self._kept("artifacts") / digest
        with _noted(f"the artifact {path.parent.name}/{path.name}"):
            if kept.is_symlink() or not kept.is_dir():
                copy_folder(path, kept)
            self._used.add(kept)

    def drop_artifact(self, digest: str) -> None:
        """Remove an artifact that turned out to be damaged."""
        remove(self._kept("artifacts") / digest)

    def decisions(self) -> dict[str, Measured]:
        """Return measured decisions by digest; a new one is written to disk before it is acted on."""
        return _Decisions(self._kept("decisions"))

    def results(self, kind: str) -> Results:
        """Return what steps of a kind have given, by the digest of what determines it.

        Args:
            kind: one of ``RESULTS``.
        """
        return _KeptResults(self._kept(kind), self._used)

    def jobs(self) -> Path:
        """Return the folder for records of finished jobs; see :mod:`lq_plugin.apps.kept_job`."""
        return self._kept("jobs")

    def complete(self) -> None:
        """Remove what a complete run no longer needs, and what old interrupted runs have left."""
        folders = [self._kept(name) for name in ("artifacts", CALIBRATIONS, "decisions", *RESULTS)]
        for path in (*self._used, *_left_behind(folders)):
            calibration = path.parent.name == CALIBRATIONS and path.suffix == ".pt"
            if not (calibration and self._keeps_calibrations):
                with suppress(OSError):  # it may belong to another user, and does no harm
                    remove(path)
        self._used.clear()
        for folder in (*folders, self.folder):
            with suppress(OSError):  # it is not empty, or was never there
                folder.rmdir()

    def _kept(self, name: str) -> Path:
        """Return a folder of the store. Nothing is read, renamed or removed behind a link: a link is put aside."""
        folder = self.folder / name
        for place in (self.folder, folder):
            if place.is_symlink():
                put_aside(place, f"the folder {place}: it is a link", "made again", self._advice)
        return folder

    def _calibration(self, file: Path) -> Calibration:
        with naming("it"):
            inside(self.folder, f"{file.parent.name}/{file.name}")
            state = read(file)
            if _short(file.read_bytes()) != file.stem.rpartition("-")[2]:
                raise ValueError("was changed after it was stored: its sha256 differs")
        return Calibration.from_state_dict(state)


class _KeptResults:
    """Results by the digest of what determines them, each a file of torch.save that ends in its own sha256."""

    def __init__(self, folder: Path, used: set[Path]) -> None:
        self._folder, self._used = folder, used

    def get(self, digest: str) -> Any:
        for file in self._folder.glob(f"{digest}-*.pt"):
            try:
                inside(self._folder.parent, f"{self._folder.name}/{file.name}")
                if checksums.of_file(file) == file.stem.partition("-")[2]:
                    result = read(file)
                    self._used.add(file)
                    return result
            except (OSError, ValueError):
                pass  # it is removed like what is damaged
            with suppress(OSError):
                remove(file)
        return None

    def __setitem__(self, digest: str, result: Any) -> None:
        content = io.BytesIO()
        with _noted(f"one of the {self._folder.name}"):
            torch.save(result, content)
            file = self._folder / f"{digest}-{hashlib.sha256(content.getbuffer()).hexdigest()}.pt"
            write_whole(file, content.getbuffer())
            self._used.add(file)


class _Decisions(dict[str, Measured]):
    """Decisions by the digest of what was measured; a new one is written before it is acted on."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        for file in folder.glob("*.json"):
            with suppress(OSError, ValueError):  # what cannot be read is measured again
                self.update(decisions({file.stem: read_json(file)}))

    def __reduce__(self) -> tuple[type[dict[str, Measured]], tuple[dict[str, Measured]]]:
        """Copy and pickle the decisions without the folder that they are kept in."""
        return dict, (dict(self),)

    def __setitem__(self, digest: str, decision: Measured) -> None:
        with _noted("a measured decision"):
            write_whole(self._folder / f"{digest}.json", json.dumps(as_json(decision)).encode())
        super().__setitem__(digest, decision)


def put_aside(damaged: Path, what: str, then: str, advice: str) -> None:
    """Rename what is damaged, so that it is no longer used but can be inspected, and say so.

    Args:
        damaged: file or folder.
        what: which one, and what is wrong with it.
        then: what happens instead.
        advice: how a user can ignore what is kept.
    """
    aside = damaged.with_name(f"{damaged.name}.damaged")
    try:
        remove(aside)
        damaged.rename(aside)
    except FileNotFoundError:  # another job was faster
        return
    except OSError as error:
        note(f"{what}. It could not be renamed ({error.strerror}), and will be {then}; {advice}")
    else:
        note(f"{what}. It was renamed to {aside.name}, and will be {then}; {advice}")


def inside(folder: Path, name: str) -> Path:
    """Return a file of a folder; links and files elsewhere are refused.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is another kind of file, or lies elsewhere.
    """
    file = folder / name
    if os.path.realpath(file) != os.path.join(os.path.realpath(folder.parent), folder.name, *name.split("/")):
        raise ValueError("is a link, or lies outside the folder")
    return regular_file(file)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def copy_folder(source: Path, folder: Path) -> None:
    """Copy a folder of files completely or not at all, replacing what is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for file in files(source):
            (scratch / file.relative_to(source)).parent.mkdir(exist_ok=True)
            shutil.copyfile(regular_file(file), scratch / file.relative_to(source))
        remove(folder)
        scratch.chmod(0o755)
        put_in_place(scratch, folder)
    finally:
        remove(scratch)


def _left_behind(folders: Sequence[Path]) -> Iterator[Path]:
    """Half-written files of killed runs, and results of runs that nobody continued; decisions stay."""
    now = time.time()
    for folder in folders:
        for path in folder.glob(".*" if folder.name == "decisions" else "*"):
            with suppress(OSError):  # another run was faster
                if now - path.lstat().st_mtime > (_ABANDONED if path.name.startswith(".") else STALE):
                    yield path


@contextmanager
def _noted(what: str) -> Iterator[None]:
    """A step that cannot be stored is still done; only another run has to do it again."""
    try:
        yield
    except (OSError, MemoryError) as error:
        note(f"{what} could not be stored for a later run ({str(error) or type(error).__name__})")


def _key(graph_digest: str, inputs: str) -> str:
    return _short(f"{graph_digest} {inputs}".encode())


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
