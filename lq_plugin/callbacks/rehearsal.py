"""What the sanity check shows before training: a candidate that a model does not allow stops no other candidate.

A user's mistake (a name that does not exist, a pattern that matches nothing) stops the run wherever it is found before
training. What the model cannot do is recorded, and stops the run only where no callback of the Trainer is left that
could make a candidate.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lq_plugin.errors import CalibrationError, LqError, UnsupportedError, is_mistake

if TYPE_CHECKING:
    from lq_plugin.callbacks.quantizing import QuantizingCallback

logger = logging.getLogger("lq_plugin")


def inability(error: Exception) -> LqError:
    """Return an error as what a model cannot do; one that is not ours is the cause of the one that is returned.

    Raises:
        ConfigError: the error, where it is the user's mistake.
    """
    if is_mistake(error):
        raise error
    if isinstance(error, LqError):
        return error
    named = CalibrationError(f"calibration: {error}")
    named.__cause__ = error
    return named


def decide(callbacks: Sequence[QuantizingCallback]) -> None:
    """Say which candidates the model does not allow, and stop the run where it allows none.

    Args:
        callbacks: all that make candidates, each with its ``inability`` as far as it is known.

    Raises:
        LqError: what the model cannot do, of all callbacks.
    """
    unable = {callback.name: callback.inability for callback in callbacks if callback.inability is not None}
    if len(unable) == len(callbacks):
        first, *others = unable.values()
        if not others:
            raise first
        reasons = " ".join(f"{name!r}: {error}" for name, error in unable.items())
        raise UnsupportedError(f"no callback of this Trainer can make a candidate of this model. {reasons}") from first
    for callback in callbacks:
        if callback.inability is not None and callback.error is None:
            callback.error = f"{type(callback.inability).__name__}: {callback.inability}"
            text = "candidate %r of %s cannot be made; training goes on, and the other candidates are made. %s"
            logger.warning(text, callback.name, type(callback).__name__, callback.error)
