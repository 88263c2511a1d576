"""One fit in the cache of finished fits: which job works on it, what is kept in it, and whether that is undamaged.

It holds the checkpoints and ``fit.json``, which names them with their sha256 and has a digest of its own. This finds
damage; it does not prove who wrote a file. Beside it is a store of what was made of these checkpoints.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lq_plugin import checksums
from lq_plugin.callbacks.checkpoint import model_checkpoints
from lq_plugin.callbacks.quantizing import quantizing
from lq_plugin.checkpoints import content
from lq_plugin.durable import put_in_place, write_whole
from lq_plugin.errors import ConfigError
from lq_plugin.progress import note
from lq_plugin.store import Store, inside, put_aside, remove
from lq_plugin.torch_file import foreign_in, write
from lq_plugin.untrusted import naming, read_json

RECORD = "fit.json"
LIVE = "live.ckpt"
IGNORED = "fit.reuse=false ignores the cache"
_OF_TRAINING = ("optimizer_states", "lr_schedulers", "loops", "callbacks")  # in a checkpoint, to resume from it
_HOLDER_LIMIT = 1 << 14


class Fit:
    """One fit, finished or still to be run.

    Args:
        folder: what is kept of it.

    Attributes:
        store: what was made of its checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder.with_name(f"{folder.name}.store"), keeps_calibrations=True, advice=IGNORED)
        self._lock = FileLock(folder.parent / f"{folder.name}.lock")
        self._holder = folder.parent / f"{folder.name}.holder"
        self._checkpoints: dict[str, str] | None = None

    @property
    def done(self) -> bool:
        """Whether it finished."""
        return (self.folder / RECORD).is_file()

    @property
    def weights(self) -> str:
        """What identifies its checkpoints, the sha256 of its record; empty where it did not finish."""
        return checksums.of_file(self.folder / RECORD) if self.done else ""

    @contextmanager
    def claimed(self, run: str) -> Iterator[None]:
        """Wait until no other job runs this fit, and make the others wait until it is finished.

        Args:
            run: folder of this run, which is shown to the others.

        Raises:
            ConfigError: the folder of all fits cannot be written to.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._acquire()
            self._holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "run": run}))
            self._sweep()
        except OSError as error:
            self._release()
            raise ConfigError(
                f"fit.folder: {str(self.folder.parent)!r} cannot be written to ({error}). Choose another folder, or "
                "train without the cache: fit.reuse=false."
            ) from error
        try:
            yield
        finally:
            self._release()

    def usable(self) -> bool:
        """Whether it is finished and undamaged; a damaged one is put aside. Call this while it is claimed."""
        if not os.path.lexists(self.folder):
            return False
        try:
            self._checkpoints = self._checked()
        except ValueError as error:
            put_aside(self.folder, f"the cached fit in {self.folder}: {error}", "trained again", IGNORED)
            return False
        return True

    def keep(self, trainer: Any) -> None:
        """Store the checkpoints of a fit that has just ended, for others to reuse."""
        scratch = self.folder.with_name(f"{self.folder.name}.{os.getpid()}")
        remove(scratch)
        scratch.mkdir(parents=True)
        try:
            kept = self._fill(scratch, trainer)
            sums = {file: checksums.of_file(scratch / file) for file in kept.values()}
            record = {"checkpoints": kept, "sha256": sums}
            write_whole(scratch / RECORD, json.dumps(record | {"digest": _digest(record)}, indent=1).encode())
            remove(self.folder)
            put_in_place(scratch, self.folder)
        finally:
            remove(scratch)
        self._checkpoints = kept
        self._release()

    def _fill(self, scratch: Path, trainer: Any) -> dict[str, str]:
        """Copy every checkpoint once, and return the copies by the choices that select them."""
        whole = scratch / "whole.ckpt"
        trainer.save_checkpoint(whole)
        _copy(whole, scratch / LIVE, trainer)
        whole.unlink()
        kept, copies = {"live": LIVE}, dict[str, str]()
        for callback in model_checkpoints(trainer):
            best, last = callback.best_model_path, callback.last_model_path
            for choice, file in (("best", best or last), (f"best:{callback.monitor}", best), ("last", last or best)):
                if not file or choice in kept:
                    continue
                if file not in copies:
                    copies[file] = f"{len(copies)}/{Path(file).name}"
                    (scratch / copies[file]).parent.mkdir()
                    _copy(Path(file), scratch / copies[file], trainer)
                kept[choice] = copies[file]
        return kept

    def checkpoint(self, choice: str) -> Path:
        """Return the file that a callback's ``checkpoint`` option means; the last weights where there is none.

        Raises:
            ValueError: it is damaged; see :meth:`usable`.
        """
        kept = self._checkpoints = self._checkpoints or self._checked()
        return self.folder / kept.get(choice, kept["live"])

    def _checked(self) -> dict[str, str]:
        with naming(RECORD):
            record = read_json(inside(self.folder, RECORD))
            kept, sums = (record.get(part) if isinstance(record, dict) else None for part in ("checkpoints", "sha256"))
            if not isinstance(kept, dict) or not isinstance(sums, dict) or not kept.get("live"):
                raise ValueError("does not say which checkpoints it holds")
            if not all(isinstance(file, str) and isinstance(sums.get(file), str) for file in kept.values()):
                raise ValueError("lacks the sha256 of a checkpoint")
            if record.get("digest") != _digest({"checkpoints": kept, "sha256": sums}):
                raise ValueError("was changed after it was stored: its digest differs")
        for file in dict.fromkeys(kept.values()):
            with naming(repr(file)):
                if checksums.of_file(inside(self.folder, file)) != sums[file]:
                    raise ValueError("was changed after it was stored: its sha256 differs")
        return kept

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            note(f"waiting for {self._who()}, which trains the fit {self.folder}; fit.reuse=false does not wait …")
            self._lock.acquire()

    def _release(self) -> None:
        if self._lock.is_locked:
            with suppress(OSError):
                self._holder.unlink()
            self._lock.release(force=True)

    def _who(self) -> str:
        try:
            told = read_json(self._holder, _HOLDER_LIMIT)
            return f"process {int(told['pid'])} on {told['host']!r} (run folder {told['run']!r})"
        except (OSError, ValueError, TypeError, KeyError):  # it has not written this yet
            return "another job"

    def _sweep(self) -> None:
        """Remove what killed runs left half-written: only the holder of the lock writes here."""
        for scratch in self.folder.parent.iterdir():
            name = re.fullmatch(r"(.+)\.\d+", scratch.name) if scratch.is_dir() else None
            if name and name[1] == self.folder.name:
                remove(scratch)
            elif name and (self.folder.parent / f"{name[1]}.lock").exists():
                try:
                    with FileLock(self.folder.parent / f"{name[1]}.lock").acquire(timeout=0):
                        remove(scratch)
                except Timeout:  # that fit is just being written
                    continue


def _copy(source: Path, file: Path, trainer: Any) -> None:
    """Copy the plain values of a checkpoint that quantization needs."""
    found = content(source)
    states, wanted = found.get("callbacks"), {callback.state_key for callback in quantizing(trainer)}
    kept = {key: value for key, value in found.items() if key not in _OF_TRAINING}
    own = {key: state for key, state in states.items() if key in wanted} if isinstance(states, dict) else {}
    plain, plain_own = ({key: v for key, v in part.items() if not foreign_in(v)} for part in (kept, own))
    write(plain | {"callbacks": plain_own}, file)


def _digest(record: Mapping[str, Any]) -> str:
    return checksums.of_json(record)[:16]
