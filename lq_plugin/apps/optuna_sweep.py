"""A sweep whose jobs Optuna chooses: ask the study, let Hydra's launcher run the jobs, tell the study."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.utils import get_object, instantiate, to_absolute_path
from omegaconf import OmegaConf, open_dict
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from lq_plugin import checksums
from lq_plugin.apps import command, sources
from lq_plugin.apps.optuna_options import Composed, Options
from lq_plugin.apps.optuna_space import Space, parse
from lq_plugin.apps.optuna_study import SharedStudy, opened
from lq_plugin.errors import ConfigError, EvaluationError, unknown_name
from lq_plugin.printing import figure
from lq_plugin.progress import note, note_once
from lq_plugin.report.decoder import encode
from lq_plugin.report.environment import environment
from lq_plugin.selection import pareto_front

_DIRECTIONS = ("maximize", "minimize")
_FOLDER = "${hydra.job.num}"  # Hydra's default for the folder of a job
_POLL = 1.0  # seconds between looks at what other processes do

logger = logging.getLogger(__name__)


def optimize(composed: Composed, options: Options, arguments: Sequence[str]) -> None:
    """Run jobs until the study has its trials, and say which were the best.

    Args:
        composed: from the command line.
        options: of the study.
        arguments: overrides of the command line.

    Raises:
        ConfigError: an option cannot work; raised before any job runs.
        EvaluationError: every trial failed.
    """
    _check(options)
    space = parse(options.params, arguments, composed.loader)
    grid = space.grid() if options.sampler is None else None
    n_trials = options.n_trials if grid is None else min(options.n_trials, len(grid))
    made_of = _digest(composed, space, options.directions)
    name = options.study_name or f"study-{made_of}"
    with opened(options.storage, name, options.directions, made_of) as study:
        study.enqueue([] if grid is None else grid[:n_trials])
        _say_begin(study, n_trials)
        jobs, sampler = Jobs(composed, space, options), _sampler(options)
        while (asked := study.ask(space.distributions, sampler, options.n_jobs, n_trials)) or study.unfinished():
            if asked:
                jobs.run(study, asked)
            else:  # of other processes, any of which may be killed
                note_once(f"waiting for the last trials of {name}, which other processes run …")
                time.sleep(_POLL)
        if not study.trials(TrialState.COMPLETE):
            raise EvaluationError(f"every job of the sweep failed, the last one with: {study.last_reason()}")
        _say_end(study, jobs.names, n_trials)


def _check(options: Options) -> None:
    for direction in options.directions:
        if direction not in _DIRECTIONS:
            raise unknown_name("hydra.sweeper.direction", str(direction), _DIRECTIONS)
    for name in ("n_trials", "n_jobs"):
        if getattr(options, name) < 1:
            raise ConfigError(f"hydra.sweeper.{name}: {getattr(options, name)} is less than 1.")
    target = options.sampler.get("_target_") if isinstance(options.sampler, Mapping) else None
    if options.sampler is not None and (target is None or target.endswith(".GridSampler")):
        raise ConfigError(
            f"hydra.sweeper.sampler: {target or options.sampler} cannot be used. Give null, which tries each "
            "combination once, or another sampler of Optuna: {_target_: optuna.samplers.TPESampler}."
        )


def _digest(composed: Composed, space: Space, directions: Sequence[str]) -> str:
    """Compose jobs in which every value occurs, so that a wrong one is found now; return what identifies them all."""
    configs: list[Any] = []
    for params in space.samples():
        config = composed.loader.load_sweep_config(composed.config, [*space.job(params)])
        with open_dict(config):
            del config["hydra"]
        configs.append(OmegaConf.to_container(config))
    files = {Path(to_absolute_path(config["ckpt_path"])) for config in configs if config.get("ckpt_path")}
    targets = set(re.findall(r'"_target_": "([^"]+)"', json.dumps(configs, default=str)))
    content = {
        "configs": configs,
        "space": {key: str(distribution) for key, distribution in space.distributions.items()},
        "directions": directions,
        "code": sources.versions(map(get_object, sorted(targets))),
        "checkpoints": [checksums.of_file(file) for file in sorted(files) if file.is_file()],
        "environment": encode(replace(environment(), threads=None)),
    }
    return checksums.of_json(content, default=str)[:12]


def _sampler(options: Options) -> Callable[[int], BaseSampler]:
    """Return what makes the sampler of a trial; a grid's are all enqueued, and none is sampled."""
    if options.sampler is None:
        return lambda _: RandomSampler()
    seed = options.sampler.get("seed")
    return lambda position: instantiate(options.sampler, **({} if seed is None else {"seed": seed + position}))


class Jobs:
    """Runs the jobs of trials.

    Args:
        composed: with the launcher.
        space: what the trials choose from.
        options: of the study.

    Attributes:
        names: of the values that a job returns.
    """

    def __init__(self, composed: Composed, space: Space, options: Options) -> None:
        self._composed = composed
        self._space = space
        self._directions = options.directions
        self._ran = 0
        # Sweeps that share a study may have begun in the same second, and so have the same folder.
        self._own_folders = composed.config.hydra.sweep._get_node("subdir")._value() == _FOLDER
        self.names = list(composed.config.get("objectives") or [])

    def run(self, study: SharedStudy, trials: Sequence[Trial]) -> None:
        """Run a job for each trial, except where the values of its parameters are known, and tell the study."""
        same: dict[tuple[str, ...], list[Trial]] = {}
        for trial in trials:
            known = study.known(trial.params)
            if known is not None:
                study.tell(trial, known.values, known.constraints)
            else:
                same.setdefault(self._space.job(trial.params), []).append(trial)
        if not same:
            return
        jobs = [self._overrides(job, alike[0].number) for job, alike in same.items()]
        returned = self._composed.launcher.launch(jobs, initial_job_idx=self._ran)
        self._ran += len(jobs)
        for alike, job in zip(same.values(), returned, strict=True):
            self._tell(study, alike, job)

    def _overrides(self, job: Sequence[str], number: int) -> list[str]:
        return [*job, *([f"hydra.sweep.subdir={number}"] if self._own_folders else [])]

    def _tell(self, study: SharedStudy, trials: Sequence[Trial], job: Any) -> None:
        try:
            values, constraints = self._figures(job.return_value)
        except Exception as error:  # of the job, which is raised when its value is read
            reason = command.one_line(error)
            if isinstance(error, command.MISTAKES):
                note(f"trial {trials[0].number} failed: {reason}")
            else:
                logger.error("trial %d failed", trials[0].number, exc_info=error)
            for trial in trials:
                study.fail(trial, reason)
            return
        for trial in trials:
            study.tell(trial, values, constraints)

    def _figures(self, returned: Any) -> tuple[list[float], dict[str, float]]:
        """Return objectives and constraints of what a job returned."""
        given = list(returned) if isinstance(returned, tuple | list) else [returned]
        number = len(self._directions)
        if len(given) < number or any(value is None or math.isnan(value) for value in given):
            raise EvaluationError(f"the job returned {returned}: hydra.sweeper.direction asks for {number} numbers.")
        values = [float(value) for value in given]
        return values[:number], {self._name(n): values[n] for n in range(number, len(values))}

    def _name(self, n: int) -> str:
        return self.names[n] if n < len(self.names) else f"constraint {n - len(self._directions)}"


def _say_begin(study: SharedStudy, n_trials: int) -> None:
    finished = len(study.trials(TrialState.COMPLETE))
    note(f"{study.study.study_name} in {study.file}: {finished} of {n_trials} trials are finished")


def _say_end(study: SharedStudy, names: Sequence[str], n_trials: int) -> None:
    """Print those trials that meet the constraints and that no other one dominates."""
    done = study.trials(TrialState.COMPLETE)
    distinct = list({json.dumps(trial.params, sort_keys=True): trial for trial in reversed(done)}.values())[::-1]
    met = [trial for trial in distinct if all(value <= 0 for value in trial.constraints.values())]
    note(f"{study.study.study_name}: {len(done)} of {n_trials} trials are finished, {len(distinct)} of them different")
    if not met:
        note("no trial meets the constraints; the closest:")
        met = sorted(distinct, key=lambda trial: max(trial.constraints.values()))[:1]
    signs = [-1 if direction.name == "MAXIMIZE" else 1 for direction in study.study.directions]
    points = [[sign * value for sign, value in zip(signs, trial.values, strict=True)] for trial in met]
    for n in sorted(pareto_front(points)):
        note(_described(met[n], names))


def _described(trial: FrozenTrial, names: Sequence[str]) -> str:
    named = [*zip([*names, *["value"] * len(trial.values)], trial.values, strict=False), *trial.constraints.items()]
    figures = ", ".join(f"{name} {figure(value, '.5g')}" for name, value in named)
    params = " ".join(f"{key}={value}" for key, value in trial.params.items())
    return f"  trial {trial.number}: {figures} with {params}"
