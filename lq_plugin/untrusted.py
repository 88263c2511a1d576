"""Reading files that come from outside: regular files, of a bounded size, inside the folder they belong to.

A refusal is a ``ValueError`` that says in half a sentence what is wrong with the file, such as ``"is not a regular
file"``. The caller turns it into its own named error, which says whose file it is and what to do.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

MEBIBYTE = 1 << 20
# A description of a thousand operators takes a quarter of a megabyte. Parsed JSON may take twenty times its bytes.
JSON_LIMIT = 16 * MEBIBYTE


def regular_file(path: Path) -> Path:
    """Return a path that leads to a regular file and not through a link, which could lead out of its folder.

    A pipe would block its reader for good, and a device such as ``/dev/zero`` never ends.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is a link, a folder, a pipe or a device.
    """
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        raise ValueError("is a link; put the file itself in its place")
    if not stat.S_ISREG(mode):
        raise ValueError("is not a regular file")
    return path


@contextmanager
def naming(piece: str) -> Iterator[None]:
    """Say which piece is missing, cannot be read or is refused.

    Raises:
        ValueError: in place of an ``OSError``, or of a ``ValueError`` that says what is wrong but not with which piece.
    """
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{piece} is missing") from None
    except OSError as error:
        raise ValueError(f"{piece} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{piece} {error}") from error


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading; see :func:`regular_file`."""
    with open(regular_file(path), "rb", opener=_without_waiting) as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):  # replaced since it was looked at
            raise ValueError("is not a regular file")
        yield stream


def read_bytes(path: Path, limit: int) -> bytes:
    """Return what a regular file holds.

    Args:
        path: the file.
        limit: the largest size that is read, in bytes.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is not a regular file, or it is larger than the limit.
    """
    with opened(path) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"is larger than {limit / MEBIBYTE:g} MiB, the largest size that is read")
    return content


def read_json(path: Path, limit: int = JSON_LIMIT) -> Any:
    """Return the value that a JSON file holds; see :func:`read_bytes` and :func:`parse_json`."""
    return parse_json(read_bytes(path, limit))


def parse_json(content: bytes) -> Any:
    """Return the value that UTF-8 encoded JSON holds.

    Raises:
        ValueError: it is not standard JSON, which has no NaN and no Infinity, a number in it is too large, or it is
            nested too deeply.
    """
    try:
        return json.loads(content, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not valid JSON ({error})") from None


def _finite(digits: str) -> float:
    """Refuse ``1e999``, which Python takes for infinity and so could not write again."""
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is too large a number")
    return number


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _without_waiting(path: str, flags: int) -> int:
    """Open a file but not a link, without waiting for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
