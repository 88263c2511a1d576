"""sha256 as hexadecimal text: of files and of what JSON can hold.

They detect damage and identify content. They prove nothing about who wrote it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast


def of_file(file: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with file.open("rb") as stream:
        return of_stream(stream)


def of_stream(stream: BinaryIO) -> str:
    """Return the sha256 of an open file's bytes."""
    return hashlib.file_digest(cast(Any, stream), "sha256").hexdigest()  # its type asks for more than is used


def of_json(content: Any, default: Callable[[Any], Any] | None = None) -> str:
    """Return the sha256 of builtins, whatever the order of the keys.

    Args:
        content: what JSON can hold.
        default: converts anything else, as in ``json.dumps``.

    Example:
        >>> of_json({"a": 1, "b": 2}) == of_json({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=default).encode()).hexdigest()


def is_sha256(value: Any) -> bool:
    """Return whether an untrusted value has the form of a sha256.

    Example:
        >>> is_sha256(of_json(None)), is_sha256("abc"), is_sha256(None)
        (True, False, False)
    """
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
