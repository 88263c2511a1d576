"""Untrusted JSON as frozen dataclasses: their type hints say what is allowed, limits included.

A limit is a ``limits.Check`` in a hint's ``Annotated``, such as ``Annotated[str, one_of("max", "min")]``. Keys that no
field reads are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from math import isfinite, isnan, nan
from sys import float_info
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from lq_plugin.renamed import OPTIONS
from lq_plugin.report.limits import Check, ContentError, is_a, number

REQUIRED = "required"
"""Marks in ``Annotated`` a field that JSON must hold, although its dataclass has a default."""
_AN_OBJECT = is_a("an object", lambda value: isinstance(value, Mapping))
_A_LIST = is_a("a list", lambda value: isinstance(value, list))
_BUILTINS: Mapping[Any, Check] = {
    Any: lambda value, where: None,
    str: is_a("text", lambda value: isinstance(value, str)),
    bool: is_a("true or false", lambda value: isinstance(value, bool)),
    int: is_a("a whole number", number(-(2**63), 2**63, int)),
    float: is_a(
        "a number, null, 'inf' or '-inf'",
        lambda value: value is None or value in ("inf", "-inf") or number(-float_info.max, float_info.max)(value),
    ),
}


def decode(hint: Any, value: Any, where: str = "") -> Any:
    """Return a value of JSON as what a type hint says.

    Args:
        hint: a dataclass, ``Mapping[…, …]``, ``tuple[…, …]``, a builtin, ``Any``, any of them ``| None``, or
            ``Annotated`` with checks, which come first. A ``float`` may be null (nan), ``"inf"`` and ``"-inf"``.
        value: the value.
        where: its place, for messages.

    Raises:
        ContentError: naming the first invalid place.
    """
    kind, *limits = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    for check in filter(callable, limits):
        check(value, where)
    inner = get_args(kind)
    if type(None) in inner:
        return None if value is None else decode(inner[0], value, where)
    if is_dataclass(kind):
        return kind(**_fields(kind, value, where))  # type: ignore[operator]  # kind is a class
    if get_origin(kind) is Mapping:
        _AN_OBJECT(value, where)
        names = [decode(inner[0], name, f"a key of {where}") for name in value]
        return {name: decode(inner[1], value[name], f"{where}[{name!r}]") for name in names}
    if get_origin(kind) is tuple:
        _A_LIST(value, where)
        return tuple(decode(inner[0], item, f"{where}[{n}]") for n, item in enumerate(value))
    _BUILTINS[kind](value, where)
    return (nan if value is None else float(value)) if kind is float else value


def _fields(kind: Any, value: Any, where: str) -> dict[str, Any]:
    """Return the fields of a dataclass that an object has."""
    _AN_OBJECT(value, where)
    found: dict[str, Any] = {}
    for name, (hint, required) in _hints(kind).items():
        place = f"{where}.{name}" if where else name
        if name in value:
            found[name] = decode(hint, value[name], place)
        elif required:
            old = next((old for old in value if OPTIONS.get(old) == name), None)
            hint = f"; {old}, its old name, is no longer read: rename it, or run again" if old else ""
            raise ContentError(f"{place} is missing{hint}")
    return found


@cache
def _hints(kind: type[Any]) -> dict[str, tuple[Any, bool]]:
    """The hint of each field of a dataclass, and whether JSON has to hold it."""
    hints = get_type_hints(kind, include_extras=True)
    bare = [field.name for field in fields(kind) if field.default is field.default_factory is MISSING]
    return {
        field.name: (hints[field.name], field.name in bare or REQUIRED in get_args(hints[field.name]))
        for field in fields(kind)
    }


def encode(value: Any) -> Any:
    """Return dataclasses and builtins as JSON can hold them: nan becomes null, and infinity becomes text."""
    if is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, float) and not isfinite(value):
        return None if isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value
