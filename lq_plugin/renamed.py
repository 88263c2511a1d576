"""Options and names that were renamed: using an old one is an error that gives the new one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lq_plugin.errors import ConfigError

T = TypeVar("T")

OPTIONS: Mapping[str, str] = {"max_loss": "max_drop", "momentum": "averaging_constant"}
CHOICES: Mapping[str, str] = {"data/mnist_cnn": "data=mnist"}  # files of conf/
SECTIONS: Mapping[str, str] = {"callbacks.static.observer": "observer", "logger": "logger.csv"}  # of a configuration
NAMES: Mapping[str, str] = {
    "Histogram": "HistogramObserver",
    "MinMax": "MinMaxObserver",
    "MovingAverage": "MovingAverageMinMaxObserver",
    "Percentile": "PercentileObserver",
}


def refuse_old(*options: str) -> Callable[[type[T]], type[T]]:
    """Let a dataclass answer its renamed options with an error that gives the new name.

    Args:
        options: old names, keys of ``OPTIONS``.

    Example:
        >>> from lq_plugin import Budget
        >>> Budget(max_loss=0.02)
        Traceback (most recent call last):
        lq_plugin.errors.ConfigError: max_loss: this option was renamed. Write max_drop=0.02.
    """

    def decorate(made: type[T]) -> type[T]:
        build: Any = vars(made)["__init__"]

        @functools.wraps(build)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            for old in options:
                if old in kwargs:
                    raise ConfigError(f"{old}: this option was renamed. Write {OPTIONS[old]}={kwargs[old]!r}.")
            build(self, *args, **kwargs)

        setattr(made, "__init__", init)  # noqa: B010
        return made

    return decorate
