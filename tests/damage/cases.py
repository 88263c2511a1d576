"""All cases of damage, and the specimens that they need; a further kind of file adds its own module here."""

from __future__ import annotations

from pathlib import Path

from damage import artifacts
from damage.harness import Case

CASES: list[Case] = [*artifacts.cases()]


def specimens(folder: Path) -> None:
    """Make every good specimen in a folder of its own."""
    artifacts.specimens(folder)
