"""What a manifest holds: type and range of every field that reports read, checked once, before it is read.

What is not listed here is used by no report, so a manifest may hold more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from sys import float_info
from typing import Any

from lq_plugin.report.files import is_below

SCHEMA_VERSION = 1
STATUSES = ("ok", "over_budget", "not_evaluated", "failed", "unsupported")
# Far above any real manifest, and low enough that one made to be large cannot stop the report of all the others.
DEEPEST = 32  # objects and lists inside each other
LONGEST_NAME = 256
MOST = 500  # artifacts, which are compared in pairs, and metrics, each of which is a column
LONGEST_VALUE = 1000  # characters of an option that are shown
OPTIONS_LIMIT = 1 << 18  # characters of all options together, which stand in every row

Check = Callable[[Any, str], None]
"""Raises a ``ValueError`` that names the place (the second argument) unless the value there is as it has to be."""


def validated(content: Any) -> dict[str, Any]:
    """Return the content of a manifest, checked.

    Raises:
        ValueError: naming the first place that is not as it has to be.
    """
    _check_tree(content)
    _VERSION(content, "")
    version = content["schema_version"]
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"its schema_version {version} is newer than {SCHEMA_VERSION}, which this lq_plugin knows; "
            "install a newer one"
        )
    _MANIFEST(content, "")
    return dict(content)


def _check_tree(content: Any) -> None:
    """Check what holds for every value, whatever it means. Not recursive, because the nesting is what is checked."""
    level, depth = [content], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} objects and lists are inside each other")
        mappings = [value for value in level if isinstance(value, dict)]
        keys = [key for mapping in mappings for key in mapping]
        if any(len(key) > LONGEST_NAME for key in keys):
            raise ValueError(f"a key is longer than {LONGEST_NAME} characters")
        for text in (*keys, *(value for value in level if isinstance(value, str))):
            _check_text(text)
        level = [item for value in level if isinstance(value, list) for item in value]
        level += [item for mapping in mappings for item in mapping.values()]


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON can express and no file can hold
        raise ValueError(f"{text[:40]!a} is no Unicode text") from None


def _shown(value: Any) -> str:
    """Name a value of JSON briefly."""
    if isinstance(value, Mapping | list):
        kind = "object" if isinstance(value, Mapping) else "list"
        return f"{'an' if kind == 'object' else 'a'} {kind}" if value else f"an empty {kind}"
    names = [name for name, constant in (("null", None), ("true", True), ("false", False)) if value is constant]
    text = names[0] if names else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _is(what: str, test: Callable[[Any], bool]) -> Check:
    def check(value: Any, where: str) -> None:
        if not test(value):
            raise ValueError(f"{where or 'its content'} is {_shown(value)}, not {what}")

    return check


def _number(low: float, high: float, kind: type = float) -> Callable[[Any], bool]:
    """Whether a value is a number within a range. ``true`` is none, and a huge integer fits no ``float``."""
    kinds = (int,) if kind is int else (int, float)
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high


def _one_of(*allowed: str) -> Check:
    return _is(f"one of {', '.join(allowed)}", lambda value: isinstance(value, str) and value in allowed)


def _nullable(check: Check) -> Check:
    def check_unless_null(value: Any, where: str) -> None:
        if value is not None:
            check(value, where)

    return check_unless_null


def _record(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """An object with these fields, and any others."""

    def check(value: Any, where: str) -> None:
        _OBJECT(value, where)
        for name, field in (*required.items(), *(optional or {}).items()):
            place = f"{where}.{name}" if where else name
            if name in value:
                field(value[name], place)
            elif name in required:
                raise ValueError(f"{place} is missing")

    return check


def _table(cell: Check) -> Check:
    """An object of any keys, whose values are all alike."""

    def check(value: Any, where: str) -> None:
        _OBJECT(value, where)
        _check_size(value, where, MOST)
        for name, item in value.items():
            cell(item, f"{where}[{name!r}]")

    return check


def _list(item: Check) -> Check:
    def check(value: Any, where: str) -> None:
        _is("a list of at least one", lambda given: isinstance(given, list) and len(given) > 0)(value, where)
        _check_size(value, where, MOST)
        for n, entry in enumerate(value):
            item(entry, f"{where}[{n}]")

    return check


def _check_size(value: Any, where: str, most: int) -> None:
    if len(value) > most:
        raise ValueError(f"{where} has {len(value)} entries; at most {most} are read")


def _check_sums(value: Any, where: str) -> None:
    """The sha256 of files by their names, which lead nowhere else."""
    _table(_is("a sha256", lambda given: isinstance(given, str) and re.fullmatch("[0-9a-f]{64}", given) is not None))(
        value, where
    )
    for name in value:
        _is("the name of a file", lambda given: is_below(given) and "/" not in given)(name, f"a key of {where}")


def _check_config(value: Any, where: str) -> None:
    _record({}, {"run": _nullable(_OBJECT)})(value, where)
    length, waiting = 0, [(value, 0)]  # the length of the dotted key in front of each
    while waiting:
        mapping, before = waiting.pop()
        for key, item in mapping.items():
            if isinstance(item, Mapping):
                waiting.append((item, before + len(key) + 1))
            else:
                length += before + len(key) + min(len(str(item)), LONGEST_VALUE)
        if length > OPTIONS_LIMIT:
            raise ValueError(f"{where} takes more than {OPTIONS_LIMIT} characters as a list of options")


_OBJECT = _is("an object", lambda value: isinstance(value, Mapping))
_TEXT = _is("text", lambda value: isinstance(value, str))
_NAME = _is(f"a name of up to {LONGEST_NAME} characters", lambda v: isinstance(v, str) and len(v) <= LONGEST_NAME)
_PATH = _is("a path below the manifest's folder", lambda v: isinstance(v, str) and len(v) < 1024 and is_below(v))
_VERSION = _record({"schema_version": _is("a version, such as 1", _number(1, 2**31, int))})
_SIZE = _is("a number of bytes", _number(1, 2**63, int))
_COUNT = _is("a number of things", _number(1, 2**31, int))
_MILLISECONDS = _is("a duration in milliseconds, above 0", _number(1e-9, 1e12))
_RATIO = _is("a ratio, above 0", _number(1e-24, 1e24))
# JSON has no nan and no infinity: they are written as null and as text.
_FIGURE = _is(
    "a number, null, 'inf' or '-inf'",
    lambda value: value is None or value in ("inf", "-inf") or _number(-float_info.max, float_info.max)(value),
)
_FP32 = _record(
    {
        "metrics": _table(_FIGURE),
        # A model without weights takes none.
        "size_bytes": _nullable(_is("a number of bytes", _number(0, 2**63, int))),
        "latency_ms": _table(_MILLISECONDS),
    }
)
_ARTIFACT = _record(
    {
        "candidate": _NAME,
        "method": _NAME,
        "format": _NAME,
        "runtime": _NAME,
        "status": _one_of(*STATUSES),
        "error": _nullable(_TEXT),
        "metrics": _table(_FIGURE),
        "delta": _table(_FIGURE),
        "size_bytes": _nullable(_SIZE),
        "latency_ms": _nullable(_record({"median": _MILLISECONDS}, {"batch_size": _COUNT, "threads": _COUNT})),
        "speedup": _nullable(_record({}, {"vs_torch_fp32": _RATIO, "vs_best_fp32": _RATIO})),
        "sqnr_db": _FIGURE,
    },
    {"fp32": _nullable(_FP32), "path": _nullable(_PATH), "sha256": _check_sums},
)
_BUDGET = _record(
    {
        "metric": _nullable(_NAME),
        "max_drop": _is("a number, 0 or more", _number(0, 1e100)),
        "relative": _is("true or false", lambda value: isinstance(value, bool)),
        "mode": _nullable(_one_of("max", "min")),
    }
)
_MANIFEST = _record(
    {
        "fp32": _FP32,
        "artifacts": _list(_ARTIFACT),
        "selected": _nullable(_TEXT),
        "budget": _nullable(_BUDGET),
        "environment": _record({"cpu": _NAME}),
        "config": _check_config,
    }
)
