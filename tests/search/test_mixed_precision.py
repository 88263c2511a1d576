"""A small set of float operators is found in few trials, and limits are kept."""

from __future__ import annotations

import random

import pytest

from lq_plugin import Search
from lq_plugin.errors import ConfigError
from lq_plugin.search.mixed_precision import order, search


class Budgeted:
    """Operators whose errors add up, and a budget for those that stay INT8."""

    def __init__(self, errors: dict[str, float], budget: float) -> None:
        self.errors, self.budget = errors, budget
        self.tried: list[frozenset[str]] = []

    def __call__(self, names: frozenset[str]) -> bool:
        self.tried.append(names)
        return self.is_within(names)

    def is_within(self, names: frozenset[str]) -> bool:
        return sum(error for name, error in self.errors.items() if name not in names) <= self.budget


def model(operators: int, seed: int) -> dict[str, float]:
    generator = random.Random(seed)
    return {f"op{number}": generator.lognormvariate(0, 2) for number in range(operators)}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("operators", [3, 7, 60])
def test_the_set_found_is_within_the_budget_and_no_larger_than_needed(operators: int, seed: int) -> None:
    errors = model(operators, seed)
    trials = Budgeted(errors, 0.3 * sum(errors.values()))
    ranking = order(errors, dict.fromkeys(errors, 1.0))
    found = search(ranking, trials, Search())
    assert found is not None
    assert trials.is_within(frozenset(found))
    assert len(trials.tried) <= 15
    smallest = next(count for count in range(operators + 1) if trials.is_within(frozenset(ranking[:count])))
    assert len(found) == smallest


def test_operators_that_need_not_stay_float_are_given_back() -> None:
    errors = {"a": 0.1, "b": 3.0, "c": 0.2, "d": 2.0, "e": 0.1}
    trials = Budgeted(errors, 0.5)
    assert search("abcde", trials, Search(max_trials=20)) == {"b", "d"}


def test_what_saves_little_goes_first() -> None:
    assert order({"a": 1.0, "b": 1.0, "c": 5.0}, {"a": 100.0, "b": 1.0, "c": 10.0}) == ["b", "c", "a"]


def test_no_set_is_an_outcome() -> None:
    errors = model(9, 0)
    trials = Budgeted(errors, -1.0)
    assert search(list(errors), trials, Search()) is None
    assert max(map(len, trials.tried)) == 8  # one stays INT8
    assert search(["alone"], trials, Search()) is None


def test_limits_are_kept() -> None:
    errors = model(200, 0)
    trials = Budgeted(errors, 0.001)
    search(order(errors, dict.fromkeys(errors, 1.0)), trials, Search(max_trials=4))
    assert len(trials.tried) == 4
    late = Budgeted(errors, 0.001)
    assert search(list(errors), late, Search(time_limit=0)) is None
    assert late.tried == []


@pytest.mark.parametrize(
    "options", [{"max_trials": 0}, {"max_trials": 501}, {"time_limit": -1.0}, {"time_limit": float("nan")}]
)
def test_a_search_without_room_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Search(**options)  # type: ignore[arg-type]
