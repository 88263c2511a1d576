"""What is allowed in a file that comes from anywhere: sizes, ranges and names, as checks and as types with checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, TypeVar

from lq_plugin.checksums import is_sha256

# Far above any real manifest, and low enough that one made to be large cannot stop the report of all the others.
DEEPEST = 32  # objects and lists inside each other
LONGEST_NAME = 256
MOST = 500  # artifacts, which are compared in pairs, and metrics, each of which is a column
MOST_BINS = 32  # of a histogram
LONGEST_VALUE = 1000  # characters of an option that are shown
OPTIONS_LIMIT = 1 << 18  # characters of all options together, which stand in every row

Check = Callable[[Any, str], None]
"""Raises a :class:`ContentError` that names the place (the second argument) unless the value there is allowed."""


class ContentError(ValueError):
    """The content of a file is invalid; the message is a whole sentence."""


def check_tree(content: Any) -> None:
    """Check what holds for every value, whatever it means. Not recursive, because the nesting is what is checked.

    Raises:
        ContentError: it is nested too deeply, a key is too long, or a text cannot be written to a file.
    """
    level, depth = [content], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ContentError(f"objects and lists are nested more than {DEEPEST} deep")
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
        raise ContentError(f"{text[:40]!a} is not Unicode text") from None


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


def few_bins(value: Any, where: str) -> None:
    """Check that no histogram in a list has more bins than a run writes."""
    for number, item in enumerate(value if isinstance(value, list) else ()):
        bins = item.get("bins") if isinstance(item, Mapping) else None
        if isinstance(bins, list) and len(bins) > MOST_BINS:
            raise ContentError(f"{where}[{number}].bins has {len(bins)} entries; at most {MOST_BINS} are read")


def _shown(value: Any) -> str:
    """Name a value of JSON briefly."""
    if isinstance(value, Mapping | list):
        kind = "object" if isinstance(value, Mapping) else "list"
        return f"{'an' if kind == 'object' else 'a'} {kind}" if value else f"an empty {kind}"
    names = [name for name, constant in (("null", None), ("true", True), ("false", False)) if value is constant]
    text = names[0] if names else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def few_options(value: Any, where: str) -> None:
    """Check that the leaves of nested objects, listed by dotted key, are short enough together."""
    length, waiting = 0, [(value, 0)] if isinstance(value, Mapping) else []  # and the length of the key before each
    while waiting:
        mapping, before = waiting.pop()
        for key, item in mapping.items():
            if isinstance(item, Mapping):
                waiting.append((item, before + len(key) + 1))
            else:
                length += before + len(key) + min(len(str(item)), LONGEST_VALUE)
        if length > OPTIONS_LIMIT:
            raise ContentError(f"{where} takes more than {OPTIONS_LIMIT} characters as a list of options")


T = TypeVar("T")
Table = Annotated[Mapping[str, T], not_many]
Name = Annotated[
    str, is_a(f"a name of up to {LONGEST_NAME} characters", lambda v: isinstance(v, str) and len(v) <= LONGEST_NAME)
]
Sentence = Annotated[
    str, is_a(f"text of up to {LONGEST_VALUE} characters", lambda v: isinstance(v, str) and len(v) <= LONGEST_VALUE)
]
FileName = Annotated[str, is_a("the name of a file, below the artifact's folder", is_below)]
Below = Annotated[
    str, is_a("a path below the manifest's folder", lambda v: isinstance(v, str) and len(v) < 1024 and is_below(v))
]
Sha256 = Annotated[str, is_a("a sha256", is_sha256)]
Version = Annotated[int, is_a("a version, such as 1", number(1, 2**31, int))]
Size = Annotated[int, is_a("a number of bytes", number(1, 2**63, int))]
WeightsSize = Annotated[int, is_a("a number of bytes", number(0, 2**63, int))]  # a model without weights takes none
Count = Annotated[int, is_a("a number of things", number(1, 2**31, int))]
Milliseconds = Annotated[float, is_a("a duration in milliseconds, above 0", number(1e-9, 1e12))]
Ratio = Annotated[float, is_a("a ratio, above 0", number(1e-24, 1e24))]
