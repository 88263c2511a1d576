"""What the sanity check finds before training: a candidate that cannot be made does not stop the others.

A user error (a name that does not exist, a pattern that matches nothing) stops the run wherever it is found before
training. A limit of the model is recorded. It stops the run only if no callback of the Trainer can make a candidate.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lq_plugin.checkpoints import CONVERSIONS
from lq_plugin.errors import ConfigError, UnsupportedError

logger = logging.getLogger("lq_plugin")


def check_strategy(strategy: Any, callback: str) -> None:
    """Refuse strategies that split the parameters over processes: no process has a model that could be observed.

    Args:
        strategy: of the Trainer, in either namespace; DeepSpeed splits parameters from stage 3 on.
        callback: the class of ours that needs the model.

    Raises:
        ConfigError: it is such a strategy.
    """
    names = {each.__name__ for each in type(strategy).__mro__}
    for name, conversion in CONVERSIONS.items():
        if name in names and getattr(strategy, "zero_stage_3", True):
            raise ConfigError(
                f"strategy: {type(strategy).__name__} splits the parameters over processes, and {callback} needs the "
                "whole model. Train without the callbacks of lq_plugin, then run lq-quantize ckpt_path=FILE; if the "
                f"checkpoint is a folder, first convert it to one file: {conversion}."
            )


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
        reasons = " ".join(f"{_listed(names)}: {text}" for text, names in _by_text(unable).items())
        raise UnsupportedError(f"no callback of this Trainer can make a candidate of this model. {reasons}") from first
    told: set[str] = set()
    for callback in callbacks:
        if callback.failure is not None:
            say(callback, told)


def _by_text(errors: Mapping[str, Exception]) -> dict[str, list[str]]:
    """Names by what is wrong with them: callbacks of one target share it."""
    names: dict[str, list[str]] = {}
    for name, error in errors.items():
        names.setdefault(str(error), []).append(name)
    return names


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def say(callback: Any, told: set[str] | None = None) -> None:
    """Warn once of a candidate that cannot be made.

    Args:
        callback: whose candidate it is.
        told: reasons that were given just before, in full; this one is added.
    """
    reason, told = callback.error, set() if told is None else told
    text = "candidate %r of %s cannot be made; training continues, with the other candidates. %s"
    shown = "The reason is the same as above." if reason in told else reason
    logger.warning(text, callback.name, type(callback).__name__, shown)
    told.add(reason)
