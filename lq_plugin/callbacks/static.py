"""Static quantization: observers ride on validation, INT8 when fit ends."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lq_plugin.callbacks import repeats
from lq_plugin.callbacks.checkpoint import Checkpoint
from lq_plugin.callbacks.listening import Listener, Seen
from lq_plugin.callbacks.loaders import data_of, numbers_of_batches
from lq_plugin.callbacks.quantizing import QuantizingCallback, never_called
from lq_plugin.candidate import StaticCandidate
from lq_plugin.errors import CalibrationError, ConfigError, LqError, UnsupportedError
from lq_plugin.evaluation import loop
from lq_plugin.graph.calibration import Calibration, Provenance
from lq_plugin.graph.capture import Call
from lq_plugin.graph.prepare import prepare
from lq_plugin.graph.soundness import warn_of_random_forward, warn_of_ranges
from lq_plugin.observers import Observer
from lq_plugin.progress import note
from lq_plugin.scheme import DEFAULT_OBSERVER, Scheme


class StaticQuantization(QuantizingCallback):
    """Gather statistics while the model is validated, and quantize it when fit ends.

    In every validation pass (not in the sanity check) the graph of the target runs beside the model for a bounded,
    random subset of the batches. The module's own forward produces all that ``validation_step`` sees; weights,
    optimizer, metrics and random state stay what they are without this callback.

    Args:
        name: unique among the callbacks of a Trainer; names the candidate and its folder.
        target: dotted path of the module that is quantized, such as ``"net"``; the LightningModule by default.
        samples: how many samples to observe in each validation pass, rounded up to whole batches.
        checkpoint: whose weights are quantized: ``"best"`` or ``"last"`` of the Trainer's first ModelCheckpoint,
            ``"best:<monitor>"`` of the one that monitors this metric, or ``"live"`` for the weights in memory.
        seed: of the private generator that chooses the batches.
        dynamic_dims: dynamic dimensions besides the batch, by input name: ``{"x": [2, 3]}``.
        observer: see :class:`~lq_plugin.Scheme`, as are all that follow.
        activation_dtype: ``"uint8"`` or ``"int8"``; by default what the kernels of each runtime want.
        activation_symmetric: zero point in the middle of the range; by default as those kernels want it.
        weight_granularity: ``"per_channel"`` or ``"per_tensor"``.
        weight_symmetric: zero point 0.
        reduce_range: weights use 7 bits; by default as ``targets_cpu`` says.
        embeddings: whether look-up tables are quantized too; they are by default.
        skip: what stays float: globs over module names and ``"op:<operator type>"``.
        only: where given, nothing else is quantized.
        targets_cpu: ``"this"``, ``"any"`` or ``"vnni"``: for which CPUs, where ``reduce_range`` is not given.

    Attributes:
        known: calibrations made before; one that fits the weights and the options is taken.

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
        observer: Observer | str = DEFAULT_OBSERVER,
        activation_dtype: str | None = Scheme.activation_dtype,
        activation_symmetric: bool | None = Scheme.activation_symmetric,
        weight_granularity: str = Scheme.weight_granularity,
        weight_symmetric: bool = Scheme.weight_symmetric,
        reduce_range: bool | None = Scheme.reduce_range,
        embeddings: bool | None = Scheme.embeddings,
        skip: Sequence[str] = Scheme.skip,
        only: Sequence[str] = Scheme.only,
        targets_cpu: str = Scheme.targets_cpu,
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
        )
        super().__init__(name, target, checkpoint, dynamic_dims, scheme)
        if samples < 1:
            raise ConfigError(f"samples: {samples} is too small. Allowed: 1 or more.")
        self.samples = samples
        self.seed = seed
        self.calibration: Calibration | None = None
        self.known: Sequence[Calibration] = ()
        self.candidate: StaticCandidate | None = None
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: a listener of its own, which does not listen."""
        return super().__getstate__() | {"_listener": copy.copy(self._listener)}

    def _forget(self) -> None:
        """Drop everything that belongs to one run of one model."""
        self._listener = Listener(self.scheme, self.samples, self.seed, self.dynamic_dims)
        self._heard_sanity: bool | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check that there is a validation loop to ride on."""
        super().setup(trainer, pl_module, stage)
        self._forget()
        if stage == "fit" and not trainer.enable_validation:
            raise ConfigError(
                "StaticQuantization: this Trainer runs no validation, and observers ride on it. Define "
                "validation_step and a validation loader, and leave limit_val_batches above 0."
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check what only the loaders know."""
        if trainer.val_dataloaders is not None and sum(trainer.num_val_batches) == 0:
            raise ConfigError("val_dataloaders: the validation loader is empty, so there is nothing to calibrate on.")
        super().on_train_start(trainer, pl_module)

    def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
        """Record that the target cannot be observed, or that nobody calls it."""
        self.inability = self._listener.failure
        if self._heard_sanity is False:
            self.inability = UnsupportedError(never_called(self, pl_module, "validation_step"))
        super().on_sanity_check_end(trainer, pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Listen to the target's forward."""
        if self.error is not None:
            return
        target = loop.resolve_target(pl_module, self.target)
        batches = numbers_of_batches(trainer)
        self._listener.start(target, batches, trainer.world_size, rehearsal=trainer.sanity_checking)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the batches of a pass."""
        self._listener.next_batch(repeats.share(trainer.val_dataloaders, batch_idx, dataloader_idx))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop listening, and keep the statistics of this pass."""
        seen = self._listener.stop()
        if trainer.sanity_checking:
            self._heard_sanity = self._listener.heard
            return
        parts = _of_every_process(trainer, (seen, self._listener.failure))
        self._listener.failure = self._listener.failure or _failed_elsewhere(parts)
        found = [part for part, _ in parts if part is not None]
        if found and self._listener.failure is None:
            self.calibration = self._merged(trainer, found)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the target its forward back when a run breaks off."""
        self._listener.stop()

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics of the last validation pass: tensors and builtins only."""
        return {} if self.calibration is None else {"calibration": self.calibration.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the statistics of a checkpoint."""
        self.calibration = _calibration_in(state_dict)

    def make_candidate(self, trainer: Any, model: nn.Module, checkpoint: Checkpoint) -> StaticCandidate:
        """Unite the checkpoint's weights with its own calibration, or calibrate once more where it has none."""
        if self._listener.failure is not None:
            raise self._listener.failure
        anew, example = None, self._listener.example
        if example is None:
            anew, example = self._calibrated_anew(trainer, model)
        target = loop.resolve_target(model, self.target)
        graph = prepare(target, *example, self.dynamic_dims)
        calibration = self._known(checkpoint, graph.digest)
        if calibration is None:
            calibration = anew or self._calibrated_anew(trainer, model)[0]
            provenance = replace(calibration.provenance, global_step=checkpoint.global_step, extra_pass=True)
            calibration = replace(calibration, provenance=provenance)
        provenance = replace(
            calibration.provenance, checkpoint=checkpoint.name, checkpoint_global_step=checkpoint.global_step
        )
        candidate = StaticCandidate(self.name, graph, replace(calibration, provenance=provenance), self.scheme)
        warn_of_ranges(candidate.name, candidate.graph, calibration, self.scheme)
        warn_of_random_forward(candidate.name, target, example)
        return candidate

    def _known(self, checkpoint: Checkpoint, digest: str) -> Calibration | None:
        """A calibration of the graph with this digest that was made before, the checkpoint's own first."""
        saved = checkpoint.callbacks.get(self.state_key, {})
        own = self.calibration if checkpoint.weights is None else _calibration_in(saved)
        found = next((one for one in (own, *self.known) if self._fits(one, digest)), None)
        if found is not None and self.given is not None:
            source = "the checkpoint" if found is own else "an earlier run of this fit"
            note(f"calibration of {self.name!r} taken from {source}")
        return found

    def options(self) -> dict[str, Any]:
        """Return this callback's exact configuration as builtins, for the manifest."""
        return super().options() | {"samples": self.samples, "seed": self.seed}

    def _merged(self, trainer: Any, found: Sequence[Seen]) -> Calibration:
        assert isinstance(self.scheme.observer, Observer)
        merge = self.scheme.observer.merge
        names = dict.fromkeys(name for seen in found for name in seen.statistics)
        provenance = Provenance(
            checkpoint="live",
            global_step=trainer.global_step,
            checkpoint_global_step=None,
            split="validate",
            samples=sum(seen.samples for seen in found),
            batches=sum(seen.batches for seen in found),
            observer=self.scheme.observer.name,
            seed=self.seed,
            observed=self.observed(),
            digest=found[0].digest if len({seen.structure for seen in found}) == 1 else "",  # else it fits nothing
            structure=found[0].structure,
        )
        statistics = {n: merge([seen.statistics[n] for seen in found if n in seen.statistics]) for n in names}
        return Calibration(statistics, provenance)

    def observed(self) -> str:
        """Return a digest of the options that say what is observed and how."""
        options = self.options()
        deciding = ("target", "samples", "seed", "dynamic_dims", "observer", "skip", "only", "embeddings")
        text = json.dumps({name: options[name] for name in deciding}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _fits(self, calibration: Calibration | None, digest: str) -> bool:
        """Whether a calibration is one of this graph on these weights, gathered the way that this callback asks for."""
        assert isinstance(self.scheme.observer, Observer)
        if calibration is None or not calibration.made_by(self.scheme.observer):
            return False
        return (calibration.provenance.digest, calibration.provenance.observed) == (digest, self.observed())

    def _calibrated_anew(self, trainer: Any, model: nn.Module) -> tuple[Calibration, Call]:
        """Ride once more on a validation pass, of the checkpoint's weights."""
        note(f"calibrating {self.name!r} in a validation pass of its own …")
        rider = copy.copy(self)
        rider.calibration = None
        rider._forget()
        loop.run(model, data_of(trainer), "validate", callbacks=[rider])
        if rider._listener.failure is not None:
            raise rider._listener.failure
        if rider.calibration is None or rider._listener.example is None:
            raise CalibrationError(never_called(self, model, "validation_step"))
        return rider.calibration, rider._listener.example


def _of_every_process(trainer: Any, part: tuple[Seen | None, LqError | None]) -> list[tuple[Seen | None, str]]:
    """What each process saw, and what failed there."""
    seen, failure = part
    own = (seen, "" if failure is None else str(failure))
    if trainer.world_size == 1:
        return [own]
    values = [own] * trainer.world_size
    torch.distributed.all_gather_object(values, own)
    return values


def _failed_elsewhere(parts: Sequence[tuple[Seen | None, str]]) -> CalibrationError | None:
    """Statistics of some of the processes are those of some of the data, which nobody asked for."""
    failed = {rank: failure for rank, (_, failure) in enumerate(parts) if failure}
    if len(parts) == 1 or not failed:
        return None
    rank, failure = next(iter(failed.items()))
    return CalibrationError(f"calibration: observing failed in process {rank} of {len(parts)}: {failure}")


def _calibration_in(state: Mapping[str, Any]) -> Calibration | None:
    if "calibration" not in state:
        return None
    try:
        return Calibration.from_state_dict(state["calibration"])
    except CalibrationError as error:  # the weights may be good
        note(f"{error}; it is not used")
        return None
