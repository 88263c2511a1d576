"""Between batches, large blocks of memory stay with the process; afterwards they do not."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from lq_plugin.evaluation import memory

PAGES = 40 * (1 << 20) // os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


def faults() -> int:
    """Pages that the system has to provide for a block of 40 MiB after a larger one was freed.

    Aligned blocks of one size may not fit where another was, once small ones lie behind it (glibc 2.36).
    """
    import resource

    before = 0
    for mebibytes in (44, 40):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(mebibytes * (1 << 18))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(memory._glibc() is None, reason="not glibc, or tuned by the user")
def test_large_blocks_are_kept_inside_and_given_back_outside() -> None:
    with memory.kept():
        inside = faults()
    assert inside < PAGES / 10 < faults()


@pytest.mark.skipif(memory._glibc() is None, reason="not glibc, or tuned by the user")
def test_blocks_are_kept_until_the_last_of_several_ends() -> None:
    with memory.kept():
        with memory.kept():
            pass
        inside = faults()
    assert inside < PAGES / 10 < faults()


def test_a_malloc_that_the_user_has_tuned_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert memory._glibc() is None


@pytest.mark.skipif(sys.platform != "linux", reason="nothing to restore")
def test_an_error_passes_and_memory_is_given_back() -> None:
    with pytest.raises(KeyError), memory.kept():
        raise KeyError
    assert memory._glibc() is None or faults() > PAGES / 10
