"""Modules that tests write and import."""

from __future__ import annotations

import sys
from pathlib import Path


def forget(folder: Path) -> None:
    """Take the modules of a folder out of ``sys.modules``: another folder's may have the same names."""
    for name, module in [*sys.modules.items()]:
        if Path(getattr(module, "__dict__", {}).get("__file__") or "/").is_relative_to(folder):
            del sys.modules[name]
