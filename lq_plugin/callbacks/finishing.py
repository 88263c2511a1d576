"""The end of fit: the first of our callbacks does, once, what all of them ask for."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from lq_plugin import pipeline
from lq_plugin.callbacks import checkpoint as checkpoints
from lq_plugin.callbacks.bars import display_of
from lq_plugin.callbacks.publishing import publish
from lq_plugin.callbacks.ranks import on_one_process
from lq_plugin.checkpoints import Checkpoint
from lq_plugin.evaluation.loaders import data_of
from lq_plugin.evaluation.loop import Data
from lq_plugin.interruption import account
from lq_plugin.plan import Finished, Plan
from lq_plugin.progress import note, shown_on
from lq_plugin.report.manifest import Config
from lq_plugin.source import Source
from lq_plugin.steps import say
from lq_plugin.store import STORE, Store

# The Trainer gives each of its callbacks these methods of the LightningModule, and another Trainer gives its own. With
# them, a copy of a callback would be a copy of the whole run.
_OF_THE_MODULE = ("log", "log_dict")


@dataclass(frozen=True)
class Origin:
    """Where weights and batches come from.

    Args:
        module: the LightningModule.
        data: the batches of the splits.
        read: reads the checkpoint that a ``checkpoint`` option means.
        store: what earlier runs have finished.
    """

    module: Any
    data: Data
    read: Callable[[str], Checkpoint]
    store: Store
    _sources: dict[tuple[str | None, str], Source] = field(default_factory=dict, init=False, repr=False)

    def source(self, target: str | None, checkpoint: str) -> Source:
        """Return a target with the weights of a checkpoint: the same one to all callbacks that ask for them."""
        made = Source(self.module, target, lambda: self.read(checkpoint), self.data)
        return self._sources.setdefault((target, checkpoint), made)


class RunContext(Callback):
    """What a command passes to the end of fit.

    Args:
        config: builtins stored in the manifest as the configuration of the whole run.
        store: where finished steps are kept; below the Trainer's ``default_root_dir`` by default.
        command: how to call it again, word by word.
    """

    def __init__(self, config: Mapping[str, Any], store: Store | None = None, command: Sequence[str] = ()) -> None:
        self.config = config
        self.store = store
        self.command = tuple(command)


class FinishingCallback(Callback):
    """Base of all of our callbacks, in any order and number. They can be copied and pickled at any time.

    The first one in a Trainer's list calls :func:`finish`, which asks each what it wants, and gives each the result.
    """

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, for ``copy`` and ``pickle`` alike: libraries use both, at any time.

        A subclass omits what only the original may have: what it shadows, graphs, modules.
        """
        return {name: value for name, value in vars(self).items() if name not in _OF_THE_MODULE}

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Do everything that is asked for, where this is the first of our callbacks."""
        if finishing(trainer)[0] is self:
            with after_training(trainer) as works:
                if works:
                    finish(trainer, origin_of(trainer, pl_module))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Say what was made before Ctrl+C: Lightning ends the process without a traceback."""
        ours = trainer.state.fn == "fit" and trainer.is_global_zero and finishing(trainer)[0] is self
        if ours and isinstance(exception, KeyboardInterrupt):
            note(account(exception))

    @abstractmethod
    def ask(self, trainer: Any, origin: Origin, plan: Plan) -> Plan:
        """Return the plan with what this callback wants."""

    @abstractmethod
    def receive(self, finished: Finished) -> None:
        """Take the results."""


def finishing(trainer: Any) -> list[FinishingCallback]:
    """Return the callbacks of a Trainer that take part, in the order of its list."""
    return [callback for callback in trainer.callbacks if isinstance(callback, FinishingCallback)]


def origin_of(trainer: Any, module: Any) -> Origin:
    """Return where weights and batches come from when a fit ends."""
    store = context_of(trainer).store or Store(Path(trainer.default_root_dir) / STORE)
    return Origin(module, data_of(trainer), lambda choice: checkpoints.read(trainer, choice), store)


def context_of(trainer: Any) -> RunContext:
    """Return what a command has passed to this run."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, RunContext)), RunContext({}))


def is_of_a_command(trainer: Any) -> bool:
    """Whether a command runs this Trainer, which turns what went wrong into its last line and exit code."""
    return any(isinstance(callback, RunContext) for callback in trainer.callbacks)


def finish(trainer: Any, origin: Origin, trained: bool = True) -> None:
    """Do what the callbacks of a Trainer ask for, and hand them the results.

    Args:
        trainer: whose callbacks and loggers these are; it need not have fitted anything.
        origin: where weights and batches come from.
        trained: see :class:`~lq_plugin.plan.Plan`.
    """
    with shown_on(display_of(trainer)):
        _finish(trainer, origin, trained)


def _finish(trainer: Any, origin: Origin, trained: bool) -> None:
    seed = os.environ.get("PL_GLOBAL_SEED", "")
    plan = Plan(
        seed=int(seed) if seed.lstrip("-").isdecimal() else None,
        config=Config(run=context_of(trainer).config, command=context_of(trainer).command),
        trained=trained,
    )
    for callback in finishing(trainer):
        plan = callback.ask(trainer, origin, plan)
    finished = pipeline.finish(plan, origin.store, partial(publish, trainer))
    for callback in finishing(trainer):
        callback.receive(finished)


@contextmanager
def after_training(trainer: Any) -> Iterator[bool]:
    """Tell whether this process does the work at the end of fit, and let no error of it out.

    ``KeyboardInterrupt`` and ``SystemExit`` pass. What can fail for one candidate or artifact is caught and recorded
    where it is made; this is for the rest, such as a disk that is full.

    Args:
        trainer: at the end of fit; see :func:`~lq_plugin.callbacks.ranks.on_one_process`.
    """
    with on_one_process(trainer) as works:
        try:
            yield works
        except Exception as error:
            say("the work after training did not finish; training itself did, and what was made so far is kept", error)
            for callback in finishing(trainer):
                callback.receive(Finished({}, error=error))
