"""All cases of damage, and the specimens that they need; a further kind of file adds its own module here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from damage import artifacts, caches, manifests
from damage.harness import Case

Step = Callable[[Path], object]


def from_nothing(kind: str, cases: Iterable[tuple[str, Step, Step]]) -> list[Case]:
    """Take up cases that make all of their folder themselves: name, what makes it, and what reads it."""
    return [Case(f"{kind} {name}", None, lambda folder, _, make=make: make(folder), read) for name, make, read in cases]


CASES: list[Case] = [
    *artifacts.cases(),
    *from_nothing("kept fits:", caches.cases()),
    *from_nothing("runs:", manifests.cases()),
]


def specimens(folder: Path) -> None:
    """Make every good specimen in a folder of its own."""
    artifacts.specimens(folder)
