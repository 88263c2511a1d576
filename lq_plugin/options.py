"""The types of options: a wrong one is an error where it is given, not after the training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

from lq_plugin.errors import ConfigError

_PLAIN = {bool: "True or False", int: "an int", float: "a float", str: "a str", NoneType: "None"}
_NAMES = {**_PLAIN, os.PathLike: "a path", Sequence: "a list", Mapping: "a dict"}


def check_types(options: Any) -> None:
    """Check the fields of a dataclass whose types are plain: ``bool``, ``int``, ``float``, ``str`` and ``None``.

    Raises:
        ConfigError: one has another type.
    """
    for name, hint in get_type_hints(type(options)).items():
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        if _PLAIN.keys() >= set(kinds):
            check_type(name, getattr(options, name), *kinds)


def check_type(name: str, given: Any, *kinds: type) -> None:
    """Check that an option has one of these types.

    Args:
        name: of the option.
        given: its value.
        kinds: the types. An ``int`` passes as ``float``, and a ``bool`` as neither: no option means it so. Numbers of
            numpy do not pass, because a manifest cannot hold them.

    Raises:
        ConfigError: it has none of them.
    """
    if not any(_is(given, kind) for kind in kinds):
        allowed = " or ".join(_NAMES.get(kind, f"a {kind.__name__}") for kind in kinds)
        raise ConfigError(f"{name}: {given!r} is not allowed. Give {allowed}.")


def check_threads(threads: Any) -> None:
    """Check the number of a runtime's threads, ``None`` for its own choice.

    Raises:
        ConfigError: it is no number, or too small.
    """
    check_type("threads", threads, int, NoneType)
    if threads is not None and threads < 1:
        raise ConfigError(f"threads: {threads} is too small. Allowed: 1 or more, or None for the runtime's choice.")


def _is(given: Any, kind: type) -> bool:
    if kind in (int, float) and isinstance(given, bool):
        return False
    return isinstance(given, (int, float) if kind is float else kind)
