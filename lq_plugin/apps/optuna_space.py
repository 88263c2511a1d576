"""What a study searches: Hydra's overrides as Optuna's distributions, and a trial's parameters as overrides again."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lq_plugin.errors import ConfigError


@dataclass(frozen=True)
class Space:
    """What differs between the jobs of a study, and what does not.

    Args:
        distributions: by the key of the override that they choose a value for.
        fixed: overrides of every job.
    """

    distributions: Mapping[str, BaseDistribution]
    fixed: tuple[str, ...] = ()

    def job(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the overrides of the job that tries some parameters."""
        return (*self.fixed, *(f"{key}={params[key]}" for key in self.distributions))

    def samples(self) -> list[dict[str, Any]]:
        """Return a few combinations, in which each choice and both ends of each interval occur."""
        values = {key: _examples(distribution) for key, distribution in self.distributions.items()}
        most = max(map(len, values.values()))
        return [{key: own[n % len(own)] for key, own in values.items()} for n in range(most)]

    def grid(self) -> list[dict[str, Any]]:
        """Return every combination.

        Raises:
            ConfigError: there are infinitely many.
        """
        values = {key: _choices(distribution) for key, distribution in self.distributions.items()}
        endless = [key for key, own in values.items() if not own]
        if endless:
            raise ConfigError(
                f"hydra.sweeper.sampler: none, so each combination is tried once, but {', '.join(endless)} may be any "
                "number of an interval. Give a sampler: hydra.sweeper.sampler={_target_: optuna.samplers.TPESampler}."
            )
        return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def parse(params: Mapping[str, Any], arguments: Sequence[str], config_loader: Any = None) -> Space:
    """Read what is searched from overrides.

    Args:
        params: of the configuration, by their keys.
        arguments: of the command line, which replace those of the same key.
        config_loader: Hydra's, which knows the options of a group for ``glob``.

    Raises:
        ConfigError: nothing is searched, or an interval is none.

    Example:
        >>> space = parse({"observer": "choice(minmax, percentile)"}, ["seed=3"])
        >>> [space.job(params) for params in space.grid()]
        [('seed=3', 'observer=minmax'), ('seed=3', 'observer=percentile')]
    """
    lines = [*(f"{key}={value}" for key, value in params.items() if value is not None), *arguments]
    parsed = OverridesParser.create(config_loader=config_loader).parse_overrides(lines)
    overrides = {override.get_key_element(): override for override in parsed}
    searched = {key: override for key, override in overrides.items() if override.is_sweep_override()}
    if not searched:
        raise ConfigError(
            "hydra.sweeper.params: nothing to search. Give an override several values: "
            "'observer=minmax,percentile' or '+model.dropout=interval(0, 0.5)'."
        )
    fixed = tuple(str(override.input_line) for key, override in overrides.items() if key not in searched)
    return Space({key: _distribution(override) for key, override in searched.items()}, fixed)


def _distribution(override: Override) -> BaseDistribution:
    swept: Any = override.value()
    try:
        if override.is_interval_sweep():
            whole = isinstance(swept.start, int) and isinstance(swept.end, int)
            return (IntDistribution if whole else FloatDistribution)(swept.start, swept.end, log="log" in swept.tags)
        swept.shuffle = False  # the sampler has an order of its own, and a space is the same in every sweep
        if override.is_range_sweep():
            return _steps(swept.start, swept.step, list(override.sweep_iterator()))
        return CategoricalDistribution(tuple(dict.fromkeys(override.sweep_string_iterator())))
    except ValueError as error:
        raise ConfigError(f"hydra.sweeper.params: {override.input_line} cannot be searched: {error}") from error


def _steps(start: float, step: float, points: Sequence[Any]) -> BaseDistribution:
    if not points:
        raise ValueError("it holds no value.")
    if all(isinstance(point, int) for point in points):
        return IntDistribution(min(points), max(points), step=abs(int(step)))
    # Optuna refuses .7000000000000001 as the seventh step of .1.
    ends = Decimal(str(start)), Decimal(str(start)) + (len(points) - 1) * Decimal(str(step))
    return FloatDistribution(float(min(ends)), float(max(ends)), step=abs(float(step)))


def _choices(distribution: BaseDistribution) -> list[Any]:
    """All values, in order; none where they cannot be counted."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        first, step = Decimal(str(distribution.low)), Decimal(str(distribution.step))
        steps = int((Decimal(str(distribution.high)) - first) / step)
        return [float(first + n * step) for n in range(steps + 1)]
    return []


def _examples(distribution: Any) -> list[Any]:
    chosen = isinstance(distribution, CategoricalDistribution)
    return list(distribution.choices) if chosen else [distribution.low, distribution.high]
