"""Candidates to make when training is over, each from the weights of one checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from lq_plugin.candidate import Candidate, DynamicCandidate, StaticCandidate
from lq_plugin.errors import CalibrationError, UnsupportedError
from lq_plugin.graph.calibration import Calibration, uncalibrated
from lq_plugin.graph.capture import Call
from lq_plugin.graph.example import Example
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.observation import ObservationPlan, calibrate_pass
from lq_plugin.graph.parts import parts_named
from lq_plugin.graph.placement import place_everywhere
from lq_plugin.graph.prepare import prepare
from lq_plugin.graph.sampling import Samples
from lq_plugin.graph.soundness import warn_of_random_forward, warn_of_ranges
from lq_plugin.identity import tensors_digest
from lq_plugin.progress import doing, note
from lq_plugin.refinement import C, refined, unrefined
from lq_plugin.scheme import Scheme
from lq_plugin.source import Source
from lq_plugin.steps import attempt
from lq_plugin.store import Store

LARGEST_SHARE = 0.1  # of validation: metrics on samples that algorithms have learnt from are optimistic


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """One candidate to make.

    Args:
        name: the candidate's.
        scheme: what is quantized and how.
        source: the target and its weights.
        options: the exact configuration as builtins, for the manifest.
        example: an observed call of the target; by default the first one in validation.
        failure: why there can be no candidate, where this is already known and reported.
        runtimes: those that artifacts are made for, so that algorithms do not learn for others; ``None`` for all.
    """

    option_of: ClassVar[str]  # class of the callback, for messages
    name: str
    scheme: Scheme
    source: Source
    options: Mapping[str, Any]
    example: Example | None = None
    failure: Exception | None = None
    runtimes: frozenset[str] | None = None

    def candidate(self, store: Store) -> Candidate:
        """Make the candidate.

        Args:
            store: steps that earlier runs have finished.

        Raises:
            LqError: it cannot be made.
        """
        example = self.example or self.source.example(self.option_of)
        candidate = self._made(example, store)
        warn_of_random_forward(self.name, self.source.float_target, _short_call(candidate, example))
        return candidate

    @abstractmethod
    def _made(self, example: Example, store: Store) -> Candidate:
        """Make the candidate, given a call."""

    @property
    @abstractmethod
    def seed(self) -> int:
        """The seed of the draw of samples."""

    def _refined(self, candidate: C, store: Store) -> C:
        """Run the algorithms on samples of the validation data; if they fail, the candidate is used without them."""
        if not self.scheme.algorithm_names:
            return candidate
        with doing(f"{self.name!r}: drawing validation samples for the algorithms"):
            drawn = attempt(
                f"samples for the algorithms of candidate {self.name!r} could not be drawn; it is used without them",
                lambda: self._said(self.samples(candidate.graph)),
            )
        return refined(candidate, drawn.result or Samples((), ()), store.results("algorithms"))

    def samples(self, graph: Graph) -> Samples:
        """Draw samples of the validation data for algorithms and sensitivity; the same ones each time."""
        return self.source.samples(graph, self.scheme.algorithm_samples, self.seed)

    def _said(self, samples: Samples) -> Samples:
        if (samples.share or 0) > LARGEST_SHARE and not self.source.has_test_split:
            note(
                f"{self.name!r}: the algorithms use {samples.share:.0%} of the validation samples and there is no test "
                "split, so validation metrics are optimistic"
            )
        return samples


@dataclass(frozen=True, kw_only=True)
class StaticJob(Job):
    """A candidate with fixed scales, from statistics of the weights that are quantized.

    Args:
        plan: what is observed, and how.
        calibration: of the last validation pass, whose weights need not be those of the checkpoint.
    """

    option_of: ClassVar[str] = "StaticQuantization"
    plan: ObservationPlan
    calibration: Calibration | None = None

    @property
    def seed(self) -> int:
        """The one that chooses what is observed."""
        return self.plan.seed

    def _made(self, example: Example, store: Store) -> StaticCandidate:
        """Combine the checkpoint's weights with a calibration, made where there is none, and run the algorithms."""
        checkpoint = self.source.checkpoint
        graph = self._graph(example)
        calibration = self._known(graph.digest, _inputs(graph), store)
        if calibration is None:
            place_everywhere(graph, self.scheme)  # finds patterns that match nothing before a pass is run for them
            calibration, seen = self._calibrated(checkpoint.global_step, example)
            graph = graph if seen.varying == example.varying else self._graph(seen)
            store.keep_calibration(calibration, _inputs(graph))
        provenance = replace(
            calibration.provenance, checkpoint=checkpoint.name, checkpoint_global_step=checkpoint.global_step
        )
        warn_of_ranges(self.name, graph, calibration, self.scheme)
        calibration = replace(calibration, provenance=provenance)
        candidate = StaticCandidate(self.name, graph, calibration, self.scheme)
        if wanted := (self.runtimes or frozenset()).intersection(candidate.runtimes):
            candidate = replace(candidate, only=wanted)
        return self._refined(candidate, store)

    def _graph(self, example: Example) -> Graph:
        with parts_named(self.source.float_target, *example.call, self.source.target):
            return prepare(self.source.float_target, *example.call, self.plan.dynamic_dims, example.varying)

    def _known(self, digest: str, inputs: str, store: Store) -> Calibration | None:
        """An existing calibration of the graph with this digest, wherever it is kept."""
        for place, calibrations in self._places(digest, inputs, store):
            found = next((one for one in calibrations if self.plan.fits(one, digest)), None)
            if found is not None:
                if self.calibration is None:  # without a fit, the user may not expect one
                    note(f"reusing the calibration of {self.name!r} from {place}")
                return found
        return None

    def _places(self, digest: str, inputs: str, store: Store) -> Iterator[tuple[str, Iterable[Calibration | None]]]:
        """Where calibrations may be, the nearest first; a place is only read if those before it have none."""
        yield "this fit", [self.calibration]
        yield "the checkpoint", (calibration_in(state) for state in self.source.checkpoint.callbacks.values())
        yield "an earlier run", store.calibrations(digest, inputs, self.plan.digest)

    def _calibrated(self, global_step: int, example: Example) -> tuple[Calibration, Example]:
        with doing(f"calibrating {self.name!r} in a separate validation pass"):
            found = calibrate_pass(self.source.observed_pass, self.plan, example)
        if found is None:
            raise UnsupportedError(self.source.never_called(self.option_of))
        calibration, seen = found
        provenance = replace(calibration.provenance, global_step=global_step, extra_pass=True)
        return replace(calibration, provenance=provenance), seen


def _short_call(candidate: Candidate, example: Example) -> Call:
    """A call with two samples where the batch is dynamic; the one of validation may take seconds."""
    if not isinstance(candidate, StaticCandidate):
        return example.call
    return candidate.reference.signature.call(candidate.reference.resized(2))


def _inputs(graph: Graph) -> str:
    """Digest of the graph's example."""
    return tensors_digest({str(number): tensor for number, tensor in enumerate(graph.example)})


@dataclass(frozen=True, kw_only=True)
class DynamicJob(Job):
    """A candidate whose scales are computed at run time.

    Args:
        dynamic_dims: dynamic dimensions besides the batch, by input name.
        seed: of the draw of samples.
    """

    option_of: ClassVar[str] = "DynamicQuantization"
    dynamic_dims: Mapping[str, Sequence[int]] = field(default_factory=dict)
    seed: int = 0

    def _made(self, example: Example, store: Store) -> DynamicCandidate:
        checkpoint, target = self.source.checkpoint, self.source.float_copy()
        step = checkpoint.global_step
        provenance = replace(
            uncalibrated(target), checkpoint=checkpoint.name, global_step=step, checkpoint_global_step=step
        )
        candidate = DynamicCandidate(
            self.name,
            target,
            example.call,
            self.scheme,
            provenance,
            self.dynamic_dims,
            example.varying,
            store.decisions(),
            target=self.source.target,
        )
        if self.scheme.algorithm_names and (reason := candidate.unlearnable):
            return unrefined(candidate, reason)
        return self._refined(candidate, store)


def calibration_in(state: Mapping[str, Any]) -> Calibration | None:
    """Return the calibration in a checkpoint's callback state, which is untrusted; ``None`` where it has none."""
    if "calibration" not in state:
        return None
    try:
        return Calibration.from_state_dict(state["calibration"])
    except CalibrationError as error:  # the weights may be good
        note(f"{error}; it is not used")
        return None
