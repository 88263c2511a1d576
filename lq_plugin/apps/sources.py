"""The code behind a class: the project files that it imports, and the versions of installed packages."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

_INSTALLED = {"site-packages", "dist-packages"}


def versions(targets: Iterable[Any]) -> dict[str, str]:
    """Return what identifies the state of the code behind classes and functions.

    Imports are read from the source, those inside functions too, so the result does not depend on what happens to be
    imported. Code that is found in other ways, such as a class named in a string, is not followed.

    Args:
        targets: classes, with all that they inherit from, and functions.

    Returns:
        The sha256 of every file outside of installed packages by the name of its module, and the version of every
        installed package by its name.
    """
    own: dict[str, str] = {}
    installed: dict[str, str] = {}
    distributions = _distributions()
    waiting = {made.__module__ for target in targets for made in getattr(target, "__mro__", (target,))}
    while waiting:
        name = waiting.pop()
        package = name.partition(".")[0]
        if name in own or package in installed or package in sys.stdlib_module_names:
            continue
        spec = _spec(package)
        if spec is not None and not _is_own(spec):
            installed[package] = " ".join(importlib.metadata.version(each) for each in distributions.get(package, ()))
        elif (spec := _spec(name)) is not None and spec.origin is not None and _is_own(spec):
            source = Path(spec.origin).read_bytes()
            own[name] = hashlib.sha256(source).hexdigest()
            inside = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
            waiting.update(_imports(source, inside) if spec.origin.endswith(".py") else ())
    return dict(sorted((own | installed).items()))


def _spec(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except Exception:  # an attribute and not a module, a module made by hand, or in one that cannot be imported
        return None


def _is_own(spec: ModuleSpec) -> bool:
    places = [spec.origin] if spec.origin else spec.submodule_search_locations or ()
    return not any(_INSTALLED & set(Path(place).parts) for place in places)


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


@functools.cache  # parsing is most of the work (0.45 of 0.75 s for our own code), and each job of a sweep asks again
def _imports(source: bytes, package: str) -> frozenset[str]:
    """Names of modules that a source imports, and of what it imports from them, which may be modules too."""
    return frozenset(_imported(ast.parse(source), package))


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            module = importlib.util.resolve_name(origin, package) if node.level else origin
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
