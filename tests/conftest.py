"""What every test file shares: the folder of ``tiny`` is importable, and garbage collections are cheap."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of garbage collections, which took a seventh of an export."""
    gc.freeze()
    gc.set_threshold(10_000)
