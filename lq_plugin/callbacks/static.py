"""Static quantization: calibrated during validation, INT8 when fit ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from lq_plugin.callbacks import sanity
from lq_plugin.callbacks.quantizing import QuantizingCallback
from lq_plugin.callbacks.ranks import of_every_process
from lq_plugin.errors import CalibrationError, ConfigError, UnsupportedError, as_calibration_error
from lq_plugin.evaluation.loaders import numbers_of_batches
from lq_plugin.graph.calibration import Calibration
from lq_plugin.graph.capture import Call, Dims
from lq_plugin.graph.choosing import Choice, Taken, chosen
from lq_plugin.graph.example import varying_state
from lq_plugin.graph.observation import Observation, ObservationPlan, merged
from lq_plugin.graph.prepare import TrackedTarget
from lq_plugin.graph.repeats import repeats_in
from lq_plugin.jobs import StaticJob, calibration_in
from lq_plugin.observers import Observer
from lq_plugin.options import check_type
from lq_plugin.scheme import AUTO, DEFAULT_OBSERVER, Scheme
from lq_plugin.source import Source
from lq_plugin.targets import never_called, resolve_target


class StaticQuantization(QuantizingCallback):
    """Gather statistics while the model is validated, and quantize it when fit ends.

    In every validation pass (not in the sanity check) the graph of the target runs beside the model for a bounded,
    random subset of the batches. The module's own forward produces all that ``validation_step`` sees; weights,
    optimizer, metrics and random state are the same as without this callback.

    Args:
        name: unique among the callbacks of a Trainer; names the candidate and its folder.
        target: dotted path of the module that is quantized, such as ``"net"``; the LightningModule by default;
            ``"auto"`` for the LightningModule where its forward can be captured, else the largest of its submodules
            that can be.
        samples: how many samples to observe in each validation pass, rounded up to whole batches.
        checkpoint: whose weights are quantized: ``"best"`` or ``"last"`` of the Trainer's first ModelCheckpoint,
            ``"best:<monitor>"`` of the one that monitors this metric, or ``"live"`` for the weights in memory.
        seed: of the private generators that choose the observed batches and the algorithms' samples.
        dynamic_dims: dynamic dimensions besides the batch, by input name: ``{"x": [2, 3]}``.
        observer: see :class:`~lq_plugin.Scheme`, as are all that follow; ``None`` stands for the default.
        activation_dtype: ``"uint8"`` or ``"int8"``; by default what the kernels of each runtime want.
        activation_symmetric: zero point in the middle of the range; by default as those kernels want it.
        weight_granularity: ``"per_channel"`` or ``"per_tensor"``.
        weight_symmetric: zero point 0.
        reduce_range: weights use 7 bits; by default as ``targets_cpu`` says.
        embeddings: whether look-up tables are quantized too; they are by default.
        skip: what stays float: globs over module names and ``"op:<operator type>"``.
        only: where given, nothing else is quantized.
        targets_cpu: ``"this"``, ``"any"`` or ``"vnni"``: for which CPUs, where ``reduce_range`` is not given.
        algorithms: ``"auto"``, names of algorithms, or ``[]`` for plain calibration. They run when fit ends, on samples
            of the validation data, and each is kept only if it helps.
        algorithm_samples: how many samples they get: three quarters to learn from, one quarter held out.
        algorithm_time_limit: seconds after which no further algorithm is started; ``None`` for no limit.

    Raises:
        ConfigError: an option cannot work; raised when built, or in ``fit`` before training starts.
    """

    def __init__(
        self,
        name: str = "static",
        target: str | None = None,
        samples: int = 512,
        checkpoint: str = "best",
        seed: int = 0,
        dynamic_dims: Mapping[str, Sequence[int]] | None = None,
        observer: Observer | str | None = DEFAULT_OBSERVER,
        activation_dtype: str | None = Scheme.activation_dtype,
        activation_symmetric: bool | None = Scheme.activation_symmetric,
        weight_granularity: str = Scheme.weight_granularity,
        weight_symmetric: bool = Scheme.weight_symmetric,
        reduce_range: bool | None = Scheme.reduce_range,
        embeddings: bool | None = Scheme.embeddings,
        skip: Sequence[str] = Scheme.skip,
        only: Sequence[str] = Scheme.only,
        targets_cpu: str = Scheme.targets_cpu,
        algorithms: Sequence[str] | str | None = AUTO,
        algorithm_samples: int = Scheme.algorithm_samples,
        algorithm_time_limit: float | None = Scheme.algorithm_time_limit,
    ) -> None:
        scheme = Scheme(
            method="static",
            observer=observer,
            activation_dtype=activation_dtype,
            activation_symmetric=activation_symmetric,
            weight_granularity=weight_granularity,
            weight_symmetric=weight_symmetric,
            reduce_range=reduce_range,
            embeddings=embeddings,
            skip=skip,
            only=only,
            targets_cpu=targets_cpu,
            algorithms=algorithms,
            algorithm_samples=algorithm_samples,
            algorithm_time_limit=algorithm_time_limit,
        )
        super().__init__(name, target, checkpoint, dynamic_dims, scheme)
        check_type("samples", samples, int)
        check_type("seed", seed, int)
        if samples < 1:
            raise ConfigError(f"samples: {samples} is too small. Allowed: 1 or more.")
        self.samples = samples
        self.seed = seed
        self.calibration: Calibration | None = None
        self._track_anew()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, without the running observation, which only the original may end."""
        return super().__getstate__() | {"_observation": None}

    def _track_anew(self) -> None:
        """Drop what belongs to one run of one model."""
        self._tracked = TrackedTarget(self.dynamic_dims)
        self._observation: Observation | None = None

    @property
    def plan(self) -> ObservationPlan:
        """What is observed in each validation pass, and how."""
        return ObservationPlan(self.scheme, self.path, self.samples, self.seed, self.dynamic_dims)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check that there is a validation to observe."""
        super().setup(trainer, pl_module, stage)
        self._stop()
        self._track_anew()
        if stage == "fit":
            self.calibration = None  # of an earlier fit
        if stage == "fit" and not trainer.enable_validation:
            raise ConfigError(
                "StaticQuantization: calibration runs during validation, which is disabled. Define validation_step and "
                "a validation loader, and leave limit_val_batches above 0."
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check what only the loaders know."""
        empty = trainer.val_dataloaders is not None and sum(trainer.num_val_batches) == 0
        found = [rank for rank, each in enumerate(of_every_process(trainer, empty)) if each]
        if found:  # such a process never validates, and the others would wait for its statistics
            where = f" in process {found[0]} of {trainer.world_size}" if trainer.world_size > 1 else ""
            raise ConfigError(
                f"val_dataloaders: the validation loader is empty{where}, so there is nothing to calibrate on."
            )
        super().on_train_start(trainer, pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Start observing the target."""
        super().on_validation_start(trainer, pl_module)
        self._stop()  # a pass may have ended without a hook
        if self.failure is None:
            target, batches = resolve_target(pl_module, self.path), numbers_of_batches(trainer)
            self._observation = Observation(
                self.plan, target, self._tracked, batches, trainer.world_size, trainer.sanity_checking
            )

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the batches of a pass."""
        if self._observation is not None:
            self._observation.next_batch(repeats_in(trainer.val_dataloaders, batch_idx, dataloader_idx))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop observing, and keep the statistics of this pass."""
        known, observation, calibration, calls = self.failure, self._observation, self._stop(), self.auto.seen()
        if observation is not None:
            self.failure = observation.failure
            self._decide(trainer, pl_module, observation, calls)
        if not trainer.sanity_checking:
            self._merge(trainer, calibration, observation is not None and observation.incomplete)
            if known is None and self.failure is not None and trainer.is_global_zero:
                sanity.say(self)

    def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
        """Agree with the other processes, before training, on whether the target can be observed."""
        parts = self._exchange(trainer)
        if self.failure is None and all(part.varying is None for part in parts):  # the share of one may be empty
            own = type(self).__name__
            self.failure = UnsupportedError(never_called(pl_module, self.path, "validation_step", own))

    def _decide(self, trainer: Any, model: Any, observation: Observation, calls: Sequence[tuple[str, Call]]) -> None:
        """Decide what ``target="auto"`` takes, after the first pass in which the model or a part of it was called."""
        if not self.auto.undecided or not (observation.called or calls):
            return
        try:
            taken = self._taken(model, observation, calls)
        except Exception as error:
            self.failure = as_calibration_error(error)
            return
        if taken.graph is not None and taken.module is not None:
            self._track_anew()
            self._tracked.take(taken.graph, taken.module)
            self.failure = self._checked(model, taken.call) if trainer.sanity_checking else None

    def _taken(self, model: Any, observation: Observation, calls: Sequence[tuple[str, Call]]) -> Taken:
        """Take the whole where it was observed, else a part.

        Raises:
            LqError: there is none.
        """
        if not observation.called:
            return self.auto.decide(model, None, calls)
        if observation.failure is None:
            return self.auto.take(Taken(Choice(), observation.example.call))
        if not observation.parts:
            raise observation.failure
        return self.auto.take(chosen(observation.parts[0], observation.failure))

    def _checked(self, model: Any, call: Call) -> Exception | None:
        """Return why a part cannot be observed, before training; see :class:`Observation`."""
        target = resolve_target(model, self.path)
        observation = Observation(self.plan, target, self._tracked, [], sanity_check=True)
        with closing(observation):
            observation.see(*call)
        return observation.failure

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the target its forward back when a run is interrupted."""
        super().on_exception(trainer, pl_module, exception)
        self._stop()

    def _stop(self) -> Calibration | None:
        observation, self._observation = self._observation, None
        return None if observation is None else observation.close()

    def _merge(self, trainer: Any, calibration: Calibration | None, incomplete: bool) -> None:
        """Keep what all processes observed in this pass, unless one of them failed or could not observe all of it."""
        parts = self._exchange(trainer, calibration, incomplete)
        found = [part.calibration for part in parts if part.calibration is not None]
        if found and self.failure is None and not any(part.incomplete for part in parts):
            self.calibration = merged(self.plan, found, trainer.global_step)

    def _exchange(
        self, trainer: Any, calibration: Calibration | None = None, incomplete: bool = False
    ) -> Sequence[_Part]:
        """Return what every process observed; take over why one could not, and in which dimensions calls differed."""
        failure, example = "" if self.failure is None else str(self.failure), self._tracked.example
        own = _Part(calibration, failure, incomplete, example.varying if example else None)
        parts: list[_Part] = of_every_process(trainer, own)
        self._tracked.widen([part.varying for part in parts if part.varying])
        self.failure = self.failure or _failed_elsewhere(parts)
        return parts

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics of the last validation pass, and in which dimensions calls differed.

        Tensors and builtins only.
        """
        if self.calibration is None:
            return {}
        state: dict[str, Any] = {"calibration": self.calibration.state_dict()}
        if self._tracked.example is not None:  # None after a resume, until the next validation
            state["varying"] = varying_state(self._tracked.example, self.path)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the statistics of a checkpoint."""
        self.calibration = calibration_in(state_dict)

    def job(self, source: Source) -> StaticJob:
        """Return how the candidate is made: from the checkpoint's weights and a calibration of them."""
        return StaticJob(
            name=self.name,
            scheme=self.scheme,
            source=source,
            options=self.options(),
            example=self._tracked.example,
            failure=self.failure,
            plan=self.plan,
            calibration=self.calibration,
        )

    def options(self) -> dict[str, Any]:
        """Return this callback's exact configuration as builtins, for the manifest."""
        return super().options() | {"samples": self.samples, "seed": self.seed}


@dataclass(frozen=True)
class _Part:
    """What one process observed, why it could not, and in which dimensions its calls differed (none: no call yet)."""

    calibration: Calibration | None
    failure: str
    incomplete: bool
    varying: Dims | None


def _failed_elsewhere(parts: Sequence[_Part]) -> CalibrationError | None:
    """The failure of any process; the statistics of the others would cover only part of the data."""
    failed = {rank: part.failure for rank, part in enumerate(parts) if part.failure}
    if len(parts) == 1 or not failed:
        return None
    rank, failure = next(iter(failed.items()))
    return CalibrationError(f"calibration: observing failed in process {rank} of {len(parts)}: {failure}")
