"""The page quotes what the package says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
QUOTED = re.compile(r"^`(.+)`\n:   ", re.MULTILINE)


def texts(file: Path) -> Iterator[str]:
    """Strings in a file, with … for what is filled in, and in one line."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        yield " ".join(re.sub(r"%[sr]", "…", text).split())


def test_every_quoted_message_is_in_the_code() -> None:
    said = "\n".join(text for file in (ROOT / "lq_plugin").rglob("*.py") for text in texts(file))
    quoted = QUOTED.findall(PAGE.read_text())
    assert len(quoted) == len(re.findall(r"^:   ", PAGE.read_text(), re.MULTILINE)) > 40
    assert [message for message in quoted if message.rstrip("…").rstrip() not in said] == []
