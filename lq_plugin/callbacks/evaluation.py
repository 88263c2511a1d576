"""Every reloaded artifact in the module's own loop, its latency and size, and the choice among them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from torchmetrics import Metric

from lq_plugin import selection
from lq_plugin.callbacks import checkpoint as checkpoints
from lq_plugin.callbacks.copyable import CopyableCallback
from lq_plugin.callbacks.ending import after_training, say
from lq_plugin.callbacks.export import ArtifactExport
from lq_plugin.callbacks.quantizing import quantizing
from lq_plugin.errors import ConfigError, unknown_name
from lq_plugin.evaluation.compare import Comparison, Protocol, Subject, compare
from lq_plugin.evaluation.latency import Latency
from lq_plugin.evaluation.loaders import data_of
from lq_plugin.evaluation.loop import SPLITS
from lq_plugin.evaluation.measurement import Measurement
from lq_plugin.identity import weights_digest
from lq_plugin.progress import note
from lq_plugin.report import manifest, table
from lq_plugin.report.manifest import Outcome
from lq_plugin.selection import Budget

logger = logging.getLogger("lq_plugin")
UNJUDGED = (
    "no budget was judged: no metric of validation is known, and the test split judges nothing. Log one in "
    "validation_step, or give metrics={…}, with 'validate' among the splits."
)


class Int8Evaluation(CopyableCallback):
    """Evaluate every artifact, reloaded from disk, when fit ends: metrics, latency, size, fidelity.

    The LightningModule's own ``validation_step`` (and ``test_step``) runs with the target's forward replaced by the
    artifact. FP32 runs the same way, with the same weights. The budget is judged on validation metrics alone: without
    any, artifacts are ``not_evaluated`` in the manifest, and none is selected. So they are where the evaluation fails,
    which raises nothing, for training is over: the manifest holds the reason as their ``error``.

    Args:
        splits: ``"validate"`` and ``"test"``; one without a loader is left out. A metric that both log under one name
            is reported as ``test/<name>`` for the test split.
        metrics: torchmetrics by name for modules that log nothing, updated with
            ``(output of the target, batch[label])`` and reported as ``<split>/<name>``.
        label: index or key of the labels in a batch, for ``metrics``.
        budget: how much of a metric may be lost.
        latency: how latency is measured; ``None`` leaves it out, and nothing is selected then.

    Attributes:
        manifest: the content of ``manifest.json`` after fit.
        error: what kept every artifact from being evaluated or judged; ``None`` unless it is a mistake or failure.

    Raises:
        ConfigError: an unknown split, a budget where validation is not among the splits, or no
            :class:`ArtifactExport` beside this callback.
    """

    def __init__(
        self,
        splits: Sequence[str] = SPLITS,
        metrics: Mapping[str, Metric] | None = None,
        label: int | str = 1,
        budget: Budget = Budget(),
        latency: Latency | None = Latency(),
    ) -> None:
        splits = (splits,) if isinstance(splits, str) else tuple(splits)
        for split in splits:
            if split not in SPLITS:
                raise unknown_name("splits", split, SPLITS)
        if "validate" not in splits and budget != Budget():
            raise ConfigError(
                f"budget: it is judged on validation metrics, and splits={list(splits)} leave validation out; the test "
                "split judges nothing. Add 'validate' to splits, or leave the budget out."
            )
        self.protocol = Protocol(splits, dict(metrics or {}), label, latency)
        self.budget = budget
        self.manifest: Mapping[str, Any] | None = None
        self.error: str | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check that there are artifacts to evaluate."""
        if stage == "fit":
            self.manifest = self.error = None
            _exporter(trainer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Evaluate, write the manifest and log."""
        with after_training(trainer, self) as alone:
            if alone:
                self.manifest = self._evaluate(trainer, pl_module)
                log(trainer, self.manifest)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Print the table, now that no progress bar writes to the terminal any more."""
        if stage == "fit" and self.manifest is not None:
            folder = _exporter(trainer).folder
            assert folder is not None
            try:
                table.show(self.manifest, folder)
            except Exception:  # training is over, and all of it is in the manifest
                logger.exception("the table cannot be shown; see %s", folder / manifest.FILE)

    def _evaluate(self, trainer: Any, pl_module: Any) -> Mapping[str, Any]:
        exporter = _exporter(trainer)
        assert exporter.folder is not None
        outcomes = exporter.outcomes(trainer, pl_module)
        comparisons, measured = self._measured(trainer, outcomes)
        fp32 = comparisons[0].fp32 if comparisons else manifest.NO_FP32
        budget, unjudged = self._decided(trainer, comparisons[0].judged_by) if comparisons else (self.budget, None)
        entries = []
        for outcome in outcomes:
            measurement = measured.get(outcome.label, Measurement())
            entries.append(
                manifest.entry(_judged(outcome, measurement, budget, unjudged), exporter.folder, measurement)
            )
        return exporter.write(
            trainer,
            entries,
            fp32=fp32,
            budget=asdict(budget),
            selected=selection.select(entries),
            evaluation=self.options(),
        )

    def _measured(
        self, trainer: Any, outcomes: Sequence[Outcome]
    ) -> tuple[Sequence[Comparison], Mapping[str, Measurement]]:
        """Measure every artifact, by label; one model that cannot be evaluated costs no other anything."""
        comparisons: list[Comparison] = []
        measured: dict[str, Measurement] = {}
        reason: str | None = None
        for subject in _subjects(trainer, outcomes):
            labels = [artifact.label for artifact in subject.artifacts]
            try:
                comparison = compare(subject, data_of(trainer), self.protocol, note)
            except Exception as error:
                reason = say(f"{', '.join(labels)} cannot be evaluated", error)
                measured |= dict.fromkeys(labels, Measurement(error=reason))
            else:
                comparisons.append(comparison)
                measured |= dict(zip(labels, comparison.measurements, strict=True))
        self.error = None if comparisons else reason
        return comparisons, measured

    def _decided(self, trainer: Any, logged: Sequence[str]) -> tuple[Budget, str | None]:
        """Return the budget with its metric, and why nothing can be judged by it."""
        if not logged:
            return self.budget, UNJUDGED
        try:
            return self._resolved_budget(trainer, logged), None
        except ConfigError as error:
            self.error = say("no artifact is judged", error)
            return self.budget, self.error

    def expected_budget(self, trainer: Any) -> Budget:
        """Return the budget as far as it is known before a fit: what the checkpoint monitors, where none is named."""
        name = self.budget.metric or getattr(checkpoints.monitored(trainer), "monitor", None)
        return self._resolved_budget(trainer, [name] if name else [])

    def _resolved_budget(self, trainer: Any, logged: Sequence[str]) -> Budget:
        monitor = checkpoints.monitored(trainer)
        return selection.resolve(self.budget, logged, getattr(monitor, "monitor", None), getattr(monitor, "mode", None))

    def options(self) -> dict[str, Any]:
        """Return this callback's exact configuration as builtins, for the manifest."""
        return {
            "splits": list(self.protocol.splits),
            "metrics": {name: repr(metric) for name, metric in self.protocol.metrics.items()},
            "label": self.protocol.label,
            "latency": asdict(self.protocol.latency) if self.protocol.latency else None,
        }


def log(trainer: Any, content: Mapping[str, Any]) -> None:
    """Send the figures of a manifest to the Trainer's loggers as ``quantized/<candidate>/<format>/<metric>``.

    A logger that fails, because it takes no such name or its server is gone, does not end a finished training.
    """
    figures: dict[str, float] = {}
    for entry in content["artifacts"]:
        prefix = f"quantized/{selection.label(entry)}"
        figures |= {f"{prefix}/{name}": value for name, value in entry["metrics"].items()}
        figures |= {f"{prefix}/{name}": entry[name] for name in ("size_bytes", "sqnr_db") if entry[name] is not None}
        if entry["latency_ms"] is not None:
            figures[f"{prefix}/latency_ms"] = entry["latency_ms"]["median"]
    for used in trainer.loggers:
        try:
            used.log_metrics(figures, step=trainer.global_step)
            used.save()
        except Exception:
            logger.exception("%s did not take the figures of the artifacts", type(used).__name__)


def _judged(outcome: Outcome, measurement: Measurement, budget: Budget, unjudged: str | None) -> Outcome:
    """Return an outcome with its status, given what was measured and why nothing is judged, if so."""
    if outcome.artifact is None:
        return outcome
    if measurement.fp32 is None:
        return replace(outcome, error=measurement.error)
    if not measurement.metrics and measurement.error is not None:
        return replace(outcome, status="failed", error=measurement.error)
    if unjudged is not None:
        return replace(outcome, error=measurement.error or unjudged)
    if budget.metric not in measurement.delta:
        reason = f"{budget.metric} was not logged with the artifact in the place of the target."
        return replace(outcome, status="failed", error=measurement.error or reason)
    lost = selection.lost(budget, measurement.metrics, measurement.delta)
    status = "ok" if lost is None or lost <= budget.max_drop else "over_budget"
    return replace(outcome, status=status, error=measurement.error)


def _subjects(trainer: Any, outcomes: Sequence[Outcome]) -> list[Subject]:
    """Unite the artifacts that share target and weights: one FP32 model is measured for all of them.

    The weights are known by content, for the files of two ModelCheckpoints may have one name.
    """
    subjects: dict[tuple[str | None, str], Subject] = {}
    for callback in quantizing(trainer):
        artifacts = [o.artifact for o in outcomes if o.candidate == callback.name and o.artifact is not None]
        if callback.candidate is None or callback.model is None or not artifacts:
            continue
        key = (callback.target, weights_digest(callback.model))
        known = subjects.get(key, Subject(callback.model, callback.target, callback.candidate, ()))
        # A static candidate has its graph already; a dynamic one may have none.
        source = callback.candidate if callback.scheme.method == "static" else known.candidate
        subjects[key] = replace(known, candidate=source, artifacts=(*known.artifacts, *artifacts))
    return list(subjects.values())


def _exporter(trainer: Any) -> ArtifactExport:
    exporter = next((callback for callback in trainer.callbacks if isinstance(callback, ArtifactExport)), None)
    if exporter is None:
        raise ConfigError(
            "Int8Evaluation: no ArtifactExport is among the callbacks of this Trainer, and what is evaluated is the "
            "artifact on disk. Add ArtifactExport() to callbacks."
        )
    return exporter
