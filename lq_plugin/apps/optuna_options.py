"""The options of the Optuna sweeper, which Hydra checks when it composes ``hydra.sweeper``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig


@dataclass
class Options:
    """What to search, how, and where it is kept.

    Args:
        params: overrides of every job, in Hydra's syntax: ``choice``, ``range``, ``interval``, ``tag(log, interval)``,
            ``int(interval)`` or a list with commas for what is searched. The command line adds to them and replaces
            them; ``None`` takes one out.
        direction: ``"maximize"`` or ``"minimize"`` for each value that a job returns. Further values are constraints:
            at most 0 where they are met.
        n_trials: how many trials the study shall have, those of earlier and of other sweeps included.
        n_jobs: how many jobs the launcher gets at a time.
        sampler: ``_target_`` of a sampler of Optuna with its options, such as ``optuna.samplers.TPESampler``; by
            default each combination of ``params`` is tried once, in order. A ``seed`` is that of the first trial, and
            each trial has the next one: a sweep that goes on chooses what it would have chosen.
        study_name: by default a digest of the options of all jobs, their code and the search space.
        storage: the study's journal, a file that may hold several studies.
    """

    _target_: str = "hydra_plugins.lq_optuna.OptunaSweeper"
    _recursive_: bool = False  # a sampler is made for each trial
    params: dict[str, Any] = field(default_factory=dict)
    direction: Any = "minimize"
    n_trials: int = 20
    n_jobs: int = 1
    sampler: Any = None
    study_name: str | None = None
    storage: str = "studies.journal"

    @property
    def directions(self) -> list[str]:
        """The direction of each objective."""
        return [self.direction] if isinstance(self.direction, str) else list(self.direction)


@dataclass(frozen=True)
class Composed:
    """What Hydra made of the command line.

    Args:
        config: of the whole sweep, with its ``hydra`` section.
        loader: composes the configurations of jobs.
        launcher: runs jobs.
    """

    config: DictConfig
    loader: Any
    launcher: Launcher
