"""JSON from anywhere as frozen dataclasses: their type hints say what is allowed, and limits stand in them.

A limit is a :data:`Check` in a hint's ``Annotated``, such as ``Annotated[str, one_of("max", "min")]``. What no
dataclass has a field for is used by no reader, so an object may hold more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from math import isfinite, isnan, nan
from pathlib import PurePosixPath
from sys import float_info
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from lq_plugin.renamed import OPTIONS

# Far above any real manifest, and low enough that one made to be large cannot stop the report of all the others.
DEEPEST = 32  # objects and lists inside each other
LONGEST_NAME = 256
MOST = 500  # artifacts, which are compared in pairs, and metrics, each of which is a column

T = TypeVar("T")
Check = Callable[[Any, str], None]
"""Raises an :class:`ContentError` that names the place (the second argument) unless the value there is allowed."""
REQUIRED = "required"
"""Marks in ``Annotated`` a field that JSON must hold, although its dataclass has a default."""


class ContentError(ValueError):
    """The content of a file is not what it has to be; the message is a whole sentence."""


def decode(hint: Any, value: Any, where: str = "") -> Any:
    """Return a value of JSON as what a type hint says.

    Args:
        hint: a dataclass, ``Mapping[…, …]``, ``tuple[…, …]``, a builtin, ``Any``, any of them ``| None``, or
            ``Annotated`` with checks, which come first. A ``float`` may be null (nan), ``"inf"`` and ``"-inf"``.
        value: the value.
        where: its place, for messages.

    Raises:
        ContentError: naming the first place that is not as it has to be.
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
        AN_OBJECT(value, where)
        names = [decode(inner[0], name, f"a key of {where}") for name in value]
        return {name: decode(inner[1], value[name], f"{where}[{name!r}]") for name in names}
    if get_origin(kind) is tuple:
        A_LIST(value, where)
        return tuple(decode(inner[0], item, f"{where}[{n}]") for n, item in enumerate(value))
    _BUILTINS[kind](value, where)
    return (nan if value is None else float(value)) if kind is float else value


def _fields(kind: Any, value: Any, where: str) -> dict[str, Any]:
    """Return the fields of a dataclass that an object has."""
    AN_OBJECT(value, where)
    found: dict[str, Any] = {}
    for name, (hint, required) in _hints(kind).items():
        place = f"{where}.{name}" if where else name
        if name in value:
            found[name] = decode(hint, value[name], place)
        elif required:
            renamed = [
                f"; {old}, its old name, is no longer read" for old in OPTIONS if OPTIONS[old] == name and old in value
            ]
            raise ContentError(f"{place} is missing{''.join(renamed)}")
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


def check_tree(content: Any) -> None:
    """Check what holds for every value, whatever it means. Not recursive, because the nesting is what is checked.

    Raises:
        ContentError: it is nested too deeply, a key is too long, or a text cannot be written to a file.
    """
    level, depth = [content], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ContentError(f"more than {DEEPEST} objects and lists are inside each other")
        mappings = [value for value in level if isinstance(value, dict)]
        keys = [key for mapping in mappings for key in mapping]
        if any(len(key) > LONGEST_NAME for key in keys):
            raise ContentError(f"a key is longer than {LONGEST_NAME} characters")
        for text in (*keys, *(value for value in level if isinstance(value, str))):
            _check_text(text)
        level = [item for value in level if isinstance(value, list) for item in value]
        level += [item for mapping in mappings for item in mapping.values()]


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON can express and no file can hold
        raise ContentError(f"{text[:40]!a} is no Unicode text") from None


def is_a(what: str, test: Callable[[Any], bool]) -> Check:
    """Make a check of one value.

    Args:
        what: what is allowed, to end a message with.
        test: whether a value is.
    """

    def check(value: Any, where: str) -> None:
        if not test(value):
            raise ContentError(f"{where or 'its content'} is {_shown(value)}, not {what}")

    return check


def number(low: float, high: float, kind: type = float) -> Callable[[Any], bool]:
    """Test for a number within a range. ``true`` is none, and a huge integer fits no ``float``."""
    kinds = (int,) if kind is int else (int, float)
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high


def one_of(*allowed: str) -> Check:
    """Make a check of a text that is one of a few."""
    return is_a(f"one of {', '.join(allowed)}", lambda value: isinstance(value, str) and value in allowed)


def is_below(path: str) -> bool:
    """Whether a path of a manifest, with ``/`` between its parts, stays below the folder that it begins in.

    Example:
        >>> is_below("static/onnx"), is_below("../onnx"), is_below("/etc"), is_below("a:b"), is_below("")
        (True, False, False, False, False)
    """
    parts = PurePosixPath(path).parts
    return bool(parts) and ".." not in parts and not any(sign in path for sign in ("\\", ":", "\0")) and path[0] != "/"


def not_many(value: Any, where: str) -> None:
    """Check that an object or a list has few enough entries for a reader to show them all."""
    if isinstance(value, Mapping | list) and len(value) > MOST:
        raise ContentError(f"{where} has {len(value)} entries; at most {MOST} are read")


def _shown(value: Any) -> str:
    """Name a value of JSON briefly."""
    if isinstance(value, Mapping | list):
        kind = "object" if isinstance(value, Mapping) else "list"
        return f"{'an' if kind == 'object' else 'a'} {kind}" if value else f"an empty {kind}"
    names = [name for name, constant in (("null", None), ("true", True), ("false", False)) if value is constant]
    text = names[0] if names else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


AN_OBJECT = is_a("an object", lambda value: isinstance(value, Mapping))
A_LIST = is_a("a list", lambda value: isinstance(value, list))
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
