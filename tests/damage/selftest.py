"""Cases whose names begin with what must become of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from damage.harness import Case
from lq_plugin.errors import ArtifactError


def reader(act: Callable[[], object]) -> Callable[[Path], object]:
    """Do something to a copy, and nothing to the good specimen, which is read first."""
    return lambda folder: act() if folder.name == "case" else None


def refuse() -> None:
    raise ArtifactError("path: refused.")


def refuse_at_length() -> None:
    raise ArtifactError("path: refused\nin two lines.")


ACTS: dict[str, Callable[[], object]] = {
    "read": lambda: None,
    "refused": refuse,
    "unnamed": lambda: ACTS["missing"],
    "unnamed lines": refuse_at_length,
    "unnamed exit": lambda: exit(0),
    "unnamed memory": lambda: bytearray(1 << 40),
    "crashed": os.abort,
    "hung": lambda: time.sleep(60),
    "read again": lambda: None,
}
CASES = [Case(name, "good", lambda folder, random: None, reader(act)) for name, act in ACTS.items()]
