"""What the sanity check finds before training: a candidate that cannot be made does not stop the others.

A user error (a name that does not exist, a pattern that matches nothing) stops the run wherever it is found before
training. A limit of the model is recorded. It stops the run only if no callback of the Trainer can make a candidate.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from lq_plugin.errors import UnsupportedError

logger = logging.getLogger("lq_plugin")


def decide(callbacks: Sequence[Any]) -> None:
    """Warn of the candidates that the model does not allow, and stop the run if it allows none.

    Args:
        callbacks: all quantizing callbacks, each with its ``failure`` if one is known.

    Raises:
        LqError: why no candidate can be made, for every callback.
    """
    unable = {callback.name: callback.failure for callback in callbacks if callback.failure is not None}
    if len(unable) == len(callbacks):
        first, *others = unable.values()
        if not others:
            raise first
        reasons = " ".join(f"{name!r}: {error}" for name, error in unable.items())
        raise UnsupportedError(f"no callback of this Trainer can make a candidate of this model. {reasons}") from first
    for callback in callbacks:
        if callback.failure is not None:
            say(callback)


def say(callback: Any) -> None:
    """Warn once of a candidate that cannot be made."""
    text = "candidate %r of %s cannot be made; training continues, with the other candidates. %s"
    logger.warning(text, callback.name, type(callback).__name__, callback.error)
