"""Artifacts beside the float model they come from: metrics, fidelity, latency and size of each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lq_plugin.artifacts.base import FORMATS, ArtifactModule, load
from lq_plugin.candidate import Candidate
from lq_plugin.evaluation import kernels, remembered
from lq_plugin.evaluation.fidelity import SQNR_SAMPLES, FloatOutputs, max_difference
from lq_plugin.evaluation.latency import Latency, Starting, Timing
from lq_plugin.evaluation.loop import Data, splits_of
from lq_plugin.evaluation.metrics import Scores, scores
from lq_plugin.graph.capture import Call
from lq_plugin.graph.copying import detached_copy
from lq_plugin.graph.nesting import batch_size
from lq_plugin.kept import NOTHING_KEPT, Results, once
from lq_plugin.printing import counted
from lq_plugin.progress import doing, note
from lq_plugin.report.manifest import EAGER, Entry, Fp32, LatencyRecord
from lq_plugin.targets import resolve_target


@dataclass(frozen=True)
class Subject:
    """A float model and the artifacts that were made from it.

    Args:
        model: the LightningModule with the weights that were quantized, on the CPU.
        target: dotted path of the module that the artifacts replace.
        data: the batches of the splits.
        candidate: one of those that the artifacts were made from; its graph and its example serve for all.
        folder: where the manifest is, which the artifacts' paths begin in.
        entries: the artifacts, all of the same target and weights.
    """

    model: nn.Module
    target: str | None
    data: Data
    candidate: Candidate
    folder: Path
    entries: Sequence[Entry]

    @property
    def labels(self) -> str:
        """What messages call the artifacts."""
        return ", ".join(entry.label for entry in self.entries)

    def load(self, entry: Entry) -> nn.Module:
        """Return an artifact, reloaded from disk."""
        return load(self.path(entry), factory=self.float_target)

    def path(self, entry: Entry) -> Path:
        """Return the folder of an artifact."""
        assert entry.path is not None
        return self.folder / entry.path

    def float_target(self) -> nn.Module:
        """Return a copy of the float target, for artifacts that need the user's class around them."""
        return detached_copy(resolve_target(self.model, self.target))


@dataclass(frozen=True)
class Protocol:
    """How artifacts are compared; see :class:`~lq_plugin.Int8Evaluation`."""

    splits: Sequence[str]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    label: int | str = 1
    latency: Latency | None = field(default_factory=Latency)

    @property
    def threads(self) -> int | None:
        """Number of threads that latency is measured with; ``None`` for the runtime's choice."""
        return None if self.latency is None else self.latency.number_of_threads


@dataclass(frozen=True)
class Inputs:
    """One call whose latency is measured.

    Args:
        flat: its tensors in the order of the graph, for runtimes; none where no artifact is a graph.
        call: its arguments and keyword arguments, for modules.
        samples: how many there are in it.
    """

    flat: Sequence[Tensor]
    call: Call
    samples: int

    def calling(self, module: nn.Module) -> Callable[[], object]:
        """Return a function that calls a module with them."""
        args, kwargs = self.call

        def call() -> object:
            with torch.no_grad():
                return module(*args, **kwargs)

        return call


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Args:
        fp32: the float model.
        entries: the artifacts with what was measured, in order.
        judged_by: names of the metrics that a budget may be about: those of validation, none where it was not
            evaluated. To choose by the test split would make its figures optimistic.
        conditions: digest of what scores depend on besides an artifact; ``None`` where that is not known.
    """

    fp32: Fp32
    entries: Sequence[Entry]
    judged_by: Sequence[str]
    conditions: str | None = None


@dataclass(frozen=True)
class Timed:
    """The latencies of a float model and its artifacts, and the call they were measured with.

    Args:
        inputs: the call.
        timings: by label of the artifact, or by name of the runtime that FP32 runs on; empty where nothing was timed.
    """

    inputs: Inputs
    timings: Mapping[str, Timing] = field(default_factory=dict)

    def median(self, name: str) -> float | None:
        """Return the milliseconds of a call; ``None`` where it was not timed."""
        return self.timings[name].median if name in self.timings else None


def timed(subject: Subject, protocol: Protocol, results: Results = NOTHING_KEPT) -> Timed:
    """Measure latencies as a protocol says, unless a run that was interrupted has measured all of them.

    This comes before all evaluation, which opens sessions whose threads would disturb it.
    """
    if (options := protocol.latency) is None:
        return Timed(_example(subject))
    inputs = _inputs(subject, options.batch_size)

    def measured() -> dict[str, Timing]:
        artifacts = counted(len(subject.entries), "artifact")
        with doing(f"measuring the latency of {artifacts}, and of FP32 on the same runtimes"):
            return _time(subject, inputs, options)

    target = resolve_target(subject.model, subject.target)
    digest = remembered.latencies_digest(target, subject.entries, inputs.flat, options)
    timings, known = once(results, digest, measured, remembered.write_timings, remembered.read_timings)
    if known:
        note(f"the latencies of {subject.labels} and of FP32 are those of a run that was interrupted")
    return Timed(inputs, timings)


def compare(
    subject: Subject,
    protocol: Protocol,
    known: Timed,
    results: Results = NOTHING_KEPT,
) -> Comparison:
    """Measure a float model and its artifacts.

    Args:
        subject: what is compared.
        protocol: which splits and metrics, and how latency was measured.
        known: their latencies.
        results: scores that a run that was interrupted has found.
    """
    labels = [entry.label for entry in subject.entries]
    inputs, timings = known.inputs, known.timings
    floats = {split: FloatOutputs() for split in protocol.splits}
    with doing("evaluating FP32"):
        baseline = _score(subject, protocol, None, floats)
    lanes = {name: timing for name, timing in timings.items() if name not in labels}
    fp32 = Fp32(
        _merged(baseline),
        _size(resolve_target(subject.model, subject.target)),
        {name: timing.median for name, timing in lanes.items() if timing.median is not None},
        {name: timing.error for name, timing in lanes.items() if timing.error is not None},
    )
    under = remembered.conditions(subject.model, protocol.metrics, protocol.label, fp32, floats)
    measured = []
    for entry in subject.entries:
        timing = timings.get(entry.label)
        score = partial(_scored, subject, protocol, floats, remembered.scores_digest(entry, under), results)
        with doing(f"evaluating {entry.label}"):
            measured.append(_measured(subject, entry, fp32, protocol, score, inputs, timing))
    judged_by = baseline.get("validate", Scores({}, None)).metrics
    return Comparison(fp32, measured, tuple(judged_by), under)


def validated(subject: Subject, entry: Entry, protocol: Protocol) -> Mapping[str, float]:
    """Return an artifact's metrics on validation data, and nothing else: no fidelity, no kernels, no latency.

    Args:
        subject: the model and its data.
        entry: the artifact, reloaded from disk.
        protocol: which metrics.

    Raises:
        Exception: whatever its runtime, or the user's validation step, raises.
    """
    # One float output is enough to give those of the artifact their classes.
    found = _score(subject, replace(protocol, splits=("validate",)), subject.load(entry), {}, samples=1)
    return _merged(found)


def _measured(
    subject: Subject,
    entry: Entry,
    fp32: Fp32,
    protocol: Protocol,
    score: Callable[[nn.Module], Mapping[str, Scores]],
    inputs: Inputs,
    timing: Timing | None,
) -> Entry:
    entry = replace(entry, fp32=fp32)
    try:
        module = subject.load(entry)
        found = score(module)
    except Exception as error:
        return replace(entry, error=f"{type(error).__name__}: {error}")
    entry = replace(
        kernels.counted(entry, subject.path(entry)).compared(_merged(found), fp32),
        sqnr_db=next((score.sqnr_db for score in found.values()), None),
        error=timing.error if timing else None,
    )
    if timing is None or timing.median is None or protocol.latency is None:
        return entry
    return replace(
        entry,
        latency_ms=_record(timing, timing.median, protocol.latency, inputs),
        # Where eager torch could not be timed, the fastest runtime may be missing too.
        speedup=fp32.speedup(timing.median) if EAGER in fp32.latency_ms else None,
        reload_max_difference=_reload_difference(module, inputs, timing),
    )


def _record(timing: Timing, median: float, options: Latency, inputs: Inputs) -> LatencyRecord:
    return LatencyRecord(
        median,
        timing.p90,
        inputs.samples,
        options.number_of_threads,
        options.rounds,
        timing.calls,
        timing.mode,
    )


def _size(module: nn.Module) -> int:
    """Bytes of the tensors that a module saves; its extra state may be anything."""
    return sum(value.nbytes for value in module.state_dict().values() if isinstance(value, Tensor))


def _reload_difference(module: nn.Module, inputs: Inputs, timing: Timing) -> float | None:
    if not isinstance(module, ArtifactModule):
        return None
    here = module.run([tensor.contiguous() for tensor in inputs.flat])
    return max_difference(list(here), list(timing.outputs))


def _time(subject: Subject, inputs: Inputs, options: Latency) -> dict[str, Timing]:
    """Time FP32 in eager torch and on every runtime that an artifact uses, and every artifact, in turns.

    Lanes of FP32 are named after the runtime (``torch.compile`` apart from eager ``torch``). What needs the user's code
    runs in this process, everything else in one of its own. These start while FP32's forms are written.
    """
    here = {EAGER: resolve_target(subject.model, subject.target)}
    failed: dict[str, Timing] = {}
    with tempfile.TemporaryDirectory() as scratch, Starting(inputs.flat, options) as starting:
        for entry in sorted(subject.entries, key=_is_ready_soon):
            if FORMATS[entry.format].rebuild is None:
                starting.add(entry.label, entry.format, subject.path(entry))
                continue
            with suppress(Exception):  # loading it again for its metrics fails in the same way, and says so
                here[entry.label] = subject.load(entry)
        formats = dict.fromkeys(entry.format for entry in sorted(subject.entries, key=_is_ready_soon))
        for name in formats:
            write_float, folder = FORMATS[name].export, Path(scratch) / name
            if write_float is not None:
                try:
                    folder.mkdir()
                    write_float(subject.candidate.reference, folder)
                    starting.add(FORMATS[name].lane, name, folder)
                except Exception as error:
                    failed[FORMATS[name].lane] = Timing(error=f"{type(error).__name__}: {error}")
        timings = starting.measure({name: inputs.calling(module) for name, module in here.items()}) | failed
    lanes = [EAGER, *(FORMATS[entry.format].lane for entry in subject.entries)]
    return {name: timings[name] for name in dict.fromkeys((*lanes, *timings)) if name in timings}


def _is_ready_soon(entry: Entry) -> bool:
    """Whether a runtime is ready at once; those that compile are not, so they start first."""
    return FORMATS[entry.format].module is None


def _scored(
    subject: Subject,
    protocol: Protocol,
    floats: Mapping[str, FloatOutputs],
    digest: str | None,
    results: Results,
    module: nn.Module,
) -> Mapping[str, Scores]:
    """Evaluate an artifact, unless a run that was interrupted has."""

    def score() -> dict[str, Scores]:
        return _score(subject, protocol, module, floats)

    if digest is None:
        return score()
    return once(results, digest, score, remembered.write_scores, remembered.read_scores)[0]


def _score(
    subject: Subject,
    protocol: Protocol,
    module: nn.Module | None,
    floats: Mapping[str, FloatOutputs],
    samples: int = SQNR_SAMPLES,
) -> dict[str, Scores]:
    available = splits_of(subject.model, subject.data)
    return {
        split: scores(
            subject.model,
            subject.data,
            split,
            module,
            target=subject.target,
            metrics={f"{split}/{name}": metric for name, metric in protocol.metrics.items()},
            label=protocol.label,
            floats=floats.get(split),
            samples=samples,
        )
        for split in available
        if split in protocol.splits
    }


def _merged(found: Mapping[str, Scores]) -> dict[str, float]:
    """The metrics of all splits; one of the test split that validation logs under the same name is told apart."""
    merged: dict[str, float] = {}
    for split, score in found.items():
        merged |= {f"{split}/{name}" if name in merged else name: value for name, value in score.metrics.items()}
    return merged


def _example(subject: Subject) -> Inputs:
    example = subject.candidate.example
    return Inputs((), example, batch_size(example))


def _inputs(subject: Subject, samples: int) -> Inputs:
    """The example of a call at another batch size, where it has a graph and its batch is dynamic."""
    if all(FORMATS[entry.format].load is None for entry in subject.entries):
        return _example(subject)
    graph = subject.candidate.reference
    tensors = graph.resized(samples)
    return Inputs(tensors, graph.signature.call(tensors), graph.samples(tensors))
