"""Names of candidates, each of which names a folder on any machine the artifacts are copied to."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from lq_plugin.errors import ConfigError

LONGEST = 64
LONGEST_BYTES = 128  # in UTF-8; file systems take 255, encrypted ones 143, and a scratch folder's name is longer
ALLOWED = (
    f'1 to {LONGEST} printable characters other than <>:"/\\|?*, without a dot or a space at the start or the end, '
    "and not a name that an operating system reserves (such as CON) or lq_plugin uses (such as manifest.json). "
    "Write for example 'static_minmax'."
)
_FORBIDDEN = set('<>:"/\\|?*')  # in names of files on Windows
_DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³]|con(in|out)\$|clock\$) *(\..*)?", re.IGNORECASE | re.DOTALL)
# What the folder of a run's artifacts and the folders above hold besides candidates.
_OURS = re.compile(r"(manifest|failure|artifact)\.json|report\.html|leaderboard\..*", re.IGNORECASE | re.DOTALL)


def check_name(name: Any) -> str:
    """Check that a candidate's name can name its folder, on every system, and return it.

    Raises:
        ConfigError: it cannot.
    """
    reason = _obstacle(name)
    if reason is not None:
        given = name if not isinstance(name, str) or len(name) <= LONGEST else f"{name[:LONGEST]}…"
        raise ConfigError(f"name: {given!r} cannot name a folder: {reason}. Allowed: {ALLOWED}")
    return str(name)


def check_distinct(names: Iterable[str]) -> None:
    """Check that no two names mean the same folder, even on disks that ignore case.

    Raises:
        ConfigError: two of them do.
    """
    seen: dict[str, str] = {}
    for name in names:
        first = seen.get(_folded(name))
        if first is not None:
            both = f"{name!r} is" if first == name else f"{first!r} and {name!r}, the same folder on some disks, are"
            raise ConfigError(f"name: {both} used by several callbacks. Give each its own, such as name='b'.")
        seen[_folded(name)] = name


def _obstacle(name: Any) -> str | None:
    """Return why a name cannot name a folder."""
    if not isinstance(name, str):
        return f"it is of type {type(name).__name__}, not a string"
    forbidden = sorted(_FORBIDDEN.intersection(name))
    folded = _folded(name)
    obstacles = {
        "it is empty": not name,
        f"it has {len(name)} characters": len(name) > LONGEST,
        f"it contains {' '.join(forbidden)}": bool(forbidden),
        "it contains unprintable characters": not name.isprintable(),
        "it starts or ends with a dot or a space": name != name.strip(". "),
        "Windows reserves it for a device": _DEVICES.fullmatch(folded) is not None,
        "lq_plugin writes a file of this name": _OURS.fullmatch(folded) is not None,
        f"it takes more than {LONGEST_BYTES} bytes": len(name.encode("utf-8", "replace")) > LONGEST_BYTES,
    }
    return next((reason for reason, found in obstacles.items() if found), None)


def _folded(name: str) -> str:
    """Return what is equal for names that some file system takes for one, ignoring case and the form of accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())
