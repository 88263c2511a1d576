"""Ctrl+C after training: what was made and what was not is said, and no manifest is left that is not true."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lq_plugin import checksums
from lq_plugin.report import manifest
from lq_plugin.report.manifest import Entry

NOTHING_MADE = (
    "interrupted before anything was made: there is no candidate and no artifact. A Trainer goes on from its last "
    "checkpoint with fit(ckpt_path='last'); lq-quantize makes artifacts of any checkpoint"
)


@contextmanager
def accounted(folder: Path, wanted: Sequence[str], made: Mapping[str, Entry]) -> Iterator[None]:
    """Add to a ``KeyboardInterrupt`` what was made and what was not; see :func:`account`.

    Args:
        folder: of the manifest and the artifacts.
        wanted: labels of the artifacts that were asked for.
        made: what is known of them when the interrupt comes, by label.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        _remove_unless_true(folder / manifest.FILE)
        error.add_note(_account(folder, wanted, made))
        raise


def account(error: BaseException) -> str:
    """Return what an interrupt that passed :func:`accounted` says, or that nothing was made."""
    return "\n".join(getattr(error, "__notes__", [NOTHING_MADE]))


def _account(folder: Path, wanted: Sequence[str], made: Mapping[str, Entry]) -> str:
    done = [f"{label} ({made[label].status.replace('_', ' ')})" for label in wanted if label in made]
    left = [label for label in wanted if label not in made]
    listed = "are listed in" if (folder / manifest.FILE).is_file() else "are not all made, so there is no"
    parts = [
        "interrupted after training",
        f"made: {', '.join(done) or 'nothing'}",
        *([f"not made: {', '.join(left)}"] if left else []),
        f"artifacts {listed} {folder / manifest.FILE}",
        "run again to go on: what was finished is not done again",
    ]
    return "; ".join(parts)


def _remove_unless_true(place: Path) -> None:
    """Remove a manifest if any artifact that it lists is not there as it says."""
    try:
        entries = manifest.read(place).artifacts
        true = all(
            checksums.of_file(place.parent / entry.path / name) == digest
            for entry in entries
            if entry.path is not None
            for name, digest in entry.sha256.items()
        )
    except (OSError, ValueError):  # there is none, or a file is missing
        true = False
    if not true:
        place.unlink(missing_ok=True)
