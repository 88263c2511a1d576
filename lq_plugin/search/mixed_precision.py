"""Mixed precision: which operators stay float so that a budget is met, as few of them as possible.

Operators are ranked by the error that INT8 causes, divided by the work that it saves. Errors of single operators add
up, so the first ones are left float; how many is found by doubling the number, then by bisection. Finally, operators go
back to INT8 one by one, as long as the budget is still met.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from lq_plugin.errors import ConfigError
from lq_plugin.options import check_types

_MOST_TRIALS = 500  # more are not read from a manifest


@dataclass(frozen=True)
class Search:
    """How long to search for a mixed-precision artifact within the budget.

    Args:
        max_trials: how many artifacts are made and evaluated at most.
        time_limit: seconds after which no further trial is started; ``None`` for no limit.

    Raises:
        ConfigError: an option is out of range.
    """

    max_trials: int = 15
    time_limit: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if not 1 <= self.max_trials <= _MOST_TRIALS:
            raise ConfigError(f"max_trials: {self.max_trials} is not allowed. Allowed: 1 to {_MOST_TRIALS}.")
        if self.time_limit is not None and not self.time_limit >= 0:
            raise ConfigError(f"time_limit: {self.time_limit} is not allowed. Give seconds, 0 or more, or None.")


def order(errors: Mapping[str, float], saved: Mapping[str, float]) -> list[str]:
    """Rank operators by the error that INT8 causes, divided by what it saves; the largest first.

    Args:
        errors: the error that INT8 causes at the outputs, by operator.
        saved: what INT8 saves, in any unit, by operator; positive.
    """
    return sorted(errors, key=lambda name: (-errors[name] / saved[name], name))


def search(ranking: Sequence[str], is_within: Callable[[frozenset[str]], bool], limits: Search) -> Set[str] | None:
    """Find a small set of operators that meets the budget if they stay float.

    Args:
        ranking: all operators in INT8, ranked by :func:`order`. With all of them in INT8 the budget is not met.
        is_within: makes a trial with these operators float, and returns whether it is within the budget.
        limits: how many trials, and for how long.

    Returns:
        The smallest set found; ``None`` if no trial met the budget.
    """
    trials = _Trials(is_within, limits)
    too_few, enough = 0, None
    count, most = 1, len(ranking) - 1  # at least one operator stays INT8
    while enough is None and too_few < most and trials.left:
        count = min(count, most)
        if trials.within(ranking[:count]):
            enough = count
        else:
            too_few, count = count, 2 * count
    while enough is not None and enough - too_few > 1 and trials.left:
        middle = (too_few + enough) // 2
        if trials.within(ranking[:middle]):
            enough = middle
        else:
            too_few = middle
    if enough is None:
        return None
    chosen = list(ranking[:enough])
    for name in reversed(chosen[:-1]):  # without the last one the budget is not met
        fewer = [each for each in chosen if each != name]
        if trials.left and trials.within(fewer):
            chosen = fewer
    return frozenset(chosen)


class _Trials:
    """Counts trials, and the time that they take."""

    def __init__(self, is_within: Callable[[frozenset[str]], bool], limits: Search) -> None:
        self._is_within, self._limits = is_within, limits
        self._count, self._start = 0, time.perf_counter()

    @property
    def left(self) -> bool:
        limit = self._limits.time_limit
        in_time = limit is None or time.perf_counter() - self._start < limit
        return self._count < self._limits.max_trials and in_time

    def within(self, names: Sequence[str]) -> bool:
        self._count += 1
        return self._is_within(frozenset(names))
