"""Only regular files of a bounded size are read, and only JSON by the standard."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lq_plugin.untrusted import naming, parse_json, read_bytes, read_json


def test_json_is_read(tmp_path: Path) -> None:
    file = tmp_path / "good.json"
    file.write_text('{"a": [1, null, "é"]}', encoding="utf-8")
    assert read_json(file) == {"a": [1, None, "é"]}


def test_a_file_may_be_as_large_as_the_limit_and_no_larger(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 8)
    assert read_bytes(file, limit=8) == b"x" * 8
    with pytest.raises(ValueError, match="is larger than"):
        read_bytes(file, limit=7)


@pytest.mark.parametrize("kind", ["pipe", "link", "device", "folder"])
def test_only_regular_files_are_opened(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        (tmp_path / "elsewhere").write_text("{}")
        file.symlink_to("/dev/zero" if kind == "device" else "elsewhere")
    with pytest.raises(ValueError, match=r"is not a regular file|is a link"):
        read_json(file)


def test_a_missing_file_stays_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[NaN]", b"[-Infinity]", b"[1e5", b"[-1e999]", b"\xff\xfe\x00", b"[" * 100_000, b"1" * 10_000],
    ids=["empty", "cut", "nan", "infinity", "cut-number", "overflow", "encoding", "deep", "huge-number"],
)
def test_what_is_no_json_by_the_standard_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"is not valid JSON|is nested too deeply"):
        parse_json(content)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file"), "'a' is missing"),
        (PermissionError(13, "Permission denied"), "'a' cannot be read (Permission denied)"),
        (ValueError("is a link"), "'a' is a link"),
    ],
    ids=str,
)
def test_an_error_names_the_piece(error: Exception, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"), naming("'a'"):
        raise error
