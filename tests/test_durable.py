"""What is renamed into its place is on the disk before, and its name right after."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lq_plugin.durable import put_in_place, write_whole


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Inodes as they are synchronized with the disk, and ``"rename"``."""
    seen: list[object] = []
    sync, rename, replace = os.fsync, Path.rename, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (seen.append(os.fstat(fd).st_ino), sync(fd))[1])
    monkeypatch.setattr(Path, "rename", lambda path, to: (seen.append("rename"), rename(path, to))[1])
    monkeypatch.setattr(Path, "replace", lambda path, to: (seen.append("rename"), replace(path, to))[1])
    return seen


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, events: list[object]) -> None:
    file = tmp_path / "new" / "file"
    write_whole(file, b"content")
    assert events == [file.stat().st_ino, "rename", file.parent.stat().st_ino]
    write_whole(file, b"other")
    assert file.read_bytes() == b"other"
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_is_on_the_disk_with_all_that_is_in_it(tmp_path: Path, events: list[object]) -> None:
    scratch, folder = tmp_path / "scratch", tmp_path / "folder"
    (scratch / "0").mkdir(parents=True)
    for name in ("one", "0/two"):
        (scratch / name).touch()
    put_in_place(scratch, folder)
    inside = {path.stat().st_ino for path in (folder, *folder.rglob("*"))}
    assert (set(events[:-2]), events[-2:]) == (inside, ["rename", tmp_path.stat().st_ino])


def test_what_cannot_be_written_leaves_nothing_and_what_was_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "file", b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "file", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"before"
