"""Imports point one way, only the outermost parts know Lightning and Hydra, and modules and functions stay small."""

from __future__ import annotations

import ast
import graphlib
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
}
# Each module or package may import those of its own line and of the lines below.
LAYERS = (
    "apps",
    "callbacks",
    "pipeline",
    "exporting functional handing_over hub interruption jobs output_folder placing plan trials",
    "learnt refinement",
    "source steps store",
    "evaluation",
    "report",
    "artifacts",
    "search",
    "algorithms",
    "candidate checkpoints distributions",
    "eager",
    "graph runtimes",
    "patterns targets",
    "scheme selection",
    "observers",
    "coverage identity kept learning names progress qparams renamed torch_file",
    "checksums cpu durable errors noise options printing untrusted",
)
LONGEST_MODULE = 400  # lines
LONGEST_FUNCTION = 40  # lines without the docstring, the signature counted as one

FILES = {
    file.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__").replace("/", "."): file
    for file in sorted(PACKAGE.rglob("*.py"))
    if file.parent != PACKAGE or file.name != "__init__.py"  # which imports when a name is first used
}
TREES = {name: ast.parse(file.read_text()) for name, file in FILES.items()}


def imported(tree: ast.Module) -> Iterator[str]:
    """Names of the modules that a module imports, those inside functions and for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(name: str) -> str | None:
    """The module of this package that an import names or takes something from."""
    parts = name.split(".")
    if parts[0] != PACKAGE.name:
        return None
    prefixes = (".".join(parts[1:end]) for end in range(len(parts), 1, -1))
    return next((prefix for prefix in prefixes if prefix in FILES), None)


IMPORTS = {name: {made for each in imported(tree) if (made := own(each))} for name, tree in TREES.items()}


@pytest.mark.parametrize("reserved", RESERVED)
def test_only_some_parts_know_a_package(reserved: str) -> None:
    users = {
        FILES[name].relative_to(PACKAGE).as_posix()
        for name, tree in TREES.items()
        for each in imported(tree)
        if f"{each}.".startswith(f"{reserved}.")
    }
    assert users
    assert {user for user in users if not user.startswith(RESERVED[reserved])} == set()


def test_every_module_has_its_layer() -> None:
    listed = [part for layer in LAYERS for part in layer.split()]
    assert sorted(listed) == sorted({name.partition(".")[0] for name in FILES})


def test_imports_point_one_way() -> None:
    height = {part: -number for number, layer in enumerate(LAYERS) for part in layer.split()}
    upwards = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in sorted(others)
        if height[name.partition(".")[0]] < height[other.partition(".")[0]]
    ]
    assert upwards == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        graphlib.TopologicalSorter(IMPORTS).prepare()
        circle = []
    except graphlib.CycleError as error:
        circle = error.args[1]
    assert " is imported by ".join(circle) == ""


def test_modules_are_short() -> None:
    lengths = {name: len(file.read_text().splitlines()) for name, file in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > LONGEST_MODULE} == {}


def test_functions_are_short() -> None:
    lengths = {
        f"{FILES[name].relative_to(PACKAGE)}:{node.lineno} {node.name}": length(node)
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body without the docstring; its signature, which may list many options, is one more."""
    first, end = function.body[0], function.end_lineno or 0
    docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    start = (first.end_lineno or 0) + 1 if docstring else first.lineno
    return end - start + 2
