"""An extension of griffe: what it reads of signatures and docstrings, as the reference shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import griffe


class Shown(griffe.Extension):
    """Defaults that are only named (``Scheme.skip``) as values, and examples as code."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        for found in objects(pkg):
            if found.docstring is not None:  # griffe knows the heading of doctests in the plural only
                found.docstring.value = found.docstring.value.replace("\nExample:\n", "\nExamples:\n")
            if isinstance(found, griffe.Function):
                for parameter in found.parameters:
                    parameter.default = value_of(parameter.default, loader)


def objects(found: griffe.Object) -> Iterator[griffe.Object]:
    """A module, and all that is defined in it."""
    yield found
    for member in found.members.values():
        if isinstance(member, griffe.Object):
            yield from objects(member)


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
