"""An extension of griffe: the reference shows the value of a default that a signature only names (``Scheme.skip``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import griffe


class NamedDefaults(griffe.Extension):
    """Replaces names of constants by what they stand for, once the package is read."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        for function in functions(pkg):
            for parameter in function.parameters:
                parameter.default = value_of(parameter.default, loader)


def functions(found: griffe.Object) -> Iterator[griffe.Function]:
    """All functions and methods that are defined in a module or a class."""
    for member in found.members.values():
        if isinstance(member, griffe.Function):
            yield member
        elif isinstance(member, griffe.Module | griffe.Class):
            yield from functions(member)


def value_of(default: Any, loader: griffe.GriffeLoader) -> Any:
    """Follow a name to its constant, and that to its own."""
    while isinstance(default, griffe.ExprName | griffe.ExprAttribute):
        try:
            found = loader.modules_collection[default.canonical_path]
        except KeyError:
            break
        if not isinstance(found, griffe.Attribute) or found.value is None:
            break
        default = found.value
    return default
