"""What every test file shares: the folder of ``tiny`` is importable, garbage collections are cheap, and
modules that a test writes are forgotten after it.

Random weights and data are the same in every run, and different in every test: each has a seed from its own name.
"""

from __future__ import annotations

import gc
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from importing import forget


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Seed what a file makes when it is imported."""
    torch.manual_seed(zlib.crc32(collector.nodeid.encode()))


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of garbage collections, which took a seventh of an export."""
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(scope="module", autouse=True)
def fixtures_of_a_file_are_seeded(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()) + 1)


@pytest.fixture(autouse=True)
def a_test_is_seeded(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def modules_of_a_test_are_forgotten(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield
    forget(tmp_path_factory.getbasetemp())
