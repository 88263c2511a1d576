"""Files and folders that are there whole or not at all, even if the machine stops.

A rename alone is not enough: after a power failure the new name may lead to a file whose content never reached the
disk. So content is on the disk before the rename, and the rename before anything is based on it.
"""

from __future__ import annotations

import glob
import os
import secrets
from contextlib import suppress
from pathlib import Path


def write_whole(file: Path, content: bytes | memoryview) -> Path:
    """Write a file in one step; what was there before stays if this fails.

    Args:
        file: its folder is made where there is none.
        content: all of it.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}.{secrets.token_hex(4)}")  # threads and machines may write at the same time
    try:
        with open(scratch, "xb") as stream:  # not through a link that may lie there
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(file)
    except BaseException:  # a full disk has no place for half a file either
        scratch.unlink(missing_ok=True)
        raise
    _sync_folder(file.parent)
    return file


def replace_file(file: Path, text: str) -> Path:
    """Write a file that no other process writes at the same time, in one step, and remove what killed ones have left.

    Args:
        file: see :func:`write_whole`.
        text: all of it.

    Raises:
        OSError: see :func:`write_whole`.
    """
    for left in file.parent.glob(f".{glob.escape(file.name)}.*"):
        left.unlink(missing_ok=True)
    return write_whole(file, text.encode())


def put_in_place(scratch: Path, folder: Path) -> None:
    """Rename a folder that was written completely, with all that is in it; there must be none of the new name.

    Raises:
        OSError: the disk is full, or broken.
    """
    for path in (*scratch.rglob("*"), scratch):
        if path.is_dir():
            _sync_folder(path)
        else:
            _sync(path, os.O_RDWR)
    scratch.rename(folder)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, on systems that can; elsewhere a rename may reach it later."""
    with suppress(OSError):
        _sync(folder, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
