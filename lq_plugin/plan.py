"""What is asked for when a fit ends, and what comes of it. Knows no Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lq_plugin.candidate import Candidate
from lq_plugin.evaluation.compare import Protocol
from lq_plugin.jobs import Job
from lq_plugin.learning import Sensitivity, Trial
from lq_plugin.report.manifest import Config, Entry, Manifest
from lq_plugin.search.mixed_precision import Search
from lq_plugin.selection import Budget
from lq_plugin.steps import Step


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Args:
        jobs: the candidates to make.
        folder: where artifacts and the manifest go; ``None`` where nothing is exported.
        formats: of the artifacts.
        protocol: how artifacts are evaluated; ``None`` where they are not.
        budget: how much of a metric may be dropped.
        search: limits of the search for mixed precision if a static candidate is over the budget; ``None`` for none.
        monitor: the metric that the checkpoint monitors, and its direction, where known.
        config: sections of the manifest's ``config``.
        seed: the one given to Lightning.
        trained: whether training has just ended, so that whatever can be made is worth having. If not, a user error
            stops everything, and so does having no candidate at all.
        placement: ``"auto"``: operators of static candidates that INT8 slows down on a runtime go back to float there,
            where latency is measured; ``"runtime"``: placed as the runtime wants it, and nothing is measured for that.
        layout: whose names the files of artifacts have: ``"plain"`` (our own) or ``"huggingface"``.
        sign: PEM file of the private key that artifacts are signed with, if any.
    """

    jobs: tuple[Job, ...] = ()
    folder: Path | None = None
    formats: Sequence[str] = ()
    protocol: Protocol | None = None
    budget: Budget = Budget()
    search: Search | None = None
    monitor: tuple[str | None, str | None] = (None, None)
    config: Config = field(default_factory=Config)
    seed: int | None = None
    trained: bool = True
    placement: str = "runtime"
    sign: str | None = None
    layout: str = "plain"

    @property
    def threads(self) -> int | None:
        """Number of threads that exports are for; ``None`` for the runtime's choice."""
        return None if self.protocol is None else self.protocol.threads


@dataclass(frozen=True)
class Finished:
    """The outcome of a plan.

    Args:
        candidates: by their names.
        error: what ended everything before its end, if anything did.
        manifest: as it was written; ``None`` where nothing was exported.
        unjudged: the user error or failure that kept every artifact from being evaluated or judged, if any.
        sensitivity: what each operator costs in INT8, by candidate.
        trials: the trials of all searches.
        conditions: digest of what scores depend on besides an artifact, by candidate.
    """

    candidates: Mapping[str, Step[Candidate]]
    error: Exception | None = None
    manifest: Manifest | None = None
    unjudged: str | None = None
    sensitivity: Mapping[str, Sequence[Sensitivity]] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    conditions: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def entries(self) -> Sequence[Entry]:
        """The artifacts of the manifest, and those that could not be made."""
        return () if self.manifest is None else self.manifest.artifacts
