"""The figures of record: what a LightningModule logs, with its target's forward replaced by a reloaded artifact."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lq_plugin.artifacts.base import Artifact, load
from lq_plugin.errors import ConfigError
from lq_plugin.evaluation import loop
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.evaluation.loop import Data
from lq_plugin.graph.copying import detached_copy
from lq_plugin.graph.nesting import batch_size, retyped
from lq_plugin.graph.torch_patches import process_group_hidden
from lq_plugin.targets import Forward, resolve_target

SQNR_SAMPLES = 512


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
    module = None if path is None else load(path, factory=lambda: detached_copy(resolve_target(model, target)))
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
) -> Scores:
    """Evaluate ``model`` with ``module`` in place of its target; see :func:`evaluate`.

    The fidelity is measured on the first 512 samples, where the float target runs beside the artifact.
    """
    sqnr = SignalToQuantizationNoise()
    probe = _Probe({name: metric.clone() for name, metric in (metrics or {}).items()}, label)
    seen = 0
    reference: Any = None

    def forward(original: Forward, *args: Any, **kwargs: Any) -> Any:
        nonlocal seen, reference
        output = original(*args, **kwargs) if module is None else module(*args, **kwargs)
        if module is not None and seen < SQNR_SAMPLES:
            with torch.no_grad():
                reference = original(*args, **kwargs)
            sqnr.update(output, reference)
            seen += batch_size((args, kwargs))
        probe.output = output if module is None else retyped(output, reference)
        return probe.output

    logged = loop.run(model, data, split, target=target, forward=forward, callbacks=[loop.BatchEnd(probe.update)])
    with process_group_hidden():
        return Scores(logged | probe.computed(), sqnr.compute().item() if seen else None)


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
