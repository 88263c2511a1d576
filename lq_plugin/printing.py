"""Printing plain text: no name or message can move the cursor, change colours or end a run.

Names of metrics, candidates, runs and options come from users and from files of others. Rich takes ``[red]`` in them
for markup and ``:car:`` for an emoji, and a terminal obeys their control characters.
"""

from __future__ import annotations

import math
import re
import sys
from contextlib import suppress
from typing import IO, Any, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

MISSING = "–"
LONGEST = 4000  # characters of one line: a message may be megabytes long, and it is whole in the manifest
_SPACE = re.compile(r"\s+")


def plain(text: Any, keep: str = "") -> str:
    r"""Return text whose unprintable characters are written as escapes, as ``repr`` writes them.

    Unprintable are control characters, those that change the direction of writing, and stand-ins for bytes that are not
    UTF-8, which cannot be written to a file.

    Args:
        text: anything; its ``str`` counts.
        keep: unprintable characters to leave alone.

    Example:
        >>> print(plain("val/\x1b[2Jacc"), plain("caf\udce9"), plain("née"))
        val/\x1b[2Jacc caf\udce9 née
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in str(text))


def line(text: Any) -> str:
    r"""Return text as one printable line of a bounded length; line breaks become spaces.

    Example:
        >>> line("it failed:\n  no\x07 reason")
        'it failed: no\\x07 reason'
    """
    whole = str(text).strip()
    left_out = len(whole) - LONGEST
    shown = plain(_SPACE.sub(lambda space: space[0] if set(space[0]) == {" "} else " ", whole[:LONGEST]))
    return shown if left_out <= 0 else f"{shown} … ({left_out} more characters)"


def brief(text: Any) -> str:
    r"""Return the first line of a text, with a mark where there are more.

    Example:
        >>> brief("it cannot be captured:\n  if x.sum() > 0:")
        'it cannot be captured: …'
    """
    first, _, more = str(text).strip().partition("\n")
    return f"{first.rstrip()} …" if more else first


def terminal() -> Console:
    """Return a console on the standard output that never fails."""
    return Console(file=cast("IO[str]", _Lenient(getattr(sys.stdout, "rich_proxied_file", sys.stdout))))


def show_lines(console: Console, *lines: Any) -> None:
    """Print lines as they are, each on one line however narrow the terminal is."""
    for text in lines:
        console.print(Text(line(text)), highlight=False, soft_wrap=True)


def add_row(table: Table, *cells: Any) -> None:
    """Add a row whose cells are shown as they are."""
    table.add_row(*(Text(plain(cell)) for cell in cells))


def counted(number: int, noun: str) -> str:
    """Return a number of things, in the singular or the plural.

    Example:
        >>> counted(1, "trial"), counted(0, "trial")
        ('1 trial', '0 trials')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def figure(value: float | None, form: str = ".4f", scale: float = 1.0, unit: str = "") -> str:
    """Return a number as text; what is missing or no number as a dash, and infinity as it is.

    Args:
        value: the number.
        form: as ``format`` takes it.
        scale: what it is multiplied by.
        unit: what stands behind it.

    Example:
        >>> figure(0.125, ".1f", 100, " %"), figure(float("nan")), figure(float("inf"))
        ('12.5 %', '–', 'inf')
    """
    if value is None or math.isnan(value):
        return MISSING
    return str(value) if math.isinf(value) else f"{value * scale:{form}}{unit}"


class _Lenient:
    """A stream that writes what its encoding lacks as escapes, and drops output that has lost its reader.

    A finished training must not end in an error because its output is piped into ``head``, or because the terminal's
    encoding has no star.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with suppress(Exception):  # it is closed, its reader is gone, or it is an object of the user's
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with suppress(Exception):
            self._stream.flush()
