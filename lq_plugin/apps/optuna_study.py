"""A study in a file that several processes work on at the same time, each of which may be killed at any moment.

The file is Optuna's journal. Each process holds a lock of its own beside it, which the system takes from it when it
ends, however it ends: so the others know which trials nobody works on any more.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import optuna
from filelock import FileLock, Timeout
from hydra.utils import to_absolute_path
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from lq_plugin.errors import ConfigError

_WORKER, _RETRIED, _REASON, _MADE_OF = "worker", "retry_of", "reason", "made_of"  # attributes in the journal
_BEGUN = (TrialState.COMPLETE, TrialState.RUNNING)
_LINE = b'{"op_code":'  # how each line of a journal begins
_URL = re.compile(r"\w+://")


class SharedStudy:
    """A study and the lock of this process; made by :func:`opened`.

    Args:
        study: Optuna's.
        file: its journal.
        lock: whoever writes to the journal, or decides from what it reads there, holds it.
        worker: name of this process in the journal.
    """

    def __init__(self, study: Study, file: Path, lock: FileLock, worker: str) -> None:
        self.study = study
        self.file = file
        self._lock = lock
        self._worker = worker
        self._began = datetime.now()

    def trials(self, state: TrialState | None = None) -> list[FrozenTrial]:
        """Return all trials of a state, or of any, as the journal has them now."""
        return self.study.get_trials(deepcopy=False, states=None if state is None else (state,))

    def unfinished(self) -> bool:
        """Whether a trial is being worked on."""
        return bool(self.trials(TrialState.RUNNING))

    def enqueue(self, combinations: Sequence[Mapping[str, Any]]) -> None:
        """Let some parameters be the next to be tried, except those that have been."""
        with self._lock:
            for params in combinations:
                self.study.enqueue_trial(dict(params), skip_if_exists=True)

    def ask(
        self,
        distributions: Mapping[str, BaseDistribution],
        make_sampler: Callable[[int], optuna.samplers.BaseSampler],
        most: int,
        n_trials: int,
    ) -> list[Trial]:
        """Begin the next trials, first those whose process was killed or whose job failed in an earlier sweep.

        Args:
            distributions: what is searched.
            make_sampler: gets the number of trials before this one. A sampler with the same seed in every process would
                choose the same parameters again.
            most: how many at a time.
            n_trials: how many the study may have: finished, and being worked on.
        """
        with self._lock:
            working = self._recover()
            begun = sum(trial.state in _BEGUN or self._failed_now(trial, working) for trial in self.trials())
            asked: list[Trial] = []
            for position in range(begun, min(begun + most, n_trials)):
                self.study.sampler = make_sampler(position)
                asked.append(self.study.ask(dict(distributions)))
                asked[-1].set_user_attr(_WORKER, self._worker)
            return asked

    def tell(self, trial: Trial, values: Sequence[float], constraints: Mapping[str, float]) -> None:
        """Finish a trial.

        Args:
            trial: that :meth:`ask` began.
            values: of the objectives.
            constraints: by their names; met where they are at most 0.
        """
        for name, value in constraints.items():
            trial.set_constraint(name, value)
        self.study.tell(trial, list(values))

    def fail(self, trial: Trial, reason: str) -> None:
        """Finish a trial without values; the next sweep tries its parameters again."""
        trial.set_user_attr(_REASON, reason)
        self.study.tell(trial, state=TrialState.FAIL)

    def last_reason(self) -> str:
        """Return why the last job failed that did."""
        return str([trial.user_attrs.get(_REASON) for trial in self.trials(TrialState.FAIL)][-1])

    def known(self, params: Mapping[str, Any]) -> FrozenTrial | None:
        """Return a finished trial of the same parameters."""
        return next((trial for trial in self.trials(TrialState.COMPLETE) if trial.params == params), None)

    def _recover(self) -> set[str]:
        """Enqueue what nobody works on any more, and return the workers that are alive."""
        trials = self.trials()
        working = {worker for worker in {_worker(trial) for trial in trials} if self._is_alive(worker)}
        for trial in trials:
            if trial.state == TrialState.RUNNING and _worker(trial) not in working:
                self.study.tell(trial.number, state=TrialState.FAIL)
        retried = {trial.user_attrs.get(_RETRIED) for trial in trials}
        for trial in self.trials(TrialState.FAIL):
            if trial.params and trial.number not in retried and not self._failed_now(trial, working):
                self.study.enqueue_trial(trial.params, user_attrs={_RETRIED: trial.number})
        return working

    def _failed_now(self, trial: FrozenTrial, working: set[str]) -> bool:
        """Whether its job failed in this sweep, or in another one that goes on; not before, and it was not killed."""
        ended = trial.datetime_complete or self._began
        return _REASON in trial.user_attrs and (_worker(trial) in working or ended >= self._began)

    def _is_alive(self, worker: str) -> bool:
        if worker == self._worker:
            return True
        place = _place(self.file, worker)
        if not re.fullmatch("[0-9a-f]{32}", worker) or not place.exists():
            return False
        try:
            with FileLock(place).acquire(blocking=False):
                place.unlink(missing_ok=True)
        except Timeout:
            return True
        return False


@contextmanager
def opened(storage: str, name: str, directions: Sequence[str], made_of: str) -> Iterator[SharedStudy]:
    """Work on a study, which is created if there is none of this name.

    Args:
        storage: path of its journal.
        name: of the study.
        directions: of its objectives.
        made_of: digest of what its trials have in common; see Raises.

    Raises:
        ConfigError: the file cannot be written to or is no journal, or the study there was made of something else.
    """
    if _URL.match(storage):
        raise ConfigError(f"hydra.sweeper.storage: {storage!r} is a URL. Studies are kept in a file: give its path.")
    file, worker = Path(to_absolute_path(storage)), uuid.uuid4().hex
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock, alive = FileLock(f"{file}.lock"), FileLock(_place(file, worker))
        with lock:
            study = _created(file, lock, name, directions)
            known = study.user_attrs.get(_MADE_OF)
            if known is None:
                study.set_user_attr(_MADE_OF, made_of)
            alive.acquire()
    except OSError as error:
        raise ConfigError(
            f"hydra.sweeper.storage: {str(file)!r} cannot be written to ({error}). Give a file in another folder."
        ) from error
    try:
        if known not in (None, made_of):
            raise ConfigError(
                f"hydra.sweeper.study_name: {name!r} in {str(file)!r} is a study of other options, code or values. "
                "Give another name, or none: it is then a digest of these."
            )
        yield SharedStudy(study, file, lock, worker)
    finally:
        alive.release()
        _place(file, worker).unlink(missing_ok=True)


def _created(file: Path, lock: FileLock, name: str, directions: Sequence[Any]) -> Study:
    """Open the journal, with a lock that the system takes from a killed process; Optuna's own would stay for 30 s."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = JournalFileBackend(str(file), lock_obj=cast("Any", lock))
    try:
        storage = JournalStorage(journal)  # reads it
        _drop_half_line(file)
        return optuna.create_study(storage=storage, study_name=name, directions=list(directions), load_if_exists=True)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"hydra.sweeper.storage: {str(file)!r} is no journal of Optuna, or damaged ({error}). Give another file."
        ) from error


def _drop_half_line(file: Path) -> None:
    """Remove what a writer left that was killed or had no more space: Optuna would read nothing after it.

    Raises:
        ValueError: it is not the beginning of a line of a journal.
    """
    content = file.read_bytes()
    half = content.rpartition(b"\n")[2]
    if not half.startswith(_LINE[: len(half)]):
        raise ValueError("its last line is of something else")
    if half:
        os.truncate(file, len(content) - len(half))


def _worker(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get(_WORKER))


def _place(file: Path, worker: str) -> Path:
    return file.with_name(f"{file.name}.{worker}.worker")
