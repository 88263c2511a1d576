"""The figures of record: what a LightningModule logs, with its target's forward replaced by a reloaded artifact."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lq_plugin.artifacts.description import Artifact
from lq_plugin.artifacts.loading import load
from lq_plugin.errors import ConfigError
from lq_plugin.evaluation import loop
from lq_plugin.evaluation.fidelity import (
    SQNR_SAMPLES,
    FloatOutputs,
    SignalToQuantizationNoise,
    call_key,
)
from lq_plugin.evaluation.loop import Data
from lq_plugin.evaluation.side_effects import state_of
from lq_plugin.graph.copying import cpu_copy
from lq_plugin.graph.nesting import batch_size, retyped
from lq_plugin.graph.torch_patches import process_group_hidden
from lq_plugin.targets import Forward, resolve_target


@dataclass(frozen=True)
class Scores:
    """Metrics by name, and the signal-to-quantization-noise ratio of the outputs in decibels."""

    metrics: Mapping[str, float]
    sqnr_db: float | None


def evaluate(
    model: nn.Module,
    dataloaders: Any,
    artifact: Artifact | str | os.PathLike[str] | None = None,
    *,
    split: str = "validate",
    target: str | None = None,
    metrics: Mapping[str, Metric] | None = None,
    label: int | str = 1,
) -> dict[str, float]:
    """Run a LightningModule's own loop with an artifact, reloaded from disk, in place of its target.

    Args:
        model: the LightningModule; neither it nor the random state is changed.
        dataloaders: a loader or several, as for ``Trainer.validate``.
        artifact: an artifact or its folder; FP32 is evaluated where there is none.
        split: ``"validate"`` runs ``validation_step``, ``"test"`` runs ``test_step``.
        target: dotted path of the module that the artifact replaces; the model itself by default.
        metrics: torchmetrics by name, updated with ``(output of the target, batch[label])``, for modules that log
            nothing.
        label: index or key of the labels in a batch.

    Returns:
        What the module logs, and the given metrics.

    Raises:
        ArtifactError: the artifact was changed, or is called differently than captured.
        ConfigError: unknown split, target or label.
    """
    path = artifact.path if isinstance(artifact, Artifact) else artifact
    module = None if path is None else load(path, factory=lambda: cpu_copy(resolve_target(model, target)))
    data = Data(loaders={split: dataloaders})
    return dict(scores(model, data, split, module, target=target, metrics=metrics, label=label).metrics)


def scores(
    model: nn.Module,
    data: Data,
    split: str,
    module: nn.Module | None = None,
    *,
    target: str | None = None,
    metrics: Mapping[str, Metric] | None = None,
    label: int | str = 1,
    floats: FloatOutputs | None = None,
    samples: int = SQNR_SAMPLES,
) -> Scores:
    """Evaluate ``model`` with ``module`` in place of its target; see :func:`evaluate`.

    The fidelity is measured on the first samples, where the float target runs beside the artifact.

    Args:
        model: the LightningModule.
        data: its batches.
        split: ``"validate"`` or ``"test"``.
        module: the artifact; FP32 is evaluated where there is none.
        target: dotted path of the module that the artifact replaces.
        metrics: torchmetrics by name.
        label: index or key of the labels in a batch.
        floats: kept here when FP32 is evaluated, and used in place of running the float target beside an artifact.
        samples: how many the fidelity is measured on; whole batches.
    """
    probe = _Probe({name: metric.clone().cpu() for name, metric in (metrics or {}).items()}, label)
    fidelity = _Fidelity(floats, samples)

    def forward(original: Forward, *args: Any, **kwargs: Any) -> Any:
        if module is None:
            probe.output = fidelity.kept(original, args, kwargs)
        else:
            output = module(*args, **kwargs)
            probe.output = retyped(output, fidelity.compared(output, original, args, kwargs))
        return probe.output

    logged = loop.run(model, data, split, target=target, forward=forward, callbacks=[loop.BatchEnd(probe.update)])
    with process_group_hidden():
        return Scores(logged | probe.computed(), fidelity.sqnr_db)


class _Fidelity:
    """Compares the first outputs of an artifact with those of the float target."""

    def __init__(self, floats: FloatOutputs | None, samples: int) -> None:
        self._floats, self._samples = floats, samples
        self._sqnr = SignalToQuantizationNoise()
        self._calls = self._seen = 0
        self._reference: Any = None

    @property
    def sqnr_db(self) -> float | None:
        """The ratio in decibels; ``None`` where nothing was compared."""
        return self._sqnr.compute().item() if self._seen and self._reference is not None else None

    def kept(self, original: Forward, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what the float target returns; keep it, unless a call leaves more behind than its output."""
        floats, target = self._floats, getattr(original, "__self__", None)
        if floats is None:
            return original(*args, **kwargs)
        number, sampled = self._calls, self._seen < self._samples
        key = call_key(number, args, kwargs)
        floats.see(key)
        self._count(args, kwargs)
        if floats.refused or not isinstance(target, nn.Module) or not sampled:
            return original(*args, **kwargs)
        before = state_of(target)
        output = original(*args, **kwargs)
        if state_of(target).is_as(before) and call_key(number, args, kwargs) == key:
            floats.keep(key, output)
        else:
            floats.refuse()
        return output

    def compared(self, output: Any, original: Forward, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Compare an output, while there are samples to compare; return the last float output, for its classes."""
        if self._seen < self._samples:
            key = None if self._floats is None else call_key(self._calls, args, kwargs)
            known = None if self._floats is None else self._floats.of(key)
            self._count(args, kwargs)
            with torch.no_grad():
                self._reference = original(*args, **kwargs) if known is None else known
            self._sqnr.update(output, self._reference)
        return self._reference

    def _count(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._calls += 1
        self._seen += batch_size((args, kwargs))


class _Probe:
    """Updates metrics with the target's last output of each batch."""

    def __init__(self, metrics: Mapping[str, Metric], label: int | str) -> None:
        self.metrics = metrics
        self.label = label
        self.output: Any = None

    def computed(self) -> dict[str, float]:
        return {name: float(metric.compute()) for name, metric in self.metrics.items()}

    def update(self, batch: Any) -> None:
        for name, metric in self.metrics.items():
            try:
                labels = batch[self.label]
            except (KeyError, IndexError, TypeError) as error:
                known = list(batch) if isinstance(batch, Mapping) else f"{type(batch).__name__}"
                raise ConfigError(
                    f"label: {self.label!r} is not in a batch (it has {known}), so metric {name!r} has nothing to "
                    "compare with. Give Int8Evaluation(label=…) the index or key of the labels."
                ) from error
            if not isinstance(self.output, Tensor):
                raise ConfigError(
                    f"metrics: {name!r} needs a tensor as the target's output, got {type(self.output).__name__}. Log "
                    "the metric in validation_step instead."
                )
            metric.update(self.output, labels)
