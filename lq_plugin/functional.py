"""Functions that make a candidate from a module and batches, without a Trainer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from lq_plugin.candidate import Candidate, DynamicCandidate, DynamicDims, StaticCandidate
from lq_plugin.eager import swap
from lq_plugin.errors import CalibrationError, ConfigError
from lq_plugin.graph.calibration import Calibration, Recording, calls, uncalibrated
from lq_plugin.graph.capture import Call
from lq_plugin.graph.copying import cpu_copy, detached_copy, on_cpu
from lq_plugin.graph.example import Example
from lq_plugin.graph.graph import Graph, duplicate
from lq_plugin.graph.nesting import batch_size
from lq_plugin.graph.parts import parts_named
from lq_plugin.graph.precision import float32_copy, in_float32, is_other
from lq_plugin.graph.prepare import TrackedTarget
from lq_plugin.graph.sampling import Draw, Samples
from lq_plugin.graph.signature import check_inputs
from lq_plugin.graph.soundness import warn_of_random_forward, warn_of_ranges
from lq_plugin.names import check_name
from lq_plugin.observers import Observer
from lq_plugin.progress import begin_run
from lq_plugin.refinement import LEAST_SAMPLES, refined, unrefined
from lq_plugin.scheme import Scheme
from lq_plugin.steps import attempt


def calibrate(model: nn.Module, batches: Iterable[Any], scheme: Scheme | str = "static") -> Calibration:
    """Run batches through a model's graph and gather the statistics for static quantization.

    Args:
        model: any module; it is neither changed nor switched to another mode. Of one on a GPU, a copy is quantized.
        batches: forward inputs, each a tensor, a tuple (args) or a dict (kwargs). Write a single dict argument as
            ``({...},)``.
        scheme: which values are observed, and by which observer.

    Raises:
        CalibrationError: there is no batch.
        CaptureError: the model's forward cannot be captured.
        ConfigError: the scheme does not fit the model.
    """
    begin_run()
    scheme = _scheme(scheme)
    if scheme.method == "dynamic":
        raise ConfigError("scheme: 'dynamic' needs no calibration. Call quantize(model, batches, 'dynamic').")
    scheme = replace(scheme, algorithms=())
    return _calibration(_calibrated(on_cpu(model), batches, scheme, None)[1], scheme)


def quantize(
    model: nn.Module,
    batches: Iterable[Any],
    scheme: Scheme | str = "static",
    *,
    name: str | None = None,
    dynamic_dims: DynamicDims | None = None,
) -> Candidate:
    """Make a candidate from a trained model; artifacts are exported from it.

    Static: capture, calibrate, and run the scheme's algorithms. One of four samples is held out to judge them by and
    not observed, unless no algorithm is kept; with ``algorithms=()`` all are observed. Dynamic: nothing is
    calibrated; the algorithms learn from the first batches, until they hold ``scheme.algorithm_samples`` samples, and
    the others are not read.

    Args:
        model: any module; it is neither changed nor switched to another mode. Of one on a GPU, a copy is quantized.
        batches: forward inputs, each a tensor, a tuple (args) or a dict (kwargs). Write a single dict argument as
            ``({...},)``. The first one is the example of a call.
        scheme: a method's name, or a :class:`Scheme`.
        name: the candidate's name; the method's by default.
        dynamic_dims: dynamic dimensions besides the batch, by input name: ``{"x": [2, 3]}``.

    Raises:
        CalibrationError: there is no batch.
        CaptureError: the model's forward cannot be captured.
        ConfigError: the scheme, or ``name`` or ``dynamic_dims``, does not fit the model.

    Example:
        >>> import torch
        >>> batches = [torch.randn(8, 4) for _ in range(4)]
        >>> candidate = quantize(torch.nn.Linear(4, 2), batches, Scheme(algorithms=[]))  # plain calibration
        >>> candidate.calibration.provenance.samples
        32
    """
    begin_run()
    scheme = _scheme(scheme)
    name, dims = check_name(scheme.method if name is None else name), dict(dynamic_dims or {})
    check_inputs(dims, model.forward)
    return _QUANTIZE[scheme.method](model, batches, scheme, name, dims)


def _quantize_static(
    model: nn.Module, batches: Iterable[Any], scheme: Scheme, name: str, dynamic_dims: DynamicDims
) -> StaticCandidate:
    model = on_cpu(model)
    graph, recording, samples = _calibrated(model, batches, scheme, dynamic_dims)
    candidate = StaticCandidate(name, graph, _calibration(recording, scheme), scheme)
    warn_of_ranges(name, graph, candidate.calibration, scheme)
    warn_of_random_forward(name, model, candidate.example)
    candidate = refined(candidate, samples)
    if candidate.learning is None or any(step.kept_on for step in candidate.learning.steps):
        return candidate
    for call in samples.judge:  # nothing was learnt from the others, so these can be observed as well
        recording.observe(call)
    return replace(candidate, calibration=_calibration(recording, scheme))


def _calibration(recording: Recording, scheme: Scheme) -> Calibration:
    assert isinstance(scheme.observer, Observer)
    return recording.calibration(scheme.observer.name, split="batches")


def _quantize_dynamic(
    model: nn.Module, batches: Iterable[Any], scheme: Scheme, name: str, dynamic_dims: DynamicDims
) -> DynamicCandidate:
    given = _first_calls(_calls(model, batches), scheme)
    module = float32_copy(cpu_copy(model))
    example = Example.of(module.forward, *given[0])
    for args, kwargs in given[1:]:
        example = example.seeing(module.forward, args, kwargs)
    swap.check_patterns(module, scheme)
    swap.run(detached_copy(module), example.call)
    warn_of_random_forward(name, module, example.call)
    provenance = uncalibrated(module)
    candidate = DynamicCandidate(name, module, example.call, scheme, provenance, dynamic_dims, example.varying)
    if not scheme.algorithm_names:
        return candidate
    if reason := candidate.unlearnable:
        return unrefined(candidate, reason)
    drawn = attempt(
        f"samples for the algorithms of candidate {name!r} could not be drawn; it is used without them",
        lambda: _drawn(candidate.graph, scheme, given),
    )
    return refined(candidate, drawn.result or Samples((), ()))


def _first_calls(inputs: Iterator[Call], scheme: Scheme) -> list[Call]:
    """Read the first call, and as many as the algorithms need, without reading on: batches may have no end."""
    given, samples = [_first(inputs)], 0
    wanted = scheme.algorithm_samples if scheme.algorithm_names else 0
    while (samples := samples + batch_size(given[-1])) < wanted and (call := next(inputs, None)) is not None:
        given.append(call)
    return given


def _drawn(graph: Graph, scheme: Scheme, given: Iterable[Call]) -> Samples:
    draw = Draw(graph, scheme.algorithm_samples, seed=0)
    for args, kwargs in given:
        draw.see(args, kwargs)
    return draw.drawn(draw.samples_seen)


def _calls(model: nn.Module, batches: Iterable[Any]) -> Iterator[Call]:
    """Read batches as calls; in float32 if the model has another precision."""
    return map(in_float32, calls(batches)) if is_other(model) else calls(batches)


_QUANTIZE: Mapping[str, Callable[[nn.Module, Iterable[Any], Scheme, str, DynamicDims], Candidate]] = {
    "static": _quantize_static,
    "dynamic": _quantize_dynamic,
}


def _calibrated(
    model: nn.Module, batches: Iterable[Any], scheme: Scheme, dynamic_dims: DynamicDims | None
) -> tuple[Graph, Recording, Samples]:
    """Observe all batches, except the samples that algorithms are judged by, and draw samples for the algorithms."""
    tracked, found = TrackedTarget(dynamic_dims), None
    while found is None:  # this ends: each further time fewer dimensions are fixed
        found = _observed(model, batches, scheme, tracked)
    return found


def _observed(
    model: nn.Module, batches: Iterable[Any], scheme: Scheme, tracked: TrackedTarget
) -> tuple[Graph, Recording, Samples] | None:
    """Observe all batches; ``None`` if one differs in a dimension that the graph fixes, which is dynamic from then on.

    Raises:
        ConfigError: one differs, and the batches cannot be read once more.
    """
    inputs = _calls(model, batches)
    first = _first(inputs)
    with parts_named(model, *first):
        graph = tracked.prepared(model, *first)
    recording = Recording.start(duplicate(graph, share_tensors=True), scheme)
    draw = Draw(graph, scheme.algorithm_samples, seed=0)
    learns = bool(scheme.algorithm_names) and scheme.algorithm_samples >= LEAST_SAMPLES
    for args, kwargs in itertools.chain([first], inputs):
        if tracked.must_widen(model, args, kwargs):
            if isinstance(batches, Iterator):
                raise ConfigError(
                    f"batches: their sizes differ in the dimensions {dict(tracked.varying)}, and an iterator can be "
                    "read only once. Give a list or a DataLoader, or name the dimensions besides the batch in "
                    "dynamic_dims."
                )
            return None
        tensors = graph.signature.flatten(args, kwargs)
        observed = draw.add(tensors) if learns else tensors
        if observed is not None:
            recording.observe(observed)
    return graph, recording, draw.drawn(draw.samples_seen)


def _first(inputs: Iterator[Call]) -> Call:
    first = next(inputs, None)
    if first is None:
        raise CalibrationError("batches: it is empty. Give at least one batch of forward inputs.")
    return first


def _scheme(given: Scheme | str) -> Scheme:
    return given if isinstance(given, Scheme) else Scheme(method=given)
