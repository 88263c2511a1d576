"""Every reloaded artifact in the module's own loop, its latency and size, and the choice among them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torchmetrics import Metric

from lq_plugin import selection
from lq_plugin.callbacks import checkpoint as checkpoints
from lq_plugin.callbacks.copyable import CopyableCallback
from lq_plugin.callbacks.ending import after_training, say
from lq_plugin.callbacks.export import ArtifactExport
from lq_plugin.callbacks.loaders import data_of
from lq_plugin.callbacks.quantizing import quantizing
from lq_plugin.errors import ConfigError, unknown_name
from lq_plugin.evaluation.compare import Comparison, Protocol, Subject, compare
from lq_plugin.evaluation.judging import judged, select
from lq_plugin.evaluation.latency import Latency
from lq_plugin.evaluation.loop import SPLITS
from lq_plugin.identity import weights_digest
from lq_plugin.progress import note
from lq_plugin.report import manifest, table
from lq_plugin.report.manifest import Entry, Fp32, Manifest
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
        budget: how far a metric may drop.
        latency: how latency is measured; ``None`` leaves it out, and nothing is selected then.

    Attributes:
        manifest: the content of ``manifest.json`` after fit.
        error: why no artifact could be evaluated or judged, where that is a mistake or a failure; else ``None``.

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
        self.manifest: Manifest | None = None
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

    def _evaluate(self, trainer: Any, pl_module: Any) -> Manifest:
        exporter = _exporter(trainer)
        assert exporter.folder is not None
        entries = exporter.entries(trainer, pl_module)
        comparisons, measured = self._measured(trainer, exporter.folder, entries)
        fp32 = comparisons[0].fp32 if comparisons else Fp32()
        budget, unjudged = self._decided(trainer, comparisons[0].judged_by) if comparisons else (self.budget, None)
        entries = [judged(measured.get(entry.label, entry), budget, unjudged) for entry in entries]
        return exporter.write(
            trainer, entries, fp32=fp32, budget=budget, selected=select(entries), evaluation=self.options()
        )

    def _measured(
        self, trainer: Any, folder: Path, entries: Sequence[Entry]
    ) -> tuple[Sequence[Comparison], Mapping[str, Entry]]:
        """Measure every artifact, by label; one model that cannot be evaluated costs no other anything."""
        comparisons: list[Comparison] = []
        measured: list[Entry] = []
        reason: str | None = None
        for subject in _subjects(trainer, folder, entries):
            try:
                comparison = compare(subject, data_of(trainer), self.protocol, note)
            except Exception as error:
                labels = ", ".join(entry.label for entry in subject.entries)
                reason = say(f"{labels} cannot be evaluated", error)
                measured += [replace(entry, error=reason) for entry in subject.entries]
            else:
                comparisons.append(comparison)
                measured += comparison.entries
        self.error = None if comparisons else reason
        return comparisons, {entry.label: entry for entry in measured}

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


def log(trainer: Any, content: Manifest) -> None:
    """Send the figures of a manifest to the Trainer's loggers as ``quantized/<candidate>/<format>/<metric>``.

    A logger that fails, because it takes no such name or its server is gone, does not end a finished training.
    """
    figures = {
        f"quantized/{entry.label}/{name}": value
        for entry in content.artifacts
        for name, value in entry.figures.items()
        if value is not None
    }
    for used in trainer.loggers:
        try:
            used.log_metrics(figures, step=trainer.global_step)
            used.save()
        except Exception:
            logger.exception("%s did not take the figures of the artifacts", type(used).__name__)


def _subjects(trainer: Any, folder: Path, entries: Sequence[Entry]) -> list[Subject]:
    """Unite the artifacts that share target and weights: one FP32 model is measured for all of them.

    The weights are known by content, for the files of two ModelCheckpoints may have one name.
    """
    subjects: dict[tuple[str | None, str], Subject] = {}
    for callback in quantizing(trainer):
        made = [entry for entry in entries if entry.candidate == callback.name and entry.path is not None]
        if callback.candidate is None or callback.model is None or not made:
            continue
        key = (callback.target, weights_digest(callback.model))
        known = subjects.get(key, Subject(callback.model, callback.target, callback.candidate, folder, ()))
        # A static candidate has its graph already; a dynamic one may have none.
        source = callback.candidate if callback.scheme.method == "static" else known.candidate
        subjects[key] = replace(known, candidate=source, entries=(*known.entries, *made))
    return list(subjects.values())


def _exporter(trainer: Any) -> ArtifactExport:
    exporter = next((callback for callback in trainer.callbacks if isinstance(callback, ArtifactExport)), None)
    if exporter is None:
        raise ConfigError(
            "Int8Evaluation: no ArtifactExport is among the callbacks of this Trainer, and what is evaluated is the "
            "artifact on disk. Add ArtifactExport() to callbacks."
        )
    return exporter
