"""Between batches, large blocks of memory stay with the process; afterwards they do not."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from lq_plugin.evaluation import memory

PAGES = 40 * (1 << 20) // os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


def faults() -> int:
    """The fewest pages that the system has to provide for a block of 40 MiB, of up to 16 in turn.

    Aligned blocks may not fit where others were, once small ones lie behind these (glibc 2.36): it takes some until the
    process holds enough.
    """
    import resource

    least = PAGES
    for _ in range(16):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(40 * (1 << 18))
        least = min(least, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        if least < PAGES / 10:
            break
    return least


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
