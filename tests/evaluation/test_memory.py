"""Between batches, large blocks of memory stay with the process; afterwards they do not.

How many pages that saves depends on where small blocks lie in the heap: `python -m benchmarks.fit_end` measures it.
"""

from __future__ import annotations

import pytest
import torch

from lq_plugin.evaluation import memory


@pytest.mark.skipif(memory._glibc() is None, reason="not glibc, or tuned by the user")
def test_memory_is_kept_until_the_last_of_several_blocks_ends() -> None:
    with memory.kept():
        with memory.kept():
            assert memory._open_blocks == 2
        assert memory._open_blocks == 1
        assert torch.ones(40 * (1 << 18)).sum() == 40 * (1 << 18)
    with pytest.raises(KeyError), memory.kept():
        raise KeyError
    assert memory._open_blocks == 0


def test_a_malloc_that_the_user_has_tuned_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert memory._glibc() is None
    with memory.kept():
        assert memory._open_blocks == 0
