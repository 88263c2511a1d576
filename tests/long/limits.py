"""A disk, memory or descriptors that end anywhere after training: named outcomes, and nothing is left behind.

``make test-long`` runs this.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import commands
import pytest

import lq_plugin

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


def check(folder: Path, named: tuple[str, ...], stderr: str) -> list[str]:
    """The outcome of each artifact: all that is on disk is listed and whole, or it is said that nothing can be."""
    place = folder / "quantized" / "manifest.json"
    files = {path for path in folder.rglob("*") if path.is_file() and path.name != "filling"}
    if not place.exists():
        assert any(name in stderr for name in named), stderr
        return ["none"]
    entries = json.loads(place.read_text())["artifacts"]
    made = [entry for entry in entries if entry["path"] is not None]
    assert files == {
        place,
        *(place.parent / entry["path"] / name for entry in made for name in (*entry["sha256"], "artifact.json")),
    }
    for entry in made:
        if entry["format"] == "pt2":
            assert lq_plugin.load(place.parent / entry["path"])
    for entry in entries:
        told = entry["status"] not in ("failed", "not_evaluated") or any(name in entry["error"] for name in named)
        assert told, entry["error"]
    return [entry["status"] for entry in entries]


@pytest.mark.parametrize(("what", "room"), [(what, room) for what, rooms in ROOMS.items() for room in rooms])
def test_whatever_ends_is_named(what: str, room: int, tmp_path: Path) -> None:
    done = commands.run("limited.py", what, str(room), str(tmp_path), cwd=Path(__file__).parents[1])
    if what == "memory" and done.returncode in CRASHED:
        print(f"\n{what} {room}: torch's own code crashed ({done.returncode})")
        again = commands.run("limited.py", "nothing", "0", str(tmp_path), cwd=Path(__file__).parents[1])
        assert again.returncode == 0, again.stderr
        shutil.rmtree(tmp_path / ".lq_plugin", ignore_errors=True)  # with little memory it may have taken another way
        assert check(tmp_path, (), again.stderr)
        return
    assert done.returncode == 0, done.stderr
    print(f"\n{what} {room}: {check(tmp_path, NAMED, done.stderr)}")


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
    print(f"\ndisk {room}: {check(small_disk, (DISK_FULL,), done.stderr)}")
    with suppress(FileNotFoundError):
        os.unlink(small_disk / "filling")
    again = commands.run("limited.py", "nothing", "0", str(small_disk), cwd=Path(__file__).parents[1])
    assert again.returncode == 0, again.stderr
    shutil.rmtree(small_disk / "quantized")
