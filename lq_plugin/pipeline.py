"""From the weights and statistics of a fit to artifacts on disk, measured, one of them selected. Knows no Trainer.

Every step is kept in a store under the digest of what determines it, before the next one begins: a run that was
interrupted continues by running again. A step that fails is recorded, and only what needs it is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from lq_plugin import selection
from lq_plugin.artifacts.base import FORMATS, formats_of
from lq_plugin.artifacts.layout import HUGGINGFACE
from lq_plugin.candidate import Candidate, StaticCandidate
from lq_plugin.distributions import value_ranges
from lq_plugin.errors import is_mistake
from lq_plugin.evaluation.compare import Comparison, Protocol, Subject, Timed, compare, timed
from lq_plugin.evaluation.judging import judged, select, unselected
from lq_plugin.evaluation.placing import MeasuredPlacement
from lq_plugin.exporting import exported, provenance
from lq_plugin.hub import hand_over
from lq_plugin.interruption import accounted
from lq_plugin.jobs import Job, StaticJob
from lq_plugin.learning import Sensitivity, Trial, ValueRange
from lq_plugin.output_folder import only_run_in, remove_manifest, say_unlisted, sign_artifacts, write_page
from lq_plugin.placing import Candidates, placed, recalled
from lq_plugin.plan import Finished, Plan
from lq_plugin.report import manifest
from lq_plugin.report.environment import environment
from lq_plugin.report.limits import LONGEST_VALUE, MOST
from lq_plugin.report.manifest import Entry, Environment, Fp32, Manifest
from lq_plugin.search.mixed_precision import Search
from lq_plugin.selection import Budget
from lq_plugin.steps import Step, attempt, reason_of
from lq_plugin.store import Store
from lq_plugin.trials import ranking, trials_for

UNJUDGED = (
    "no artifact was judged: there is no validation metric, and the test split is never used to judge. Log one in "
    "validation_step, or give metrics={…}, with 'validate' among the splits."
)


def finish(plan: Plan, store: Store, publish: Callable[[Manifest, Path], None] | None = None) -> Finished:
    """Make candidates, export them, evaluate the artifacts, select one, and write the manifest after each of these.

    Args:
        plan: what is to be done.
        store: steps that earlier runs have finished.
        publish: sends the complete manifest and its folder elsewhere, before another run may write to that folder.

    Raises:
        LqError: a user error, or the reason why there is no candidate; only where nothing was trained.
    """
    if plan.folder is None:
        finished = Finished(_candidates(plan, store))
    else:
        with only_run_in(plan.folder):
            told = {reason_of(job.failure) for job in plan.jobs if job.failure is not None}
            run = _Run(plan, plan.folder, store, _placing(plan, store), told)
            with accounted(plan.folder, [f"{job.name}/{name}" for job, name in _wanted(plan)], run.made):
                finished = _delivered(run)
                if finished.manifest is not None:
                    write_page(plan.folder, finished.manifest)
                    _handed_over(plan, plan.folder, finished.manifest)
                    if publish is not None:
                        publish(finished.manifest, plan.folder)
    store.complete()
    return finished


def _handed_over(plan: Plan, folder: Path, content: Manifest) -> None:
    """Complete the artifacts' folders when nothing is measured any more; the signature comes last."""
    if plan.layout == HUGGINGFACE:
        made = {entry.candidate for entry in content.artifacts if entry.path is not None}
        jobs = [job for job in plan.jobs if job.name in made]
        attempt(
            "the artifacts' folders lack what Hugging Face's libraries read beside a model",
            lambda: hand_over(folder, content, {job.name: job.source.float_target for job in jobs}),
        )
    if plan.sign is not None:
        sign_artifacts(folder, content, plan.sign)


@dataclass(frozen=True)
class _Run:
    """A plan whose artifacts and manifest go to a folder."""

    plan: Plan
    folder: Path
    store: Store
    placing: MeasuredPlacement | None = None
    told: set[str] = field(default_factory=set)  # see exported
    made: dict[str, Entry] = field(default_factory=dict)  # what is known of the artifacts so far, by label
    environment: Environment = field(default_factory=environment)
    ranges: dict[str, tuple[Candidate, tuple[ValueRange, ...]]] = field(default_factory=dict)  # those last listed

    def ranges_of(self, name: str, candidate: Candidate) -> tuple[ValueRange, ...]:
        """List the ranges of a candidate once: the manifest is written after every step."""
        known, found = self.ranges.get(name, (None, ()))
        if known is not candidate:
            listing = partial(value_ranges, candidate, MOST)
            found = attempt(f"the ranges of {name!r} cannot be listed", listing).result or ()
            self.ranges[name] = candidate, found
        return found

    def exported(self, job: Job, candidate: Step[Candidate], format_name: str) -> Entry:
        plan = self.plan
        entry = exported(job, candidate, format_name, self.folder, self.store, plan.threads, self.told, plan.layout)
        known = self.placing and self.placing.known(candidate.result, format_name)
        entry = replace(entry, placement=known.reason) if known and entry.path is not None else entry
        self.made[entry.label] = entry
        return entry

    def exported_again(self, entry: Entry, candidates: Candidates) -> Entry:
        job = next(job for job in self.plan.jobs if job.name == entry.candidate)
        return self.exported(job, candidates[job.name], entry.format)


def _placing(plan: Plan, store: Store) -> MeasuredPlacement | None:
    """What decides on placements by measuring; ``None`` where nothing is to be measured."""
    latency = None if plan.protocol is None else plan.protocol.latency
    return None if plan.placement == "runtime" or latency is None else MeasuredPlacement(latency, store.decisions())


def _delivered(run: _Run) -> Finished:
    plan = run.plan
    candidates: Candidates = _candidates(plan, run.store)
    if run.placing is not None:
        candidates = recalled(run.placing, candidates, plan.formats)
    earlier = remove_manifest(run.folder)
    entries = [run.exported(job, candidates[job.name], name) for job, name in _wanted(plan)]
    say_unlisted(run.folder, earlier, entries)
    finished = _with_manifest(run, Finished(candidates), entries)
    if plan.protocol is None:
        return finished
    finished = _evaluated(run, plan.protocol, finished)
    return finished if plan.search is None else _searched(run, plan.protocol, plan.search, finished)


def _wanted(plan: Plan) -> list[tuple[Job, str]]:
    """The artifacts to make: jobs and formats."""
    return [(job, name) for job in plan.jobs for name in formats_of(job.scheme.method, plan.formats)]


def _candidates(plan: Plan, store: Store) -> dict[str, Step[Candidate]]:
    runtimes = None if plan.folder is None else frozenset(FORMATS[name].runtime for name in plan.formats)
    candidates = {
        job.name: attempt(
            f"candidate {job.name!r} could not be made",
            partial(replace(job, runtimes=runtimes).candidate, store),
            Step[None](error=job.failure),
        )
        for job in plan.jobs
    }
    if not plan.trained:
        _check(candidates)
    return candidates


def _check(candidates: Mapping[str, Step[Candidate]]) -> None:
    """Raise a user error, or the reason why there is no candidate at all."""
    errors = [step.error for step in candidates.values() if step.error is not None]
    mistakes = [error for error in errors if is_mistake(error)]
    if mistakes or (errors and len(errors) == len(candidates)):
        raise (mistakes or errors)[0]


def _evaluated(run: _Run, protocol: Protocol, finished: Finished) -> Finished:
    """Evaluate, judge and select; a model that cannot be evaluated does not stop the others."""
    comparisons: list[Comparison] = []
    measured: dict[str, Entry] = {}
    subjects = attempt("nothing can be evaluated", partial(_subjects, run, finished.candidates, finished.entries))
    failure = subjects.reason
    for given in subjects.result or ():
        times, subject = _timed(run, given, protocol), given
        if run.placing is not None and times.result is not None:
            finished = _placed(run, run.placing, finished, given, times.result)
            subject = _renewed(given, finished)
            times = times if _sums(subject) == _sums(given) else _timed(run, subject, protocol)
        step = _compared(run, subject, protocol, times)
        failure = step.reason or failure
        if step.result is None:
            measured |= {entry.label: replace(entry, error=step.reason) for entry in subject.entries}
        else:
            comparisons.append(step.result)
            under = dict.fromkeys((entry.candidate for entry in subject.entries), step.result.conditions)
            finished = replace(finished, conditions={**finished.conditions, **under})
            measured |= {entry.label: entry for entry in step.result.entries}
    entries = [measured.get(entry.label, entry) for entry in finished.entries]
    if not comparisons:
        return replace(_with_manifest(run, finished, entries, budget=run.plan.budget), unjudged=failure)
    budget, reason, mistake = _budget(run.plan, comparisons[0].judged_by)
    judgements = [judged(entry, budget, reason) for entry in entries]
    finished = replace(finished, sensitivity=_sensitivity(run, finished, judgements))
    finished = _with_manifest(run, finished, judgements, fp32=comparisons[0].fp32, budget=budget)
    return replace(finished, unjudged=mistake)


def _timed(run: _Run, subject: Subject, protocol: Protocol) -> Step[Timed]:
    make = partial(timed, subject, protocol, run.store.results("latencies"))
    return attempt(f"the latency of {subject.labels} cannot be measured", make)


def _compared(run: _Run, subject: Subject, protocol: Protocol, times: Step[Timed]) -> Step[Comparison]:
    def compared() -> Comparison:
        assert times.result is not None
        return compare(subject, protocol, times.result, run.store.results("scores"))

    return attempt(f"{subject.labels} cannot be evaluated", compared, times)


def _sums(subject: Subject) -> Sequence[Mapping[str, str]]:
    return [entry.sha256 for entry in subject.entries]


def _placed(run: _Run, placing: MeasuredPlacement, finished: Finished, subject: Subject, known: Timed) -> Finished:
    """Decide on the placements of a subject's artifacts, and export those again that are faster in another one."""
    finished = replace(finished, candidates=placed(placing, finished.candidates, subject, known))
    for entry in subject.entries:
        if entry.placement is not None:
            continue
        decision = placing.known(finished.candidates[entry.candidate].result, entry.format)
        if decision is not None and decision.float_ops:
            finished = _with_entry(run, finished, run.exported_again(entry, finished.candidates))
        elif decision is not None:
            finished = _with_entry(run, finished, replace(entry, placement=decision.reason))
    return finished


def _renewed(subject: Subject, finished: Finished) -> Subject:
    """The subject with its artifacts as they are now; one that could not be exported again is none."""
    labels = {entry.label for entry in subject.entries}
    made = [entry for entry in finished.entries if entry.label in labels and entry.path is not None]
    return replace(subject, entries=made)


def _sensitivity(run: _Run, finished: Finished, entries: Sequence[Entry]) -> Mapping[str, Sequence[Sensitivity]]:
    """Rank the operators of static candidates that are over the budget or that algorithms ran for; each only once."""
    found, results = dict(finished.sensitivity), run.store.results("sensitivities")
    for job in run.plan.jobs:
        candidate = finished.candidates[job.name].result
        if job.name in found or not isinstance(job, StaticJob) or not isinstance(candidate, StaticCandidate):
            continue
        over = any(entry.candidate == job.name and entry.status == "over_budget" for entry in entries)
        if over or (candidate.learning is not None and candidate.learning.judged):
            step = attempt(f"the operators of {job.name!r} cannot be ranked", partial(ranking, job, candidate, results))
            if step.result:
                found[job.name] = step.result
    return found


def _searched(run: _Run, protocol: Protocol, search: Search, finished: Finished) -> Finished:
    """Search mixed precision for each static candidate that is over the budget; export and evaluate the winners."""
    known = finished.manifest
    if known is None or known.budget is None:
        return finished
    made, winners = list[Trial](), dict[str, Step[Candidate]]()
    for job in run.plan.jobs:
        candidate = finished.candidates[job.name].result
        trials = trials_for(
            job,
            candidate,
            known,
            run.folder,
            protocol,
            run.store,
            finished.conditions.get(job.name),
            run.placing,
        )
        if trials is not None:
            step = attempt(f"the search for {job.name!r} failed", partial(trials.winner, search))
            made += trials.made
            winners |= {job.name: Step(step.result)} if step.result is not None else {}
    finished = replace(
        finished,
        candidates={**finished.candidates, **winners},
        sensitivity={name: found for name, found in finished.sensitivity.items() if name not in winners},
        trials=tuple(made),
    )
    if not winners:
        return _with_manifest(run, finished, known.artifacts, fp32=known.fp32, budget=known.budget)
    settled = replace(run, placing=None)  # a winner keeps what was decided about the candidate that it comes from
    for entry in known.artifacts:
        if entry.candidate in winners:
            finished = _with_entry(run, finished, _won(settled.exported_again(entry, winners), entry.placement))
    return _evaluated(settled, protocol, finished)


def _won(entry: Entry, placement: str | None) -> Entry:
    """A winner's artifact with what was measured about the artifact that it replaces; its own placement was not."""
    if placement is None or entry.path is None:
        return entry
    return replace(entry, placement=f"before the search for mixed precision: {placement}")


def _subjects(run: _Run, candidates: Mapping[str, Step[Candidate]], entries: Sequence[Entry]) -> list[Subject]:
    """Group the artifacts by target and weights: one FP32 model is measured for each group."""
    subjects: dict[tuple[str | None, str], Subject] = {}
    for job in run.plan.jobs:
        candidate, source = candidates[job.name].result, job.source
        made = [entry for entry in entries if entry.candidate == job.name and entry.path is not None]
        if candidate is None or not made:
            continue
        first = Subject(source.model, source.target, source.data, candidate, run.folder, ())
        known = subjects.get((source.target, source.digest), first)
        # A static candidate has its graph already; a dynamic one may have none.
        serving = candidate if isinstance(candidate, StaticCandidate) else known.candidate
        subjects[source.target, source.digest] = replace(known, candidate=serving, entries=(*known.entries, *made))
    return list(subjects.values())


def _budget(plan: Plan, logged: Sequence[str]) -> tuple[Budget, str | None, str | None]:
    """Return the budget with its metric, why it cannot be applied, and that reason again where it is a user error."""
    if not logged:
        return plan.budget, UNJUDGED, None
    step = attempt("no artifact is judged", partial(selection.resolve, plan.budget, logged, *plan.monitor))
    return step.result or plan.budget, step.reason, step.reason


def _with_manifest(
    run: _Run, finished: Finished, entries: Sequence[Entry], fp32: Fp32 | None = None, budget: Budget | None = None
) -> Finished:
    """Write the manifest with what is known so far."""
    run.made.update({entry.label: entry for entry in entries})
    candidates = {name: step.result for name, step in finished.candidates.items() if step.result is not None}
    learnt = [one.learning for one in candidates.values() if one.learning]
    made = Manifest(
        fp32=fp32 or Fp32(),
        artifacts=tuple(entries),
        selected=select(entries),
        unselected=unselected(entries),
        budget=budget,
        calibration={name: provenance(candidate) for name, candidate in candidates.items()},
        notes=_notes(run.plan.jobs, candidates),
        steps=tuple(step for learning in learnt for step in learning.steps),
        sensitivity={name: tuple(found) for name, found in finished.sensitivity.items()},
        ranges={name: found for name, candidate in candidates.items() if (found := run.ranges_of(name, candidate))},
        trials=finished.trials,
        environment=run.environment,
        seed=run.plan.seed,
        config=replace(run.plan.config, quantization={job.name: job.options for job in run.plan.jobs}),
    )
    place = run.folder / manifest.FILE
    message = f"{str(place)!r} cannot be written; its content is in ArtifactExport.manifest"
    attempt(message, partial(manifest.write, run.folder, made))
    return replace(finished, manifest=made)


def _with_entry(run: _Run, finished: Finished, made: Entry) -> Finished:
    """Write the manifest with an artifact as it is now; a run that is killed later leaves no checksums of another."""
    known = finished.manifest
    assert known is not None
    entries = [made if entry.label == made.label else entry for entry in known.artifacts]
    return _with_manifest(run, finished, entries, known.fp32, known.budget)


def _notes(jobs: Sequence[Job], candidates: Mapping[str, Candidate]) -> Mapping[str, tuple[str, ...]]:
    """What the user was told about the weights and the graph of each candidate."""
    found = {
        job.name: (*job.source.notes, *candidates[job.name].notes)[:MOST] for job in jobs if job.name in candidates
    }
    return {name: tuple(text[:LONGEST_VALUE] for text in notes) for name, notes in found.items() if notes}
