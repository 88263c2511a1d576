"""Names and tables in Markdown, in which nothing of a user's is markup, however it is rendered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lq_plugin.printing import line

_SIDES = {"left": "---", "right": "---:"}
_MARKUP = str.maketrans({character: f"&#{ord(character)};" for character in "\\`*_[]<>|~&$:@!"})


def text(value: Any) -> str:
    """Return a value as text, with what could be markup as character references, which never are.

    Example:
        >>> print(text("val_acc"), text("a|b"))
        val&#95;acc a&#124;b
    """
    return line(value).translate(_MARKUP)


def code(value: Any) -> str:
    """Return a value as a code span, which no backtick of its own ends.

    Example:
        >>> print(code("val/acc"), code("a`b"))
        `val/acc` `` a`b ``
    """
    shown = line(value)
    fence = "`"
    while fence in shown:
        fence += "`"
    pad = " " if len(fence) > 1 else ""
    return f"{fence}{pad}{shown or ' '}{pad}{fence}"


def table(columns: Mapping[str, str], rows: Iterable[Iterable[Any]], cell: Callable[[Any], str] = text) -> str:
    """Return a table.

    Args:
        columns: ``"left"`` or ``"right"`` by the column's name.
        rows: the cells, in any type.
        cell: writes one.

    Example:
        >>> print(table({"metric": "left", "INT8": "right"}, [("a|b", 0.5)], code))
        | metric | INT8 |
        | --- | ---: |
        | a&#124;b | `0.5` |
    """

    def written(value: Any) -> str:
        if "|" in str(value):  # renderers differ in how a code span in a table holds one
            return text(value)
        return cell(value) if str(value) else ""

    lines = [map(text, columns), [_SIDES[side] for side in columns.values()], *(map(written, row) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
