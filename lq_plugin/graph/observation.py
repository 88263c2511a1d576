"""Observation of one pass: the graph of a target runs beside it for some of its calls, unseen by the caller.

The module's own forward produces all that the caller sees. Statistics belong to one pass and to the weights that the
target has at its first call in it, so each pass has an object of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from lq_plugin import checksums
from lq_plugin.errors import CalibrationError, CaptureError, LqError, as_calibration_error, is_mistake
from lq_plugin.graph import precision
from lq_plugin.graph.calibration import Calibration, Recording
from lq_plugin.graph.example import Example
from lq_plugin.graph.parts import Part, naming, parts_of_failure
from lq_plugin.graph.prepare import TrackedTarget
from lq_plugin.graph.repeats import Repeats, without_repeats
from lq_plugin.graph.sampling import drawn_batches
from lq_plugin.observers import Observer
from lq_plugin.scheme import Scheme, as_dict
from lq_plugin.targets import Forward, replaced_forward, resolve_target

_VERSION = 2  # of what is observed in a graph: hidden states of LSTMs since 2, so earlier calibrations lack them
_OF_SCHEME = ("observer", "skip", "only", "embeddings")  # the fields of a scheme that decide what is observed


@dataclass(frozen=True)
class ObservationPlan:
    """What is observed in a pass, and how.

    Args:
        scheme: which values, by which observer.
        target: dotted path of the module; the whole model for ``None``.
        samples: how many samples to observe, rounded up to whole batches.
        seed: of the private generator that chooses the batches.
        dynamic_dims: dynamic dimensions besides the batch, by the name of the input.
    """

    scheme: Scheme
    target: str | None = None
    samples: int = 512
    seed: int = 0
    dynamic_dims: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def observer(self) -> Observer:
        """How the ranges are learnt."""
        assert isinstance(self.scheme.observer, Observer)
        return self.scheme.observer

    @property
    def digest(self) -> str:
        """Digest of the options that decide what is observed."""
        options = {
            "version": _VERSION,
            "target": self.target,
            "samples": self.samples,
            "seed": self.seed,
            "dynamic_dims": {name: list(dims) for name, dims in self.dynamic_dims.items()},
            **{name: value for name, value in as_dict(self.scheme).items() if name in _OF_SCHEME},
        }
        return checksums.of_json(options)[:16]

    def fits(self, calibration: Calibration | None, graph_digest: str) -> bool:
        """Whether a calibration belongs to this graph and its weights, and was gathered as this plan says."""
        if calibration is None or not calibration.made_by(self.observer):
            return False
        return (calibration.provenance.digest, calibration.provenance.observed) == (graph_digest, self.digest)

    def chosen(self, batches: Sequence[int | float], batch_size: int) -> set[int]:
        """Choose which batches of a pass are observed.

        Args:
            batches: number of batches of every loader; infinite where not known.
            batch_size: samples in one batch, of all processes together.
        """
        return drawn_batches(batches, math.ceil(self.samples / max(batch_size, 1)), self.seed)


class Observation:
    """Observes the calls of a target in one pass, until it is closed.

    Args:
        plan: what is observed, and how.
        target: the module whose forward is shadowed meanwhile.
        tracked: prepares the graph of this target; the same one in every pass.
        batches: number of batches of every loader; infinite where not known.
        processes: how many processes share the samples.
        sanity_check: whether this is the sanity check, where nothing is recorded and user errors are raised.

    Attributes:
        called: whether the target was called.
        failure: why nothing can be observed. It never stops a training.
        parts: where that is because the target cannot be captured, its largest submodules that can be.
        incomplete: whether a call differed from those observed before it in a dimension that the graph had fixed. The
            graph is captured again with this dimension dynamic, and a further pass is needed for all samples.
    """

    def __init__(
        self,
        plan: ObservationPlan,
        target: nn.Module,
        tracked: TrackedTarget,
        batches: Sequence[int | float],
        processes: int = 1,
        sanity_check: bool = False,
    ) -> None:
        self._plan, self._target, self._tracked = plan, target, tracked
        self._batches, self._processes, self._sanity_check = batches, processes, sanity_check
        self._casts = precision.is_other(target)
        self._position = -1
        self._repeats: Repeats | None = None
        self._recording: Recording | None = None
        self._chosen: set[int] = set()
        self.called = False
        self.incomplete = False
        self.failure: LqError | None = None
        self.parts: tuple[Part, ...] = ()
        see = torch.compiler.disable(self.see)  # type: ignore[no-untyped-call]

        def observed(original: Forward, *args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            see(args, kwargs)
            return output

        self._shadow = ExitStack()
        self._shadow.enter_context(replaced_forward(target, observed))

    @property
    def example(self) -> Example:
        """A call, and the dimensions that differed; there once the target was called without a failure."""
        assert self._tracked.example is not None
        return self._tracked.example

    def next_batch(self, repeats: Repeats | None = None) -> None:
        """Count the batches; ``repeats`` is given for one with samples that another process has too."""
        self._position += 1
        self._repeats = repeats

    def see(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Look at one call of the target.

        Raises:
            ConfigError: a user error, in the sanity check. Everything else becomes :attr:`failure`.
        """
        self.called = True
        if self.failure is not None:
            return
        try:
            if self._casts:
                args, kwargs = precision.in_float32((args, kwargs))
            if self._tracked.must_widen(self._target, args, kwargs) and self._recording is not None:
                self.incomplete |= self._recording.batches > 0
                self._recording.release()
                self._recording = None
            if self._recording is None:
                self._recording = self._started(args, kwargs)
            if self._position in self._chosen:
                graph = self._recording.graph
                tensors = without_repeats(graph.signature.flatten(args, kwargs), graph, self._repeats)
                if tensors is not None:
                    self._recording.observe(tensors)
        except Exception as error:
            if self._sanity_check and is_mistake(error):
                raise
            self.parts = parts_of_failure(error, self._target, args, kwargs)
            named = naming(error, self.parts, self._plan.target) if isinstance(error, CaptureError) else error
            self.failure = as_calibration_error(named)

    def _started(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Recording:
        # The digest is of the weights that are about to be observed. By the end of the pass they may have changed.
        graph = self._tracked.prepared(self._target, args, kwargs)
        recording = Recording.start(graph, self._plan.scheme)  # refuses patterns that match nothing
        if not self._sanity_check and not self._chosen:
            samples = graph.samples(graph.signature.flatten(args, kwargs))
            self._chosen = self._plan.chosen(self._batches, samples * self._processes)
        return recording

    def close(self) -> Calibration | None:
        """Give the target its forward back.

        Returns:
            What this process observed; ``None`` if it was nothing, or incomplete.
        """
        self._shadow.close()
        if self._casts:  # the graph holds a float32 copy of all weights
            self._tracked.forget()
        recording, self._recording = self._recording, None
        if recording is None:
            return None
        recording.release()
        if self.failure is not None or self.incomplete or not recording.batches:
            return None
        plan = self._plan
        return recording.calibration(plan.observer.name, "validate", plan.seed, plan.digest)


def merged(plan: ObservationPlan, parts: Sequence[Calibration], global_step: int | None = None) -> Calibration:
    """Merge what the processes of one pass observed.

    Args:
        plan: the plan of all parts.
        parts: at least one. Where they are of different graphs or weights, such as running statistics of a BatchNorm
            that processes do not share, the result fits none.
        global_step: optimizer steps at which the pass was run.
    """
    names = dict.fromkeys(name for part in parts for name in part.statistics)
    provenances = [part.provenance for part in parts]
    first = provenances[0]
    statistics = {
        name: plan.observer.merge([part.statistics[name] for part in parts if name in part.statistics])
        for name in names
    }
    provenance = replace(
        first,
        global_step=global_step,
        samples=sum(part.samples for part in provenances),
        batches=sum(part.batches for part in provenances),
        digest=first.digest if len({part.digest for part in provenances}) == 1 else "",
    )
    return Calibration(statistics, provenance)


Begin = Callable[[nn.Module, Sequence[int | float]], Observation]  # of a model and the batches of its loaders


def calibrate_pass(
    run: Callable[[Begin], object], plan: ObservationPlan, example: Example | None = None
) -> tuple[Calibration, Example] | None:
    """Calibrate a target in a pass of its own, and in another one if calls differ in further dimensions.

    Args:
        run: runs a pass over a copy of the model. It calls what it is given once, with that copy and the number of
            batches of every loader, and then ``next_batch`` of what that returned before each batch.
        plan: what is observed, and how.
        example: of the target's calls; by default the first call of the pass.

    Returns:
        The calibration, and the example with all dimensions that differed; ``None`` where the target was not called.

    Raises:
        LqError: the target cannot be observed.
    """
    begun: list[Observation] = []

    def begin(model: nn.Module, batches: Sequence[int | float]) -> Observation:
        tracked = TrackedTarget(plan.dynamic_dims, example)
        begun.append(Observation(plan, resolve_target(model, plan.target), tracked, batches))
        return begun[-1]

    run(begin)
    if not begun:
        return None
    observation = begun[0]
    calibration = observation.close()
    if not observation.called:
        return None
    if observation.failure is not None:
        raise observation.failure
    if observation.incomplete:  # this ends: each further pass has fewer fixed dimensions
        return calibrate_pass(run, plan, observation.example)
    if calibration is None:
        raise CalibrationError(
            "calibration: the target is called in validation, but in none of the batches that were chosen to be "
            "observed. Raise samples, or choose a target that every batch goes through."
        )
    return merged(plan, [calibration]), observation.example
