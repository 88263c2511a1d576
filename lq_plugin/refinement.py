"""Runs algorithms on a candidate, and keeps each only if it helps on held-out samples."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lq_plugin import learnt
from lq_plugin.algorithms import TABLE, Algorithm
from lq_plugin.artifacts.digest import learning_digest
from lq_plugin.candidate import Candidate, DynamicCandidate, StaticCandidate
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.graph.sampling import GraphCall, Samples
from lq_plugin.graph.torch_patches import isolated
from lq_plugin.kept import NOTHING_KEPT, Results, once
from lq_plugin.learning import AlgorithmStep, Learning
from lq_plugin.progress import doing, note
from lq_plugin.report.decoder import decode, encode
from lq_plugin.steps import attempt

LEAST_GAIN_DB = 0.3  # smaller gains on held-out samples were noise
LEAST_SAMPLES = 32  # with fewer, algorithms overfit the samples
SAME_FUNCTION_DB = 100  # float32 rounding errors alone leave more
EXACT_DB = 200.0  # used for equal outputs, whose SQNR is infinite

C = TypeVar("C", StaticCandidate, DynamicCandidate)
Decibels = Mapping[str, tuple[float, ...]]  # by runtime, one for each output


@dataclass(frozen=True)
class _Judge:
    """Compares the outputs of candidates with the reference, on held-out samples."""

    calls: Sequence[GraphCall]
    wanted: Sequence[Sequence[Tensor]]

    @classmethod
    def of(cls, candidate: Candidate, calls: Sequence[GraphCall]) -> _Judge:
        return cls(calls, _outputs(candidate.reference.module, calls))

    def decibels(self, candidate: Candidate, runtimes: Sequence[str]) -> Decibels:
        """SQNR of INT8 on runtimes."""
        return {runtime: self._sqnr(candidate.in_torch(runtime)) for runtime in runtimes}

    def float_decibels(self, candidate: Candidate) -> float:
        """SQNR of the candidate's own float graph, for the worst output."""
        return min(self._sqnr(candidate.graph.module))

    def _sqnr(self, module: Callable[..., Sequence[Tensor]]) -> tuple[float, ...]:
        given = _outputs(module, self.calls)
        found = []
        for number in range(len(self.wanted[0])):
            metric = SignalToQuantizationNoise(sync_on_compute=False)  # the other processes wait
            for ours, theirs in zip(given, self.wanted, strict=True):
                finite = theirs[number].isfinite()  # a mask may put infinity there
                metric.update(ours[number][finite], theirs[number][finite])
            found.append(_bounded(metric))
        return tuple(found)


def refined(candidate: C, samples: Samples, results: Results = NOTHING_KEPT) -> C:
    """Run the algorithms of a candidate's scheme, each on the result of the one before.

    Args:
        candidate: as it is without algorithms; it is not changed.
        samples: of the graph's inputs.
        results: what algorithms have given in a run that was interrupted.

    Returns:
        A candidate whose ``learning`` lists what was tried, kept, refused and failed; it is usable without any of them.
        Without algorithms, the candidate itself.
    """
    names = candidate.scheme.algorithm_names
    if not names:
        return candidate
    graph = candidate.reference
    learn, judge = (sum(map(graph.samples, calls)) for calls in (samples.learn, samples.judge))
    learning = Learning(learn, judge, samples.left_out, samples.share, samples.seed)

    def made() -> tuple[C, list[AlgorithmStep]]:
        if reason := _nothing_to_learn(candidate, samples, learn + judge):
            return candidate, _untried(candidate, reason)
        return _run(candidate, samples, names, results)

    done = attempt(f"the algorithms of candidate {candidate.name!r} could not run; it is used without them", made)
    failed = [AlgorithmStep(candidate.name, name, "failed", done.reason or "") for name in names]
    result, steps = done.result or (candidate, failed)
    return _with(result, replace(learning, steps=tuple(steps)))


def unrefined(candidate: C, reason: str) -> C:
    """Return a candidate whose ``learning`` says why none of its scheme's algorithms was tried."""
    if not candidate.scheme.algorithm_names:
        return candidate
    return _with(candidate, Learning(0, 0, 0, None, 0, tuple(_untried(candidate, reason))))


def _with(candidate: C, learning: Learning) -> C:
    """Return a candidate with its learning. ``replace`` would drop what it has captured and placed."""
    made = copy.copy(candidate)
    object.__setattr__(made, "learning", learning)
    return made


def _untried(candidate: Candidate, reason: str) -> list[AlgorithmStep]:
    return [AlgorithmStep(candidate.name, name, "not_tried", reason) for name in candidate.scheme.algorithm_names]


def repeated(
    candidate: StaticCandidate, samples: Samples, learning: Learning, results: Results = NOTHING_KEPT
) -> StaticCandidate:
    """Run algorithms again that were kept before, for a candidate in which more operators stay float.

    What they learn depends on which operators are quantized, so it cannot be reused.

    Args:
        candidate: with plain calibration.
        samples: the same as before.
        learning: which algorithms were kept on which runtime.
        results: what algorithms have given in a run that was interrupted.
    """
    if not any(step.kept_on for step in learning.steps):
        return replace(candidate, learning=learning)
    states = dict(candidate.apart())
    for runtimes in _alike(states):
        plain = states[runtimes[0]]
        for names in dict.fromkeys(map(learning.kept_on, runtimes)):
            result = plain
            for name in names:
                result = _ran(result, TABLE[name], samples, results)
            states |= {runtime: result for runtime in runtimes if learning.kept_on(runtime) == names}
    return replace(_joined(states), learning=learning)


def _nothing_to_learn(candidate: Candidate, samples: Samples, count: int) -> str:
    if count < LEAST_SAMPLES or not samples.judge or not samples.learn:
        return f"{count} samples are too few to learn from; {LEAST_SAMPLES} are needed"
    (outputs,) = _outputs(candidate.reference.module, samples.judge[:1])
    if not outputs:
        return "the target returns no floating-point tensor, so no step can be judged"
    return ""


def _ran(candidate: C, algorithm: Algorithm, samples: Samples, results: Results) -> C:
    """Run an algorithm, unless a run that was interrupted did."""

    def make() -> C:
        made: C = algorithm.run(candidate, samples.learn, samples.seed)
        return made

    made, _ = once(
        results,
        learning_digest(candidate, algorithm.name, samples.learn, samples.seed),
        make,
        write=lambda made: learnt.written(candidate, made),
        read=lambda content: learnt.read(candidate, content),
    )
    return made


def _run(candidate: C, samples: Samples, names: Sequence[str], results: Results) -> tuple[C, list[AlgorithmStep]]:
    """Run each algorithm once for all runtimes that quantize the same values."""
    steps: list[AlgorithmStep] = []
    judge = _Judge.of(candidate, samples.judge)
    limit = candidate.scheme.algorithm_time_limit
    states = dict(candidate.apart())
    if not states:
        return candidate, _untried(candidate, "nothing can be quantized for the runtimes that artifacts are made for")
    before = dict(judge.decibels(candidate, candidate.runtimes))
    for name in names:
        for runtimes in _alike(states):
            known = {runtime: before[runtime] for runtime in runtimes}
            if limit is not None and sum(step.seconds for step in steps) >= limit:  # also those of an earlier run
                reason = f"the time limit of {limit:g} s was reached"
                note(f"{candidate.name!r}: {name}{_where(runtimes, before)} is not tried: {reason}")
                steps.append(AlgorithmStep(candidate.name, name, "not_tried", reason, before=_means(known)))
                continue
            with doing(f"{candidate.name!r}: {name}{_where(runtimes, before)}") as outcome:
                result, step, after = _tried_once(states[runtimes[0]], TABLE[name], samples, judge, known, results)
                outcome.append(_told(step))
            steps.append(step)
            states |= dict.fromkeys(step.kept_on, result)
            before |= {runtime: after[runtime] for runtime in step.kept_on}
    return (_joined(states) if any(step.kept_on for step in steps) else candidate), steps


def _where(runtimes: Sequence[str], every: Mapping[str, object]) -> str:
    """Names the runtimes unless they are all."""
    return "" if len(runtimes) == len(every) else f" for {' and '.join(runtimes)}"


def _alike(states: Mapping[str, Candidate]) -> list[list[str]]:
    """The runtimes, those together that share a candidate."""
    found: dict[int, list[str]] = {}
    for runtime, candidate in states.items():
        found.setdefault(id(candidate), []).append(runtime)
    return list(found.values())


def _joined(states: Mapping[str, C]) -> C:
    """One candidate of what was learnt for each runtime: that of most runtimes, with the others as its variants."""
    groups = sorted(_alike(states), key=len, reverse=True)
    main = states[groups[0][0]]
    if not isinstance(main, StaticCandidate):
        return main
    variants = {runtime: states[runtime] for group in groups[1:] for runtime in group}
    return replace(main, only=frozenset(groups[0]), variants=variants)


def _tried_once(
    candidate: C, algorithm: Algorithm, samples: Samples, judge: _Judge, before: Decibels, results: Results
) -> tuple[C, AlgorithmStep, Decibels]:
    """Run one algorithm and judge it, unless a run that was interrupted did."""

    def write(tried: tuple[C, AlgorithmStep, Decibels]) -> Any:
        result, step, after = tried
        if step.outcome == "failed":
            raise ValueError("it may work the next time")
        return {"learnt": learnt.written(candidate, result), "step": encode(step), "after": encode(after)}

    def read(content: Any) -> tuple[C, AlgorithmStep, Decibels]:
        result, step = learnt.read(candidate, content["learnt"]), decode(AlgorithmStep, content["step"])
        return result, step, decode(Decibels, content["after"])

    digest = learning_digest(candidate, algorithm.name, samples.learn, samples.judge, samples.seed, sorted(before))
    tried, known = once(results, digest, lambda: _tried(candidate, algorithm, samples, judge, before), write, read)
    if known:
        note(f"{candidate.name!r}: {algorithm.name} taken from a run that was interrupted")
    return tried


def _tried(
    candidate: C, algorithm: Algorithm, samples: Samples, judge: _Judge, before: Decibels
) -> tuple[C, AlgorithmStep, Decibels]:
    """Run one algorithm and decide on which runtimes its result is kept."""
    began = time.perf_counter()

    def made() -> tuple[C, Decibels, _Verdict]:
        result: C = algorithm.run(candidate, samples.learn, samples.seed)
        if result is candidate:
            return result, before, _Verdict((), "it found nothing to change in this model")
        if algorithm.rewrites and (db := judge.float_decibels(result)) < SAME_FUNCTION_DB:
            return result, before, _Verdict((), f"it changed the outputs of the float model ({db:.0f} dB)")
        after = judge.decibels(result, tuple(before))
        return result, after, _verdict(before, after)

    step = AlgorithmStep(candidate.name, algorithm.name, "failed", before=_means(before))
    outcome = attempt(f"{algorithm.name} of candidate {candidate.name!r} failed; its result is not used", made)
    step = replace(step, seconds=round(time.perf_counter() - began, 3), peak_memory_bytes=_peak_memory())
    if outcome.result is None:
        return candidate, replace(step, reason=outcome.reason or ""), before
    result, after, verdict = outcome.result
    said = "kept" if verdict.kept_on else "refused"
    return result, replace(step, outcome=said, after=_means(after), **vars(verdict)), after


@dataclass(frozen=True)
class _Verdict:
    """On which runtimes a step is kept, and why not on the others."""

    kept_on: tuple[str, ...]
    reason: str


def _verdict(before: Decibels, after: Decibels) -> _Verdict:
    gains = {runtime: _means(after)[runtime] - _means(before)[runtime] for runtime in before}
    small = [f"{gain:+.2f} dB on {runtime}" for runtime, gain in gains.items() if not gain >= LEAST_GAIN_DB]
    enough = [runtime for runtime, gain in gains.items() if gain >= LEAST_GAIN_DB]
    worse = [runtime for runtime in enough if min(after[runtime]) < min(before[runtime])]
    reasons = [f"{', '.join(small)}; at least +{LEAST_GAIN_DB} dB is needed"] if small else []
    reasons += [f"the worst output loses accuracy on {', '.join(worse)}"] if worse else []
    return _Verdict(tuple(runtime for runtime in enough if runtime not in worse), "; ".join(reasons))


def _means(decibels: Decibels) -> dict[str, float]:
    return {runtime: round(sum(each) / len(each), 2) for runtime, each in decibels.items()}


def _bounded(metric: SignalToQuantizationNoise) -> float:
    """Decibels as a finite number, also where nothing but zeros is wanted, or nan is given."""
    noise = metric.noise.item()
    if noise == 0:
        return EXACT_DB
    return max(-EXACT_DB, min(metric.compute().item(), EXACT_DB)) if math.isfinite(noise) else -EXACT_DB


def _told(step: AlgorithmStep) -> str:
    """What became of a step, and on which runtimes if it is kept on some of them only."""
    if not step.kept_on:
        return f"{step.outcome}, {step.reason}" if step.reason else step.outcome
    worst = min(step.kept_on, key=step.after.__getitem__)
    where = _where(step.kept_on, step.before)
    return f"kept{where}, {step.before[worst]:.1f} → {step.after[worst]:.1f} dB"


def _outputs(module: Callable[..., Sequence[Tensor]], calls: Sequence[GraphCall]) -> list[Sequence[Tensor]]:
    """The floating-point outputs of each call."""
    with isolated(), torch.no_grad():
        return [[tensor for tensor in module(*given) if tensor.is_floating_point()] for given in calls]


def _peak_memory() -> int | None:
    """Peak memory of this process in bytes; ``None`` on systems that do not report it."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
