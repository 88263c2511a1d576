"""What every quantizing callback has: a name, a target, a checkpoint, a scheme, and a candidate when fit ends."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import NoneType
from typing import Any

from lq_plugin import patterns
from lq_plugin.callbacks import checkpoint as checkpoints
from lq_plugin.callbacks import ranks, sanity
from lq_plugin.callbacks.auto_target import AutoTarget
from lq_plugin.callbacks.finishing import FinishingCallback, Origin
from lq_plugin.candidate import Candidate
from lq_plugin.errors import ConfigError, UnsupportedError
from lq_plugin.graph.capture import Call
from lq_plugin.graph.choosing import outermost
from lq_plugin.graph.copying import module_names
from lq_plugin.graph.signature import check_inputs
from lq_plugin.jobs import Job
from lq_plugin.names import check_distinct, check_name
from lq_plugin.options import check_type
from lq_plugin.plan import Finished, Plan
from lq_plugin.progress import begin_run
from lq_plugin.scheme import AUTO, Scheme, as_dict
from lq_plugin.source import Source
from lq_plugin.steps import Step, attempt, reason_of
from lq_plugin.targets import resolve_target


class QuantizingCallback(FinishingCallback):
    """Base of the callbacks that make a candidate when fit ends.

    Args:
        name: unique among the callbacks of a Trainer; names the candidate and its folder.
        target: dotted path of the module that is quantized; the LightningModule itself by default; ``"auto"`` for the
            LightningModule where its forward can be captured, else the largest of its submodules that can be.
        checkpoint: whose weights are quantized: ``"best"`` or ``"last"`` of the Trainer's first ModelCheckpoint,
            ``"best:<monitor>"`` of the one that monitors this metric, or ``"live"`` for the weights in memory.
        dynamic_dims: dynamic dimensions besides the batch, by input name.
        scheme: what is quantized and how.

    Attributes:
        candidate: what artifacts are made from; there after fit, and not in copies of this callback.
        failure: why there can be no candidate, as far as it is known.
        auto: what ``target="auto"`` takes, once that is known.
    """

    def __init__(
        self,
        name: str,
        target: str | None,
        checkpoint: str,
        dynamic_dims: Mapping[str, Sequence[int]] | None,
        scheme: Scheme,
    ) -> None:
        check_type("target", target, str, NoneType)
        check_type("checkpoint", checkpoint, str)
        check_type("dynamic_dims", dynamic_dims, Mapping, NoneType)
        for given, dims in (dynamic_dims or {}).items():
            check_type("dynamic_dims", given, str)
            check_type(f"dynamic_dims: {given!r}", dims, Sequence)
        self.name = check_name(name)
        self.target = target
        self.checkpoint = checkpoints.check_choice(checkpoint)
        self.dynamic_dims = dict(dynamic_dims or {})
        self.scheme = scheme
        self._check_auto()
        self.auto = self._undecided()
        self.candidate: Candidate | None = None
        self.failure: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, without graphs and modules, because not all of them can be pickled."""
        return super().__getstate__() | {"candidate": None, "auto": copy.copy(self.auto)}

    def _undecided(self) -> AutoTarget:
        return AutoTarget(self.name, self.target, else_whole=self.scheme.method == "dynamic")

    def _check_auto(self) -> None:
        """Refuse with ``target="auto"`` the options that name something in a target, which is not known yet."""
        given = {"dynamic_dims": list(self.dynamic_dims), "skip": self.scheme.skip, "only": self.scheme.only}
        for option, names in given.items():
            named = [name for name in names if not patterns.is_type(name)]
            if self.target == AUTO and named:
                raise ConfigError(
                    f"{option}: {named[0]!r} names a part of the target, and target='auto' chooses the target itself. "
                    "Allowed with it are operator types in skip and only, such as 'op:conv2d'. Name the target."
                )

    @property
    def path(self) -> str | None:
        """Path of the module that is quantized; ``None`` for the LightningModule, or while ``"auto"`` is undecided."""
        return self.auto.path

    @property
    def error(self) -> str | None:
        """Why there is no candidate, as manifests record it."""
        return None if self.failure is None else reason_of(self.failure)

    @property
    def state_key(self) -> str:
        """Key of this callback's state in checkpoints; holds its unique name."""
        return f"{type(self).__qualname__}[{self.name}]"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check what can be known before training."""
        if stage != "fit":
            return
        sanity.check_strategy(trainer.strategy, type(self).__name__)
        begin_run()
        self.candidate = self.failure = None
        self.auto.seen()
        self.auto = self._undecided()
        check_distinct(callback.name for callback in quantizing(trainer))
        checkpoints.monitored(trainer, self.checkpoint)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check what depends on the module, now that its own ``setup`` and ``configure_model`` have built it."""
        ranks.meet(trainer)
        target = resolve_target(pl_module, self.path)
        patterns.check_modules(self.scheme, module_names(target))
        check_inputs(self.dynamic_dims, target.forward)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Stop the run before training if the model allows no candidate at all; warn if it allows only some."""
        callbacks = quantizing(trainer)
        if callbacks[-1] is self:  # so every one has looked at the model
            sanity.decide(callbacks)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Watch what ``target="auto"`` may take."""
        self.auto.seen()  # a pass may have ended without a hook
        if self.failure is None:
            self.auto.watch(pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Stop watching when a run is interrupted."""
        super().on_exception(trainer, pl_module, exception)
        self.auto.seen()

    def ask(self, trainer: Any, origin: Origin, plan: Plan) -> Plan:
        """Ask for the candidate."""
        if self.auto.undecided and self.failure is None:
            one_batch = replace(origin, data=origin.data.limited("validate", 1))  # of each loader
            what = f"{self.name!r}: target='auto' finds nothing to quantize"
            self.failure = attempt(what, lambda: self.decide(one_batch)).error
        source = origin.source(self.path, self.checkpoint)
        return replace(plan, jobs=(*plan.jobs, self.job(source)))

    def decide(self, origin: Origin) -> None:
        """Decide what ``target="auto"`` takes, where this was not done in validation.

        Args:
            origin: of the model, with data for its first call.
        """
        whole = origin.source(None, self.checkpoint)
        try:
            call = whole.example(type(self).__name__).call
        except UnsupportedError:  # the forward is never called
            self.auto.decide(whole.model, None, self._calls_after_training(origin))
        else:
            self.auto.decide(whole.model, call)

    def _calls_after_training(self, origin: Origin) -> Iterator[tuple[str, Call]]:
        for name in outermost(origin.module):
            with suppress(UnsupportedError):  # it is not called either
                yield name, origin.source(name, self.checkpoint).example(type(self).__name__).call

    @abstractmethod
    def job(self, source: Source) -> Job:
        """Return how the candidate is made from the weights of a source."""

    def receive(self, finished: Finished) -> None:
        """Take the candidate, or why there is none."""
        step = finished.candidates.get(self.name, Step(error=finished.error))
        self.candidate, self.failure = step.result, step.error

    def options(self) -> dict[str, Any]:
        """Return this callback's exact configuration as builtins, for the manifest."""
        return {
            "name": self.name,
            "target": self.target,
            "checkpoint": self.checkpoint,
            "dynamic_dims": {name: list(dims) for name, dims in self.dynamic_dims.items()},
            **as_dict(self.scheme),
            **({"taken": vars(self.auto.choice)} if self.auto.choice is not None else {}),
        }


def quantizing(trainer: Any) -> list[QuantizingCallback]:
    """Return the callbacks of a Trainer that make candidates, in the order of its list."""
    return [callback for callback in trainer.callbacks if isinstance(callback, QuantizingCallback)]
