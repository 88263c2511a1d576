"""Every reloaded artifact in the module's own loop, its latency and size, and the choice among them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from types import NoneType
from typing import Any

from torchmetrics import Metric, MetricCollection

from lq_plugin import selection
from lq_plugin.callbacks import bars
from lq_plugin.callbacks import checkpoint as checkpoints
from lq_plugin.callbacks.export import ArtifactExport
from lq_plugin.callbacks.finishing import FinishingCallback, Origin, is_of_a_command
from lq_plugin.errors import ConfigError, unknown_name
from lq_plugin.evaluation.compare import Protocol
from lq_plugin.evaluation.latency import Latency
from lq_plugin.evaluation.loop import SPLITS
from lq_plugin.options import check_type
from lq_plugin.plan import Finished, Plan
from lq_plugin.printing import counted
from lq_plugin.report import manifest, table
from lq_plugin.report.manifest import Manifest
from lq_plugin.search.mixed_precision import Search
from lq_plugin.selection import Budget
from lq_plugin.steps import reason_of

logger = logging.getLogger("lq_plugin")


class Int8Evaluation(FinishingCallback):
    """Evaluate every artifact, reloaded from disk, when fit ends: metrics, latency, size, fidelity.

    The LightningModule's own ``validation_step`` (and ``test_step``) runs with the target's forward replaced by the
    artifact. FP32 runs the same way, with the same weights. The budget is judged on validation metrics alone: without
    any, artifacts are ``not_evaluated`` in the manifest, and none is selected. The same holds where the evaluation
    fails; this raises nothing, because training is over, and the manifest gives the reason as their ``error``.

    Args:
        splits: ``"validate"`` and ``"test"``; one without a loader is left out. A metric that both log under one name
            is reported as ``test/<name>`` for the test split.
        metrics: torchmetrics by name for modules that log nothing, updated with
            ``(output of the target, batch[label])`` and reported as ``<split>/<name>``.
        label: index or key of the labels in a batch, for ``metrics``.
        budget: how much of a metric may be dropped.
        latency: how latency is measured; ``None`` leaves it out, and nothing is selected then. An artifact that is
            slower than the fastest FP32 runtime is not selected either; the manifest's ``unselected`` says so.
        search: if a static candidate is over the budget, search for operators to leave float until the budget is met;
            ``None`` for no search.

    Attributes:
        manifest: the content of ``manifest.json`` after fit.
        error: the user error or failure that kept every artifact from being evaluated or judged, if any.

    Raises:
        ConfigError: an option has another type, an unknown split or none, a budget where validation is not among the
            splits, or no :class:`ArtifactExport` beside this callback.
    """

    def __init__(
        self,
        splits: Sequence[str] = SPLITS,
        metrics: Mapping[str, Metric] | None = None,
        label: int | str = 1,
        budget: Budget = Budget(),
        latency: Latency | None = Latency(),
        search: Search | None = None,
    ) -> None:
        check_type("budget", budget, Budget)
        check_type("latency", latency, Latency, NoneType)
        check_type("search", search, Search, NoneType)
        check_type("metrics", metrics, Mapping, MetricCollection, NoneType)
        for name, metric in (metrics or {}).items():
            check_type(f"metrics: {name!r}", metric, Metric)
        check_type("splits", splits, str, Sequence)
        splits = (splits,) if isinstance(splits, str) else tuple(splits)
        if not splits:
            raise ConfigError(f"splits: there is none. Allowed: {', '.join(map(repr, SPLITS))}.")
        for split in splits:
            if split not in SPLITS:
                raise unknown_name("splits", split, SPLITS)
        if "validate" not in splits and budget != Budget():
            raise ConfigError(
                f"budget: it applies to validation metrics, but splits={list(splits)} leave validation out. "
                "Add 'validate' to splits, or leave the budget out."
            )
        self.protocol = Protocol(splits, dict(metrics or {}), label, latency)
        self.budget = budget
        self.search = search
        self.manifest: Manifest | None = None
        self.error: str | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check that there are artifacts to evaluate."""
        if stage == "fit":
            self.manifest = self.error = None
            _exporter(trainer)

    def ask(self, trainer: Any, origin: Origin, plan: Plan) -> Plan:
        """Ask for the artifacts to be evaluated, and one of them selected."""
        return replace(
            plan,
            protocol=self.protocol,
            budget=self.budget,
            search=self.search,
            monitor=_monitor(trainer),
            config=replace(plan.config, evaluation=self.options()),
        )

    def receive(self, finished: Finished) -> None:
        """Take the manifest, and the reason why artifacts were not judged."""
        self.manifest = finished.manifest
        self.error = finished.unjudged if finished.error is None else reason_of(finished.error)

    @property
    def unmet(self) -> str | None:
        """Says that a search found no artifact within the budget; ``None`` if there is one, or there was no search."""
        if self.search is None or self.manifest is None:
            return None
        statuses = {entry.status for entry in self.manifest.artifacts}
        if "ok" in statuses or "over_budget" not in statuses:
            return None
        if not self.manifest.trials:
            return (
                "search: no artifact is within the budget, and nothing could be tried: only static candidates with "
                "several operators in INT8 can be searched, within time_limit. Raise the budget or time_limit."
            )
        tried = counted(len(self.manifest.trials), "trial")
        return (
            f"search: none of {tried} with more float operators is within the budget. "
            f"Raise max_trials or the budget's max_drop. {manifest.FILE} lists all trials."
        )

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Print the table, and warn of an unmet budget."""
        if stage == "fit" and self.manifest is not None:
            folder = _exporter(trainer).folder
            assert folder is not None
            try:
                bars.end(trainer)
                table.show(self.manifest, folder)
            except Exception:  # training is over, and all of it is in the manifest
                logger.exception("the table cannot be shown; see %s", folder / manifest.FILE)
            if self.unmet is not None and not is_of_a_command(trainer):  # which ends with it as its error
                logger.warning("%s", self.unmet)

    def expected_budget(self, trainer: Any) -> Budget:
        """Return the budget as known before a fit, with the checkpoint's monitored metric where it names none."""
        monitor, mode = _monitor(trainer)
        name = self.budget.metric or monitor
        return selection.resolve(self.budget, [name] if name else [], monitor, mode)

    def options(self) -> dict[str, Any]:
        """Return this callback's exact configuration as builtins, for the manifest."""
        return {
            "splits": list(self.protocol.splits),
            "metrics": {name: repr(metric) for name, metric in self.protocol.metrics.items()},
            "label": self.protocol.label,
            "latency": asdict(self.protocol.latency) if self.protocol.latency else None,
            "search": asdict(self.search) if self.search else None,
        }


def _monitor(trainer: Any) -> tuple[str | None, str | None]:
    """The metric that the first ModelCheckpoint monitors, and its direction."""
    monitored = checkpoints.monitored(trainer)
    return getattr(monitored, "monitor", None), getattr(monitored, "mode", None)


def _exporter(trainer: Any) -> ArtifactExport:
    exporter = next((callback for callback in trainer.callbacks if isinstance(callback, ArtifactExport)), None)
    if exporter is None:
        raise ConfigError(
            "Int8Evaluation: it evaluates artifacts on disk, but this Trainer has no ArtifactExport. "
            "Add ArtifactExport() to callbacks."
        )
    return exporter
