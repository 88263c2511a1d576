"""Results of finished steps, which a run that was interrupted reads back in place of doing them again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Results(Protocol):
    """Results of one kind of step by the digest of what determines them; tensors and builtins only."""

    def get(self, digest: str, /) -> Any:
        """Return an earlier result; ``None`` where there is none."""

    def __setitem__(self, digest: str, result: Any, /) -> None:
        """Keep a result; called before anything is based on it."""


def once(
    results: Results, digest: str, make: Callable[[], T], write: Callable[[T], Any], read: Callable[[Any], T]
) -> tuple[T, bool]:
    """Read back the result of a step, or do the step and keep its result.

    Args:
        results: those of earlier runs.
        digest: of all that determines the result.
        make: does the step.
        write: turns its result into tensors and builtins; it raises ``ValueError`` where nothing is to be kept.
        read: turns these into the result again. Whatever it raises, the step is done: a store may be damaged.

    Returns:
        The result, and whether it was read back.
    """
    known = results.get(digest)
    if known is not None:
        try:
            return read(known), True
        except Exception:  # it has another form, however that shows
            pass
    made = make()
    with suppress(Exception):  # a step that cannot be kept is done all the same
        results[digest] = write(made)
    return made, False


def figures(content: Any) -> dict[str, float]:
    """Read back figures by name.

    Raises:
        TypeError, ValueError, AttributeError: the content is something else.
    """
    return {str(name): float(value) for name, value in content.items()}


class _Nothing:
    """Results that are not kept."""

    def get(self, digest: str, /) -> None:
        return None

    def __setitem__(self, digest: str, result: Any, /) -> None:
        pass


NOTHING_KEPT: Results = _Nothing()
