"""The folder that a run writes its artifacts and manifest to: one run at a time, and nothing stale in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from lq_plugin.errors import MissingExtraError
from lq_plugin.progress import note
from lq_plugin.report import manifest, run_page
from lq_plugin.report.manifest import Entry, Manifest
from lq_plugin.steps import attempt, say


def remove_manifest(folder: Path) -> Sequence[Entry]:
    """Remove the manifest and the page of an earlier run, so that they never describe this run's artifacts.

    Not even if this run is killed.

    Returns:
        The artifacts that it lists.
    """
    place = folder / manifest.FILE
    earlier: Sequence[Entry] = ()
    with suppress(OSError, ValueError):  # there is none, or none that can be read
        earlier = manifest.read(place).artifacts
    for old in (place, folder / run_page.FILE):
        if os.path.lexists(old):
            attempt(f"{str(old)!r} of an earlier run cannot be removed", partial(old.unlink, missing_ok=True))
    return earlier


def say_unlisted(folder: Path, earlier: Sequence[Entry], entries: Sequence[Entry]) -> None:
    """Name what an earlier run left in this folder. It may be all that is left of a training, so it is not removed."""
    labels = {entry.label for entry in entries}
    left = [one.label for one in earlier if one.path and one.label not in labels and (folder / one.path).is_dir()]
    if left:
        note(f"{', '.join(left)} of an earlier run are still in {folder}; the manifest of this run does not list them")


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Make other runs that write to this folder wait, so that their artifacts and ours do not mix."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    with suppress(OSError):  # where the disk is full or has no locks, the steps report it
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            note(f"waiting for another run that writes to {folder} …")
            lock.acquire()
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # a run that is waiting for this file looks for a new one
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def write_page(folder: Path, content: Manifest) -> None:
    """Write the page of a run beside its manifest; why there is none is said in one line."""
    try:
        run_page.write(folder, content)
    except (MissingExtraError, OSError) as error:
        note(f"no {run_page.FILE}: {error}")
    except Exception as error:  # as in every other step after a training: a page must not cost what it describes
        say(f"no {run_page.FILE}", error)
