"""Tiny artifacts, made once for all tests that damage copies of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from damage.tampering import made

from lq_plugin.artifacts.base import FORMATS


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each format."""
    return made(tmp_path_factory.mktemp("artifacts"), *FORMATS)
