"""Dynamic quantization: INT8 weights when fit ends, scales of activations from each batch at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from lq_plugin.callbacks.finishing import Origin
from lq_plugin.callbacks.quantizing import QuantizingCallback
from lq_plugin.eager import swap
from lq_plugin.errors import UnsupportedError, as_calibration_error, is_mistake
from lq_plugin.graph import precision
from lq_plugin.graph.capture import Call
from lq_plugin.graph.copying import cpu_copy
from lq_plugin.graph.example import Example, varying_state
from lq_plugin.jobs import DynamicJob
from lq_plugin.scheme import AUTO, Scheme
from lq_plugin.source import Source
from lq_plugin.targets import Forward, forward_of, never_called, replaced_forward, resolve_target

_VALIDATION, _TRAINING = "validation", "training"


class DynamicQuantization(QuantizingCallback):
    """Quantize the weights of linear and recurrent layers when fit ends; nothing is observed while it trains.

    Quantized are ``nn.Linear``, ``nn.LSTM``, ``nn.GRU``, ``nn.LSTMCell``, ``nn.GRUCell``, ``nn.RNNCell`` and, where
    asked, embeddings. Weights become INT8 ahead of time; the scale of a layer's input is computed in every call. The
    target's first call in validation is remembered as an example of its inputs. Dimensions in which later calls differ
    from it become dynamic.

    Args:
        name: unique among the callbacks of a Trainer; names the candidate and its folder.
        target: dotted path of the module that is quantized, such as ``"net"``; the LightningModule by default;
            ``"auto"`` for the LightningModule where its forward can be captured or nothing in it can, else the largest
            of its submodules that can be.
        checkpoint: whose weights are quantized: ``"best"`` or ``"last"`` of the Trainer's first ModelCheckpoint,
            ``"best:<monitor>"`` of the one that monitors this metric, or ``"live"`` for the weights in memory.
        seed: of the private generator that chooses the algorithms' samples.
        dynamic_dims: dynamic dimensions besides the batch, by input name: ``{"x": [1]}`` for sequences of any length.
        weight_granularity: see :class:`~lq_plugin.Scheme`, as are all that follow; ``"per_channel"`` or
            ``"per_tensor"``.
        reduce_range: weights use 7 bits; by default as ``targets_cpu`` says.
        embeddings: whether look-up tables are quantized too; they are not by default.
        skip: what stays float: globs over module names and ``"op:<kind of layer>"``, such as ``"op:gru"``.
        only: where given, nothing else is quantized.
        targets_cpu: ``"this"``, ``"any"`` or ``"vnni"``: for which CPUs, where ``reduce_range`` is not given.
        algorithms: ``"auto"``, names of algorithms, or ``[]`` for none. They run when fit ends, on samples of the
            validation data, and each is kept only if it helps.
        algorithm_samples: how many samples they get: three quarters to learn from, one quarter held out.
        algorithm_time_limit: seconds after which no further algorithm is started; ``None`` for no limit.

    Raises:
        ConfigError: an option cannot work; raised when built, or in ``fit`` before training starts.
    """

    def __init__(
        self,
        name: str = "dynamic",
        target: str | None = None,
        checkpoint: str = "best",
        seed: int = 0,
        dynamic_dims: Mapping[str, Sequence[int]] | None = None,
        weight_granularity: str = Scheme.weight_granularity,
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
            method="dynamic",
            weight_granularity=weight_granularity,
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
        self.seed = seed
        self._shadow = ExitStack()
        self._casts = False  # whether calls are seen as a float32 copy of the target gets them
        self._seen_all = False  # whether a whole validation pass was
        self._examples: dict[str, Example | None] = {}  # of validation and of training; None: the target had no call

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, without the shadow, which only the original may end."""
        return super().__getstate__() | {"_shadow": ExitStack(), "_examples": dict(self._examples)}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget the model of an earlier fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._examples, self._seen_all = {}, False

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check the layers of the target."""
        super().on_fit_start(trainer, pl_module)
        try:
            swap.check_layers(precision.float32_copy(resolve_target(pl_module, self.path)), self.scheme)
        except UnsupportedError as error:
            self.failure = error

    def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
        """Check, before training, that the target is called and that something in it can be quantized."""
        if self.failure is None and _VALIDATION in self._examples:
            try:
                self._check(pl_module)
            except Exception as error:
                if is_mistake(error):
                    raise
                self.failure = as_calibration_error(error)

    def _check(self, pl_module: Any) -> None:
        example = self._examples[_VALIDATION]
        if example is None:
            raise UnsupportedError(never_called(pl_module, self.path, "validation_step", type(self).__name__))
        target = precision.float32_copy(cpu_copy(resolve_target(pl_module, self.path)))
        swap.survey(target, example.call, self.scheme)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Look at the precision of the target, for a run that is never validated."""
        super().on_train_start(trainer, pl_module)
        self._casts = precision.is_other(resolve_target(pl_module, self.path))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Look at the precision of the target."""
        super().on_validation_start(trainer, pl_module)
        self._casts = precision.is_other(resolve_target(pl_module, self.path))

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Remember the target's first call in validation, and what differs in later ones."""
        self._remember_calls(pl_module, _VALIDATION)

    def on_validation_batch_end(self, *_: Any) -> None:
        """Give the target its forward back."""
        self._shadow.close()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Remember the target's calls in training, for a run that is never validated."""
        if not any(self._examples.values()):
            self._remember_calls(pl_module, _TRAINING)

    def on_train_batch_end(self, *_: Any) -> None:
        """Give the target its forward back."""
        self._shadow.close()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Note that all of validation was seen; after the first pass, decide what ``target="auto"`` takes."""
        calls = self.auto.seen()
        if not self.auto.undecided:
            self._seen_all |= not trainer.sanity_checking and trainer.world_size == 1  # else it saw a part of it
            return
        known = self._examples.get(_VALIDATION)
        if self.failure is None and (known or calls):
            try:
                self._decide(pl_module if known is None else cpu_copy(pl_module), _VALIDATION, calls)
            except Exception as error:
                self.failure = as_calibration_error(error)

    def _decide(self, model: nn.Module, phase: str, calls: Sequence[tuple[str, Call]] = ()) -> None:
        known = self._examples.get(phase)
        taken = self.auto.decide(model, None if known is None else known.call, calls)
        if self.path is not None:
            forward = forward_of(resolve_target(model, self.path))
            self._examples = {phase: Example.of(forward, *precision.in_float32(taken.call))}

    def decide(self, origin: Origin) -> None:
        """Decide what ``target="auto"`` takes, where this was not done in validation."""
        known = next((phase for phase, example in self._examples.items() if example is not None), None)
        if known is None:
            super().decide(origin)
        else:  # a run that is never validated
            self._decide(origin.source(None, self.checkpoint).model, known)

    def state_dict(self) -> dict[str, Any]:
        """Return in which dimensions the calls of a whole validation pass differed: builtins only."""
        return {"varying": varying_state(self._examples.get(_VALIDATION), self.path)} if self._seen_all else {}

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the target its forward back when a run is interrupted."""
        super().on_exception(trainer, pl_module, exception)
        self._shadow.close()

    def job(self, source: Source) -> DynamicJob:
        """Return how the candidate is made: from the checkpoint's weights and a call."""
        return DynamicJob(
            name=self.name,
            scheme=self.scheme,
            source=source,
            options=self.options(),
            example=self._examples.get(_VALIDATION) or self._examples.get(_TRAINING),
            failure=self.failure,
            dynamic_dims=self.dynamic_dims,
            seed=self.seed,
        )

    def options(self) -> dict[str, Any]:
        """Return this callback's exact configuration as builtins, for the manifest."""
        return super().options() | {"seed": self.seed}

    def _remember_calls(self, model: nn.Module, phase: str) -> None:
        """Remember the target's calls in a batch."""
        self._examples.setdefault(phase, None)
        if self.failure is not None:
            return

        target = resolve_target(model, self.path)

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def remember(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
            if self.failure is not None:
                return
            try:
                if self._casts:
                    args, kwargs = precision.in_float32((args, kwargs))
                known, forward = self._examples[phase], forward_of(target)
                seen = Example.of(forward, args, kwargs) if known is None else known.seeing(forward, args, kwargs)
                self._examples[phase] = seen
            except Exception as error:  # of a class of the user's own, which may refuse to be copied
                self.failure = as_calibration_error(error)

        def remembered(original: Forward, *args: Any, **kwargs: Any) -> Any:
            remember(args, kwargs)
            return original(*args, **kwargs)

        self._shadow.enter_context(replaced_forward(target, remembered))
