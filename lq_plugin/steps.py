"""Steps after training: one that fails is reported once, and only what needs it is skipped."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lq_plugin.errors import LqError

T = TypeVar("T")
logger = logging.getLogger("lq_plugin")


@dataclass(frozen=True)
class Step(Generic[T]):
    """The outcome of a step: its result, or the error of the step itself or of one that it needs."""

    result: T | None = None
    error: Exception | None = None

    @property
    def reason(self) -> str | None:
        """The error as manifests record it."""
        return None if self.error is None else reason_of(self.error)


def attempt(what: str, make: Callable[[], T], *needs: Step[Any], expected: tuple[type[Exception], ...] = ()) -> Step[T]:
    """Run a step. ``KeyboardInterrupt`` and ``SystemExit`` pass.

    Args:
        what: how the message begins if it fails: ``"static/onnx failed"``.
        make: does it.
        needs: steps without which it is skipped.
        expected: errors that say what is not possible, and so are recorded without being logged.
    """
    for need in needs:
        if need.error is not None:
            return Step(error=need.error)
    try:
        return Step(make())
    except Exception as error:
        if not isinstance(error, expected):
            say(what, error)
        return Step(error=error)


def say(what: str, error: Exception) -> str:
    """Log once what failed and why, and return the reason as manifests record it.

    Args:
        what: what failed.
        error: why. Errors that are neither ours nor the disk's keep their traceback.
    """
    reason = reason_of(error)
    logger.error("%s. %s", what, reason, exc_info=not isinstance(error, LqError | OSError))
    return reason


def reason_of(error: Exception) -> str:
    """Return an error as manifests record it."""
    return f"{type(error).__name__}: {error}"
