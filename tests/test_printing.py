"""What is printed is text, and printing never fails."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from lq_plugin.printing import LONGEST, add_row, line, plain, show_lines, terminal
from lq_plugin.progress import note

NAMES = ["val/iou[/car]", "[red]", "[bold]x[/bold]", ":car:", "[link=http://a]b[/link]", "a  b", "née 名前", "\\x1b"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b2J", r"\x9b2J"),  # the same in one character
        ("a\rb\nc\td\0", r"a\rb\nc\td\x00"),
        ("\x7f\x08", r"\x7f\x08"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u2066\u200b\ufeff\u2028", r"\u2066\u200b\ufeff\u2028"),
        ("\ud800 \udcff", r"\ud800 \udcff"),
        ("\U000e0041", r"\U000e0041"),
        *((name, name) for name in NAMES),
    ],
)
def test_what_cannot_be_printed_is_written_as_an_escape(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert plain(shown) == shown


def test_a_message_is_one_line_of_a_bounded_length() -> None:
    assert line(" a:\r\n   b\tc\x1b  d ") == "a: b c\\x1b  d"
    assert line("x" * (LONGEST + 5)) == "x" * LONGEST + " … (5 more characters)"


def test_a_megabyte_of_blanks_is_searched_once() -> None:
    assert (
        line("x" + " " * 10_000_000 + "x") == "x" + " " * (LONGEST - 1) + f" … ({10_000_002 - LONGEST} more characters)"
    )


@pytest.mark.parametrize("name", NAMES)
def test_rich_changes_no_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    note(name)
    assert capsys.readouterr().out == f"lq_plugin: {name}\n"
    table = Table(box=None, show_header=False, pad_edge=False)
    add_row(table, name)
    written = io.StringIO()
    Console(file=written).print(table)
    assert written.getvalue().rstrip() == name


def test_escapes_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    note("a\x1b]0;title\x07b\u202ec\nlq_plugin: forged")
    assert capsys.readouterr().out == "lq_plugin: a\\x1b]0;title\\x07b\\u202ec lq_plugin: forged\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_what_the_terminals_encoding_lacks_is_written_as_an_escape(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    show_lines(terminal(), "★ 1")
    assert raw.getvalue().decode(encoding).rstrip() == r"\u2605 1"


def test_a_reader_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    note("the work goes on")
    monkeypatch.undo()
    with pytest.raises(BrokenPipeError):  # so it was written to
        stream.close()


def test_a_closed_output_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "output").open("w") as stream:
        pass
    monkeypatch.setattr(sys, "stdout", stream)
    note("the work goes on")
