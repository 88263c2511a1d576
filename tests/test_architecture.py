"""Imports point one way, and only the outermost parts know Lightning and Hydra."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lq_plugin

PACKAGE = Path(lq_plugin.__file__).parent
# What may be imported by which part of the package alone.
RESERVED = {
    "lightning": ("callbacks/", "evaluation/loop.py", "apps/"),
    "hydra": ("apps/",),
    "omegaconf": ("apps/",),
    "torch.ao": ("eager/layers.py", "artifacts/pt2.py"),
    "torchao": ("graph/pt2e.py",),
    "lq_plugin.apps": ("apps/",),
    "lq_plugin.callbacks": ("callbacks/", "apps/"),
}


def imported(file: Path) -> Iterator[str]:
    """Names of the modules that a file imports, those inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("reserved", RESERVED)
def test_imports_point_one_way(reserved: str) -> None:
    users = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        for name in imported(file)
        if f"{name}.".startswith(f"{reserved}.") and file != PACKAGE / "__init__.py"  # which imports when first used
    }
    assert users
    assert {user for user in users if not user.startswith(RESERVED[reserved])} == set()
