"""A disk, memory or descriptors that end anywhere after training: named outcomes, and nothing is left behind.

``make test-long`` runs this.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import commands
import pytest
from limited import outcomes

MEBIBYTE = 1 << 20
SIZE = 16  # MiB of the small disk
ROOMS = {
    "descriptors": range(13),
    "memory": [each * MEBIBYTE for each in (4, 8, 16, 24, 32, 48, 64, 96, 128)],
    "file_size": [1 << each for each in range(10, 22, 2)],
}
NAMED = ("Too many open files", "can't allocate memory", "Cannot allocate memory", "MemoryError", "File too large")
DISK_FULL = "No space left on device"
CRASHED = (-6, -11)  # torch's own code, where the system gives it no memory


@pytest.mark.parametrize(("what", "room"), [(what, room) for what, rooms in ROOMS.items() for room in rooms])
def test_whatever_ends_is_named(what: str, room: int, tmp_path: Path) -> None:
    done = commands.run("limited.py", what, str(room), str(tmp_path), cwd=Path(__file__).parents[1])
    if what == "memory" and done.returncode in CRASHED:
        print(f"\n{what} {room}: torch's own code crashed ({done.returncode})")
        again = commands.run("limited.py", "nothing", "0", str(tmp_path), cwd=Path(__file__).parents[1])
        assert again.returncode == 0, again.stderr
        shutil.rmtree(tmp_path / ".lq_plugin", ignore_errors=True)  # with little memory it may have taken another way
        assert outcomes(tmp_path, (), again.stderr)
        return
    assert done.returncode == 0, done.stderr
    print(f"\n{what} {room}: {outcomes(tmp_path, NAMED, done.stderr)}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, where mounting is allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("room", [0, 1 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20])
def test_a_full_disk_is_named(room: int, small_disk: Path) -> None:
    done = commands.run("limited.py", "disk", str(room), str(small_disk), cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    print(f"\ndisk {room}: {outcomes(small_disk, (DISK_FULL,), done.stderr)}")
    with suppress(FileNotFoundError):
        os.unlink(small_disk / "filling")
    again = commands.run("limited.py", "nothing", "0", str(small_disk), cwd=Path(__file__).parents[1])
    assert again.returncode == 0, again.stderr
    shutil.rmtree(small_disk / "quantized")
