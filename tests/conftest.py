"""What every test file shares: the folder of ``tiny`` is importable, and what never changes is looked at once."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnxscript._framework_apis import torch_2_11 as onnxscript_apis

sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of garbage collections, which took a seventh of an export."""
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(scope="session", autouse=True)
def sources_of_onnxscript_are_read_once() -> Iterator[None]:
    """``torch.onnx.export`` parses the 500 functions that it may use anew each time: half of the export of a layer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxscript_apis, "get_torchlib_ops", functools.cache(onnxscript_apis.get_torchlib_ops))
        yield
