"""The search for mixed precision if a candidate is over the budget: every trial is an artifact that is evaluated."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from lq_plugin import checksums
from lq_plugin.artifacts.base import FORMATS, export_one
from lq_plugin.artifacts.digest import artifact_digest, learning_digest
from lq_plugin.candidate import Candidate, StaticCandidate
from lq_plugin.evaluation.compare import Protocol, Subject, validated
from lq_plugin.evaluation.judging import judged
from lq_plugin.evaluation.placing import MeasuredPlacement
from lq_plugin.graph.sampling import Samples
from lq_plugin.jobs import Job, StaticJob
from lq_plugin.kept import NOTHING_KEPT, Results, figures, once
from lq_plugin.learning import Sensitivity, Trial
from lq_plugin.progress import doing, note
from lq_plugin.refinement import repeated
from lq_plugin.report.decoder import decode, encode
from lq_plugin.report.manifest import Entry, Fp32, Manifest
from lq_plugin.search.cost import operations, time_saved
from lq_plugin.search.mixed_precision import Search, order, search
from lq_plugin.search.sensitivity import ranked
from lq_plugin.selection import Budget
from lq_plugin.steps import attempt
from lq_plugin.store import Store


@dataclass
class Trials:
    """Makes and measures mixed-precision artifacts of one candidate.

    Args:
        candidate: the candidate that is over the budget.
        samples: what its algorithms learnt from.
        sensitivity: what each of its operators costs in INT8.
        entry: its fastest artifact; trials are made in the same format.
        subject: its model and data.
        fp32: the FP32 figures, measured before.
        protocol: how artifacts are evaluated.
        budget: how much of which metric may be dropped.
        store: keeps the results of trials, so that an interrupted search continues.
        conditions: digest of what scores depend on besides an artifact; ``None``: results of trials are not kept.
        placing: says how much time INT8 saves in each operator; ``None`` where that is not to be measured, and
            multiplications are counted instead.

    Attributes:
        made: every trial so far.
    """

    candidate: StaticCandidate
    samples: Samples
    sensitivity: Sequence[Sensitivity]
    entry: Entry
    subject: Subject
    fp32: Fp32
    protocol: Protocol
    budget: Budget
    store: Store
    conditions: str | None = None
    placing: MeasuredPlacement | None = None
    made: list[Trial] = field(default_factory=list)

    def winner(self, limits: Search) -> StaticCandidate | None:
        """Search, and return the candidate within the budget with the fewest float operators; ``None`` if none is."""
        note(f"{self.candidate.name!r} is over the budget: searching for operators to leave float")
        own = self.candidate.on(self.entry.runtime)  # algorithms may have learnt something else for others
        placed = own.placed(self.entry.runtime).quantized  # others are float already where trials run
        errors = {each.node: each.error for each in self._ranking(own) if each.node in placed}
        ranking = order(errors, time_saved(operations(own.graph), self._microseconds()))
        chosen = search(ranking, self._is_within, limits)
        return None if chosen is None else self._mixed(frozenset(chosen), self.candidate.plain)

    def _ranking(self, own: StaticCandidate) -> Sequence[Sensitivity]:
        if not self.candidate.variants:
            return self.sensitivity
        return _ranked(own, self.samples, self.store.results("sensitivities"))

    def _microseconds(self) -> Mapping[str, float]:
        """What INT8 saves in each operator of the artifact, as far as that is measured."""
        if self.placing is None or not self.placing.applies(self.candidate, self.entry.format):
            return {}
        saved = partial(self.placing.saved, self.candidate, self.entry.format, self.subject.path(self.entry))
        step = attempt("the time of operators cannot be measured; their multiplications are counted instead", saved)
        return step.result or {}

    def _mixed(self, float_ops: frozenset[str], plain: StaticCandidate) -> StaticCandidate:
        """A candidate with some operators left float; the algorithms that were kept run again."""
        plain = replace(plain, keep_float=float_ops)
        learning = self.candidate.learning
        kept = self.store.results("algorithms")
        mixed = plain if learning is None else repeated(plain, self.samples, learning, kept)
        for runtime in mixed.runtimes:
            mixed = mixed.with_float(runtime, self.candidate.on(runtime).faster_in_float.get(runtime, ()))
        return mixed

    def _is_within(self, float_ops: frozenset[str]) -> bool:
        with doing(f"trial {len(self.made) + 1}") as outcome:
            trial = self._trial(float_ops)
            over = "not measured" if trial.drop is None else "over the budget"
            outcome += [
                f"{trial.int8_share:.0%} of the operators in INT8",
                "within the budget" if trial.within else over,
            ]
        self.made.append(trial)
        return trial.within

    def _trial(self, float_ops: frozenset[str]) -> Trial:
        start = time.perf_counter()
        plain = replace(self.candidate.plain, only=frozenset({self.entry.runtime}))  # the winner is made for all
        step = attempt("a trial failed; the search continues", lambda: self._measured(self._mixed(float_ops, plain)))
        placed = self.candidate.placed(self.entry.runtime).quantized
        return Trial(
            candidate=self.candidate.name,
            float_ops=tuple(placed[name].name for name in sorted(float_ops)),
            int8_share=round(1 - len(float_ops) / len(placed), 4),
            drop=None if step.result is None else step.result.drop(self.budget),
            within=step.result is not None and step.result.status == "ok",
            seconds=round(time.perf_counter() - start, 3),
        )

    def _measured(self, candidate: StaticCandidate) -> Entry:
        """A trial's artifact, evaluated on validation data; a stored result is used if nothing has changed."""
        digest = self._digest(candidate)

        def measured() -> Mapping[str, float]:
            with tempfile.TemporaryDirectory() as scratch:
                path, threads = Path(scratch) / self.entry.format, self.protocol.threads
                artifact = export_one(candidate, path, self.entry.format, threads)
                made = self.entry.exported(artifact, Path(scratch))
                return validated(replace(self.subject, folder=Path(scratch)), made, self.protocol)

        results = NOTHING_KEPT if self.conditions is None else self.store.results("trials")
        metrics, _ = once(results, digest, measured, dict, figures)
        return judged(replace(self.entry.compared(metrics, self.fp32), error=None), self.budget)

    def _digest(self, candidate: StaticCandidate) -> str:
        """A digest of what a trial's result depends on: the artifact, and the data, known by FP32's metrics on them."""
        artifact = artifact_digest(candidate, self.entry.format, self.protocol.threads)
        return checksums.of_json([artifact, self.conditions])


def trials_for(
    job: Job,
    candidate: Candidate | None,
    known: Manifest,
    folder: Path,
    protocol: Protocol,
    store: Store,
    conditions: str | None,
    placing: MeasuredPlacement | None = None,
) -> Trials | None:
    """Prepare the search for a candidate; ``None`` if there is nothing to search for.

    Args:
        job: whose candidate it is.
        candidate: only a static one whose operators were ranked can be searched.
        known: what was measured; its fastest artifact must be over the budget.
        folder: of the run.
        protocol: how artifacts are evaluated.
        store: keeps the results of trials.
        conditions: digest of what scores depend on besides an artifact.
        placing: measures what operators cost, if that is to be measured.
    """
    sensitivity, entry = known.sensitivity.get(job.name), _fastest_of(known.artifacts, job.name)
    if not isinstance(job, StaticJob) or not isinstance(candidate, StaticCandidate) or not sensitivity:
        return None
    if entry is None or entry.status != "over_budget" or known.budget is None:
        return None
    return Trials(
        candidate,
        job.samples(candidate.reference),
        sensitivity,
        entry,
        Subject(job.source.model, job.source.target, job.source.data, candidate, folder, ()),
        known.fp32_of(entry),
        protocol,
        known.budget,
        store,
        conditions,
        placing,
    )


def ranking(job: StaticJob, candidate: StaticCandidate, results: Results) -> Sequence[Sensitivity]:
    """Rank a candidate's operators on samples of the validation data; none where no sample is held out.

    Args:
        job: whose candidate it is.
        candidate: it is not changed.
        results: rankings of a run that was interrupted.
    """
    return _ranked(candidate, job.samples(candidate.reference), results)


def _ranked(candidate: StaticCandidate, samples: Samples, results: Results) -> Sequence[Sensitivity]:
    if not samples.judge:
        return ()

    def read(content: Any) -> tuple[Sensitivity, ...]:
        return tuple(decode(Sensitivity, each) for each in content)

    digest = learning_digest(candidate, "sensitivity", samples.judge)
    made: tuple[Sensitivity, ...]
    with doing(f"{candidate.name!r}: ranking operators by what INT8 costs"):
        made, _ = once(results, digest, lambda: ranked(candidate, samples.judge), encode, read)
    return made


def _fastest_of(entries: Sequence[Entry], candidate: str) -> Entry | None:
    """Return a candidate's fastest artifact that is a graph and was judged; the first one if none was timed."""
    judged_ones = [
        entry
        for entry in entries
        if entry.candidate == candidate and entry.status in ("ok", "over_budget") and FORMATS[entry.format].load
    ]
    return min(judged_ones, key=lambda entry: entry.median or float("inf"), default=None)
