"""What is done when training is over costs the user nothing of the training: it raises nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lq_plugin.callbacks.ranks import on_one_process
from lq_plugin.errors import LqError

logger = logging.getLogger("lq_plugin")


@contextmanager
def after_training(trainer: Any, callback: object) -> Iterator[bool]:
    """Tell whether this process does the work at the end of fit, and let no error of it out.

    ``KeyboardInterrupt`` and ``SystemExit`` pass. What can fail for one candidate or artifact is caught and recorded
    where it is made; this is for the rest, such as a disk that is full.

    Args:
        trainer: at the end of fit; see :func:`~lq_plugin.callbacks.ranks.on_one_process`.
        callback: whose work it is, for the message.
    """
    with on_one_process(trainer) as works:
        try:
            yield works
        except Exception as error:
            say(f"{type(callback).__name__} did not finish; the training did, and what was made before is kept", error)


def say(what: str, error: Exception) -> str:
    """Log once what failed and why, and return the reason as manifests record it.

    Args:
        what: what failed.
        error: why. Errors that are not ours, and none of the disk's, keep their trace.
    """
    reason = f"{type(error).__name__}: {error}"
    logger.error("%s. %s", what, reason, exc_info=not isinstance(error, LqError | OSError))
    return reason
