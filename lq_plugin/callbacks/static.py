"""Static quantization: observers ride on validation, INT8 when fit ends."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lq_plugin.callbacks.checkpoint import Checkpoint
from lq_plugin.callbacks.quantizing import QuantizingCallback, data_of
from lq_plugin.candidate import Candidate
from lq_plugin.errors import CalibrationError, ConfigError, LqError
from lq_plugin.evaluation import loop
from lq_plugin.graph.calibration import Calibration, Provenance, Recording
from lq_plugin.graph.capture import FloatGraph, capture, fold
from lq_plugin.graph.placement import RUNTIMES, place
from lq_plugin.observers import Observer, Statistic
from lq_plugin.scheme import Scheme, as_dict

_Seen = tuple[dict[str, Statistic], int, int]  # statistics of one process's pass, samples, batches


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
        activation_dtype: ``"uint8"`` or ``"int8"``.
        activation_symmetric: zero point in the middle of the range.
        weight_granularity: ``"per_channel"`` or ``"per_tensor"``.
        reduce_range: weights use 7 bits; by default where this CPU's kernels would saturate with 8.
        skip: what stays float: globs over module names and ``"op:<operator type>"``.
        only: where given, nothing else is quantized.

    Raises:
        ConfigError: an option cannot work; raised when built, or in ``fit`` before training starts.
    """

    method = "static"

    def __init__(
        self,
        name: str = "static",
        target: str | None = None,
        samples: int = 512,
        checkpoint: str = "best",
        seed: int = 0,
        dynamic_dims: Mapping[str, Sequence[int]] | None = None,
        observer: Observer | str = Scheme.observer,
        activation_dtype: str = Scheme.activation_dtype,
        activation_symmetric: bool = Scheme.activation_symmetric,
        weight_granularity: str = Scheme.weight_granularity,
        reduce_range: bool | None = Scheme.reduce_range,
        skip: Sequence[str] = Scheme.skip,
        only: Sequence[str] = Scheme.only,
    ) -> None:
        super().__init__(name, target, checkpoint)
        if samples < 1:
            raise ConfigError(f"samples: {samples} is too small. Allowed: 1 or more.")
        self.scheme = Scheme(
            method=self.method,
            observer=observer,
            activation_dtype=activation_dtype,
            activation_symmetric=activation_symmetric,
            weight_granularity=weight_granularity,
            reduce_range=reduce_range,
            skip=skip,
            only=only,
        )
        self.samples = samples
        self.seed = seed
        self.dynamic_dims = dict(dynamic_dims or {})
        self.calibration: Calibration | None = None
        self._forget()

    def _forget(self) -> None:
        """Drop everything that belongs to one run of one model."""
        self._listening = ExitStack()
        self._graph: FloatGraph | None = None
        self._example: tuple[Sequence[Any], Mapping[str, Any]] | None = None
        self._recording: Recording | None = None
        self._chosen: set[int] = set()
        self._position = -1
        self._failure: LqError | None = None
        self._heard = False
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
        if self._heard_sanity is False:
            raise ConfigError(_never_called(pl_module, self.target))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Listen to the target's forward."""
        target = loop.resolve_target(pl_module, self.target)
        self._position, self._recording, self._heard = -1, None, False
        hear = torch.compiler.disable(  # type: ignore[no-untyped-call]
            lambda args, kwargs: self._hear(trainer, target, args, kwargs)
        )

        def listen(original: loop.Forward, *args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            hear(args, kwargs)
            return output

        self._listening.enter_context(loop.replaced_forward(target, listen))

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        """Count the batches of a pass."""
        self._position += 1

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop listening, and keep the statistics of this pass."""
        self._listening.close()
        if trainer.sanity_checking:
            self._heard_sanity = self._heard
        else:
            found = [seen for seen in _of_every_process(trainer, self._seen()) if seen is not None]
            self.calibration = self._finished(trainer, found) if found else self.calibration
        self._recording = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the target its forward back when a run breaks off."""
        self._listening.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics of the last validation pass: tensors and builtins only."""
        return {} if self.calibration is None else {"calibration": self.calibration.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the statistics of a checkpoint."""
        self.calibration = _calibration_in(state_dict)

    def make_candidate(self, trainer: Any, model: nn.Module, checkpoint: Checkpoint) -> Candidate:
        """Unite the checkpoint's weights with its own calibration, or calibrate once more where it has none."""
        if self._failure is not None:
            raise self._failure
        calibration = (
            self.calibration
            if checkpoint.weights is None
            else _calibration_in(checkpoint.callbacks.get(self.state_key, {}))
        )
        source = self
        if not self._fits(calibration, checkpoint.global_step):
            source = self._calibrated_anew(trainer, model)
            calibration = source.calibration
        assert calibration is not None
        assert source._example is not None
        graph = fold(capture(loop.resolve_target(model, self.target), *source._example, self.dynamic_dims))
        provenance = replace(
            calibration.provenance,
            checkpoint=checkpoint.name,
            global_step=checkpoint.global_step,
            checkpoint_global_step=checkpoint.global_step,
            extra_pass=source is not self,
        )
        return Candidate(self.name, graph, replace(calibration, provenance=provenance), self.scheme)

    def options(self) -> dict[str, Any]:
        """Return this callback's exact configuration as builtins, for the manifest."""
        return {
            "name": self.name,
            "target": self.target,
            "samples": self.samples,
            "checkpoint": self.checkpoint,
            "seed": self.seed,
            "dynamic_dims": {name: list(dims) for name, dims in self.dynamic_dims.items()},
            **as_dict(self.scheme),
        }

    def _hear(self, trainer: Any, target: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Look at one call of the target. Only the sanity check, before training, may stop the run."""
        self._heard = True
        if self._failure is not None:
            return
        try:
            if self._graph is None:
                self._graph, self._example = self._captured(target, args, kwargs)
            if not trainer.sanity_checking:
                self._observe(trainer, self._graph, args, kwargs)
        except Exception as error:
            if trainer.sanity_checking:
                raise
            self._failure = error if isinstance(error, LqError) else CalibrationError(f"calibration: {error}")

    def _captured(
        self, target: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[FloatGraph, tuple[Sequence[Any], Mapping[str, Any]]]:
        graph = capture(target, args, kwargs, self.dynamic_dims)
        folded = fold(graph)
        for runtime in RUNTIMES:
            place(folded, self.scheme, runtime)
        return graph, graph.signature.call(graph.example)

    def _observe(self, trainer: Any, graph: FloatGraph, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if self._recording is None:
            self._recording = Recording.start(fold(graph), self.scheme)
            sizes = (leaf.shape[0] for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim())
            self._chosen = self._choose(trainer.num_val_batches, next(sizes, 1) * trainer.world_size)
        if self._position in self._chosen:
            self._recording.see(graph.signature.flatten(args, kwargs))

    def _choose(self, batches: Sequence[int | float], batch_size: int) -> set[int]:
        """Choose which batches of a pass are observed; the first ones where their number is not known."""
        wanted, total = math.ceil(self.samples / max(batch_size, 1)), sum(batches)
        if math.isinf(total):
            return set(range(wanted))
        order = torch.randperm(int(total), generator=torch.Generator().manual_seed(self.seed))
        return set(order[:wanted].tolist())

    def _seen(self) -> _Seen | None:
        if self._recording is None or self._failure is not None or not self._recording.batches:
            return None
        return self._recording.statistics(), self._recording.samples, self._recording.batches

    def _finished(self, trainer: Any, found: Sequence[_Seen]) -> Calibration:
        assert not isinstance(self.scheme.observer, str)
        merge = self.scheme.observer.merge
        names = dict.fromkeys(name for statistics, _, _ in found for name in statistics)
        statistics = {name: merge([seen[0][name] for seen in found if name in seen[0]]) for name in names}
        provenance = Provenance(
            checkpoint="live",
            global_step=trainer.global_step,
            checkpoint_global_step=None,
            split="validate",
            samples=sum(samples for _, samples, _ in found),
            batches=sum(batches for _, _, batches in found),
            observer=self.scheme.observer.name,
            seed=self.seed,
        )
        return Calibration(statistics, provenance)

    def _fits(self, calibration: Calibration | None, global_step: int) -> bool:
        """Whether a calibration is one of these weights, gathered the way that this callback asks for."""
        assert not isinstance(self.scheme.observer, str)
        if calibration is None or self._example is None:
            return False
        provenance = calibration.provenance
        return (provenance.global_step, provenance.observer) == (global_step, self.scheme.observer.name)

    def _calibrated_anew(self, trainer: Any, model: nn.Module) -> StaticQuantization:
        """Ride once more on a validation pass, of the checkpoint's weights."""
        rider = copy.copy(self)
        rider.calibration = None
        rider._forget()
        loop.run(model, data_of(trainer), "validate", callbacks=[rider])
        if rider._failure is not None:
            raise rider._failure
        if rider.calibration is None:
            raise CalibrationError(_never_called(model, self.target))
        return rider


def _of_every_process(trainer: Any, value: _Seen | None) -> list[_Seen | None]:
    if trainer.world_size == 1:
        return [value]
    values: list[_Seen | None] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def _calibration_in(state: Mapping[str, Any]) -> Calibration | None:
    return Calibration.from_state_dict(state["calibration"]) if "calibration" in state else None


def _never_called(model: nn.Module, target: str | None) -> str:
    children = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    return (
        f"target: the forward of {target or type(model).__name__!r} is never called in validation_step, so there is "
        f"nothing to observe. Choose what validation_step calls, for example one of {children}: "
        "StaticQuantization(target='…')."
    )
