"""Whether the files of an artifact are still those that a run measured, by the sha256 in its manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lq_plugin import checksums
from lq_plugin.report.manifest import Entry
from lq_plugin.untrusted import naming, opened, regular_file

LARGEST = 1 << 32  # bytes that are read of one run; a manifest may name files of any size, and sparse ones cost nothing
MISSING = "missing"
CHANGED = "changed"
AS_MEASURED = "as measured"


def compared(root: Path, artifacts: Sequence[Entry]) -> Iterator[tuple[str | None, str | None]]:
    """Compare the files of every artifact of a run with what its manifest says of them.

    Args:
        root: folder that the manifest lies in.
        artifacts: its entries.

    Yields:
        ``"as measured"``, ``"changed"``, ``"missing"`` (the artifact's whole folder is) or ``None`` for an artifact
        that was not made or is not compared, and what is wrong.
    """
    left = LARGEST
    for entry in artifacts:
        if entry.path is None or not entry.sha256:
            yield None, None
            continue
        folder = root / entry.path
        if not os.path.lexists(folder):
            yield MISSING, None
            continue
        size = entry.size_bytes or 0
        if size > left:
            yield None, f"its files were not compared with those that were measured: they are larger than {left} bytes"
            continue
        left -= size
        wrong = _difference(root, folder, entry.sha256, size)
        yield (AS_MEASURED, None) if wrong is None else (CHANGED, f"it is not what was measured: {wrong}")


def _difference(root: Path, folder: Path, sums: Mapping[str, str], size: int) -> str | None:
    """Return what is wrong with an artifact's files; their sizes first, so that not more is read than was made."""
    places = dict.fromkeys(place for name in ("", *sums) for place in (folder / name).parents)
    links = [place for place in (folder, *places) if place.is_relative_to(root) and place.is_symlink()]
    if links:
        return f"{links[0].name} is a link; put the folder itself in its place"
    try:
        found = 0
        for name in sums:
            with naming(name):
                found += regular_file(folder / name).stat().st_size
        if found != size:
            return f"its files have {found} bytes instead of the measured {size}"
        for name, expected in sums.items():
            with naming(name), opened(folder / name) as stream:
                if checksums.of_stream(stream) != expected:
                    raise ValueError("has a different sha256")
    except ValueError as error:
        return str(error)
    return None
