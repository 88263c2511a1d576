"""What can happen to a file, whatever is in it; everything random comes from a given generator."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

from damage.tampering import places

WRONG: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    255,
    2**31,
    2**63,
    10**30,
    -(10**300),
    1e308,
    0.5,
    "",
    "0",
    "../../etc/passwd",
    "/dev/zero",
    "C:\\windows",
    "a\0b",
    "\ud800",
    "x" * 5000,
    "[red]\x1b[31m",
    "__import__('os').abort()",
    "9**9**9**9",
    [],
    {},
    [None],
    [[]],
    {"": None},
    {"tensor": 0},
    {"__class__": "x"},
)


def flipped(file: Path, random: Random) -> None:
    """Flip a bit, or some."""
    content = bytearray(file.read_bytes())
    for _ in range(random.choice((1, 1, 2, 8, 64))):
        if content:
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    file.write_bytes(content)


def cut(file: Path, random: Random) -> None:
    """Lose the end, the beginning or a part, or gain one."""
    content = file.read_bytes()
    start, end = sorted(random.randrange(len(content) + 1) for _ in range(2))
    part = content[start:end]
    kinds = (
        content[:start],
        content[start:],
        content[:start] + content[end:],
        content[:end] + part + content[end:],
        content + random.randbytes(random.choice((1, 100, 5000))),
        content[:start] + random.choice((b"\0", b"\xff", b"\x7f")) * len(part) + content[end:],
        content[:start] + random.randbytes(len(part)) + content[end:],
        b"",
    )
    file.write_bytes(random.choice(kinds))


def bent(content: Any, random: Random) -> Any:
    """Change something in nested JSON: a value to one of another type or size, a key, the order, the depth."""
    found = list(places(content))
    for _ in range(random.choice((1, 1, 1, 3))):
        holder, key = random.choice(found)
        if (isinstance(holder, dict) and key not in holder) or (isinstance(holder, list) and key >= len(holder)):
            continue
        action = random.randrange(8)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[random.choice(("", "planted", "as_operator", "name", "../x"))] = holder.pop(key)
        elif action == 2:
            holder[key] = _deep(holder[key], random.choice((3, 60, 250)))
        elif action == 3 and isinstance(holder[key], list):
            holder[key] = holder[key] * random.choice((2, 50))
        elif action == 4:
            other, place = random.choice(found)
            if not isinstance(other, dict) or place in other:
                holder[key] = _copied(other, place)
        else:
            holder[key] = random.choice(WRONG)
    return content


def _copied(holder: Any, key: Any) -> Any:
    """Another value of the same file, in the place of this one; only what cannot hold itself."""
    value = holder[key] if isinstance(holder, dict) or key < len(holder) else None
    return value if not isinstance(value, dict | list) else str(value)[:200]


def _deep(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value]
    return value


SPECIAL = ("pipe", "folder", "nothing", "/dev/zero", "/etc/passwd", "missing", "itself", "its copy elsewhere")


def special(file: Path, kind: str) -> None:
    """Put something in a file's place that is no file, or a link that leads elsewhere."""
    if kind == "its copy elsewhere":
        shutil.copy(file, file.parent.parent / "elsewhere")
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind != "nothing":
        file.symlink_to({"itself": file, "its copy elsewhere": file.parent.parent / "elsewhere"}.get(kind, kind))


def removed(folder: Path, random: Random) -> None:
    """Lose or exchange whole files."""
    files = sorted(folder.iterdir())
    first, other = random.choice(files), random.choice(files)
    if random.random() < 0.5:
        first.unlink()
    else:
        shutil.copy(other, folder / "kept")
        shutil.move(folder / "kept", first)
