"""A candidate's name can be a folder on any system that its artifacts are copied to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lq_plugin
from lq_plugin.errors import ConfigError
from lq_plugin.names import check_distinct, check_name


@pytest.mark.parametrize(
    "name",
    [
        "static",
        "a" * 64,
        "résumé",
        "名前",
        "a.b",
        "console",
        "com10",
        "com",
        "auxiliary",
        "a b",
        "manifest",
        "leaderboard",
        "é" * 64,
    ],
)
def test_ordinary_names_are_taken(name: str, tmp_path: Path) -> None:
    assert check_name(name) == name
    (tmp_path / name).mkdir()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "it is empty"),
        *((f"a{character}b", "it contains") for character in '<>:"/\\|?*'),
        *((f"a{character}b", "unprintable") for character in "\0\n\r\t\x1b\x7f\x9b\u202e\u200b\u00a0\ud800\udcff"),
        *((name, "starts or ends with a dot or a space") for name in (".", "..", ".a", "a.", " a", "a ", "...", "a. ")),
        *(
            (name, "Windows reserves it")
            for name in ("CON", "con", "con.txt", "Nul", "AUX", "prn.a.b", "COM1", "lpt9.x")
        ),
        *((name, "Windows reserves it") for name in ("com¹", "LPT³", "CONIN$", "conout$", "con .txt")),
        *((name, "writes a file of this name") for name in ("manifest.json", "Manifest.JSON", "report.html")),
        *((name, "writes a file of this name") for name in ("leaderboard.csv", "LEADERBOARD.html", "failure.json")),
        ("a" * 65, "it has 65 characters"),
        ("a" * 256, "it has 256 characters"),
        ("名" * 60, "it takes more than 128 bytes"),
        (None, "it is of type NoneType, not a string"),
        (5, "it is of type int, not a string"),
        (True, "it is of type bool, not a string"),
        (b"static", "it is of type bytes, not a string"),
        (["static"], "it is of type list, not a string"),
    ],
)
def test_a_name_that_is_no_folder_everywhere_is_refused(name: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        check_name(name)
    message = str(refused.value)
    assert message.startswith("name: ")
    assert "cannot name a folder: " in message
    assert "Allowed: 1 to 64 printable characters" in message
    assert message.isprintable()
    assert len(message) < 500


@pytest.mark.parametrize(
    "names", [("Q", "q"), ("é", "e\u0301"), ("STRASSE", "straße"), ("É", "e\u0301"), ("a", "b", "A")]
)
def test_names_that_are_one_folder_on_some_disk_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(
        ConfigError, match=r"^name: .* and .*, the same folder on some disks, are used by several callbacks"
    ):
        check_distinct(names)


def test_equal_names_are_refused_and_others_are_not() -> None:
    with pytest.raises(ConfigError, match=r"^name: 'a' is used by several callbacks\. Give each its own"):
        check_distinct(["a", "b", "a"])
    check_distinct(["static", "dynamic", "static_2", "e", "é"])


@pytest.mark.parametrize("name", ["CON", "a:b", "a" * 256, "manifest.json", 5])
def test_the_functional_twin_checks_names_before_anything_else(name: Any) -> None:
    with pytest.raises(ConfigError, match="cannot name a folder"):
        lq_plugin.quantize(nn.Linear(4, 2), [torch.randn(8, 4)], name=name)
