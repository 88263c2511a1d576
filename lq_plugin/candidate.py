"""A model ready to be exported, with a scheme and its provenance. The functional twins live here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor, nn

from lq_plugin.coverage import Measured
from lq_plugin.eager import swap
from lq_plugin.errors import CalibrationError, ConfigError, unknown_name
from lq_plugin.graph.calibration import Calibration, Provenance, Recording, calls, uncalibrated
from lq_plugin.graph.capture import Call, private_call
from lq_plugin.graph.convert import convert
from lq_plugin.graph.copying import detached_copy
from lq_plugin.graph.graph import Graph, duplicate
from lq_plugin.graph.placement import Placement, place, place_dynamic, place_everywhere
from lq_plugin.graph.prepare import prepare
from lq_plugin.graph.signature import check_inputs
from lq_plugin.graph.soundness import warn_of_random_forward, warn_of_ranges
from lq_plugin.names import check_name
from lq_plugin.observers import Observer
from lq_plugin.scheme import Scheme

DynamicDims = Mapping[str, Sequence[int]]  # dynamic dimensions besides the batch, by the name of the input


class Candidate(Protocol):
    """Everything that artifacts are made from: a :class:`StaticCandidate` or a :class:`DynamicCandidate`."""

    @property
    def name(self) -> str:
        """Names the candidate's folder and its rows in the manifest."""

    @property
    def scheme(self) -> Scheme:
        """What is quantized and how."""

    @property
    def example(self) -> Call:
        """Arguments and keyword arguments of one real call, on the CPU."""

    @property
    def provenance(self) -> Provenance:
        """Whose weights these are, and what was calibrated."""

    @property
    def graph(self) -> Graph:
        """The folded float graph on its own copy of the weights, on the CPU.

        Raises:
            CaptureError: the model's forward cannot be captured.
        """

    @property
    def reference(self) -> Graph:
        """The float graph that everything is compared with."""

    def placed(self, runtime: str) -> Placement:
        """Return where quantize/dequantize pairs go for a runtime."""

    def converted(self, runtime: str) -> Graph:
        """Return the graph with explicit quantize/dequantize pairs where a runtime is fastest with them."""


@dataclass(frozen=True)
class StaticCandidate:
    """A float graph, its calibration and a scheme.

    Args:
        name: names the candidate's folder and its rows in the manifest.
        graph: the folded float graph on its own copy of the weights, on the CPU.
        calibration: statistics of the graph's values.
        scheme: what is quantized and how.
        reference: the float graph that everything is compared with and that the statistics describe; ``graph`` itself
            by default, or what it was before a rewrite.
        weight_scales: learnt weight scales by operator name: one for each output channel, or
            a single number where the scheme says ``"per_tensor"``.

    Raises:
        ConfigError: ``weight_scales`` names an operator that does not exist.
    """

    name: str
    graph: Graph
    calibration: Calibration
    scheme: Scheme
    reference: Graph = field(default=None, repr=False)  # type: ignore[assignment]  # filled in below
    weight_scales: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.reference is None:
            object.__setattr__(self, "reference", self.graph)
        names = [node.name for node in self.graph.module.graph.nodes]
        if unknown := sorted(self.weight_scales.keys() - set(names)):
            raise unknown_name("weight_scales", unknown[0], names)

    @property
    def example(self) -> Call:
        """The captured call."""
        return self.graph.signature.call(self.graph.example)

    @property
    def provenance(self) -> Provenance:
        """The provenance of the calibration."""
        return self.calibration.provenance

    def placed(self, runtime: str) -> Placement:
        """Return where quantize/dequantize pairs go for a runtime.

        Raises:
            UnsupportedError: nothing can be quantized for it.
        """
        return self._placements.get(runtime) or place(self.graph, self.scheme, runtime)  # which says why

    @cached_property
    def _placements(self) -> dict[str, Placement]:
        return place_everywhere(self.graph, self.scheme)

    def converted(self, runtime: str) -> Graph:
        """Return the graph with explicit quantize/dequantize pairs where a runtime is fastest with them."""
        assert isinstance(self.scheme.observer, Observer)
        if self.provenance.structure != self.reference.structure:
            raise CalibrationError(
                "calibration: it belongs to another graph, whose values happen to have the same names. "
                "Calibrate the model that is quantized."
            )
        ranges = self.calibration.ranges(self.scheme.observer)
        placement = self.placed(runtime)
        missing = sorted(set(placement.scales.values()) - set(ranges))
        if missing:
            raise CalibrationError(
                f"calibration: it has no statistics for {missing[:3]} of the graph. It was gathered with different "
                "skip and only patterns; calibrate again."
            )
        return convert(self.graph, placement, ranges, self.weight_scales)


@dataclass(frozen=True)
class DynamicCandidate:
    """A float module and a scheme. Nothing is calibrated, and a graph is captured only for a format that needs one.

    Args:
        name: names the candidate's folder and its rows in the manifest.
        module: the float module, a copy of its own, in eval mode on the CPU.
        example: arguments and keyword arguments of one real call, on the CPU.
        scheme: what is quantized and how.
        provenance: whose weights these are.
        dynamic_dims: dynamic dimensions of the graph besides the batch, by input name.
        measured: decisions made by measuring during export, by a digest of what was measured.
    """

    name: str
    module: nn.Module
    example: Call
    scheme: Scheme
    provenance: Provenance
    dynamic_dims: DynamicDims = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict, compare=False, repr=False)
    _placements: dict[str, Placement] = field(default_factory=dict, init=False, compare=False, repr=False)

    @cached_property
    def graph(self) -> Graph:
        """The module's folded float graph, captured at first use."""
        return prepare(self.module, *self.example, self.dynamic_dims)

    @property
    def reference(self) -> Graph:
        """The graph: nothing rewrites it."""
        return self.graph

    @cached_property
    def survey(self) -> swap.Survey:
        """Which of the module's layers become INT8 in torch."""
        return swap.survey(self.module, self.example, self.scheme)

    def placed(self, runtime: str) -> Placement:
        """Return where weights are integers for a runtime."""
        if runtime not in self._placements:
            self._placements[runtime] = place_dynamic(self.graph, swap.by_path(self.module, self.scheme), runtime)
        return self._placements[runtime]

    def converted(self, runtime: str) -> Graph:
        """Return the graph with integer weights, for a runtime that quantizes the activations itself."""
        return convert(self.graph, self.placed(runtime), {})

    def with_integer_tables(self, runtime: str) -> Graph:
        """Return the float graph with only its embeddings as integers, for a runtime that quantizes the rest itself."""
        placement = self.placed(runtime)
        tables = {name: op for name, op in placement.quantized.items() if op.op == "embedding"}
        weights = {name: placement.weights[name] for name in tables}
        return convert(self.graph, replace(placement, quantized=tables, weights=weights), {})


def calibrate(model: nn.Module, batches: Iterable[Any], scheme: Scheme | str = "static") -> Calibration:
    """Run batches through a model's graph and gather the statistics for static quantization.

    Args:
        model: any module; it is neither changed nor switched to another mode.
        batches: forward inputs, each a tensor, a tuple (args) or a dict (kwargs). Write a single dict argument as
            ``({...},)``.
        scheme: which values are observed, and by which observer.

    Raises:
        CalibrationError: there is no batch.
        CaptureError: the model's forward cannot be captured.
        ConfigError: the scheme does not fit the model.
    """
    scheme = _scheme(scheme)
    if scheme.method == "dynamic":
        raise ConfigError("scheme: 'dynamic' needs no calibration. Call quantize(model, batches, 'dynamic').")
    return _calibrated(model, batches, scheme, None)[1]


def quantize(
    model: nn.Module,
    batches: Iterable[Any],
    scheme: Scheme | str = "static",
    *,
    name: str | None = None,
    dynamic_dims: DynamicDims | None = None,
) -> Candidate:
    """Make a candidate from a trained model: what artifacts are made from.

    Static: capture and calibrate. Dynamic: nothing is calibrated, and only the first batch is looked at.

    Args:
        model: any module; it is neither changed nor switched to another mode.
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
        >>> candidate = quantize(torch.nn.Linear(4, 2), [torch.randn(8, 4) for _ in range(4)])
        >>> candidate.calibration.provenance.samples
        32
    """
    scheme = _scheme(scheme)
    name, dims = check_name(scheme.method if name is None else name), dict(dynamic_dims or {})
    check_inputs(dims, model.forward)
    return _QUANTIZE[scheme.method](model, batches, scheme, name, dims)


def _quantize_static(
    model: nn.Module, batches: Iterable[Any], scheme: Scheme, name: str, dynamic_dims: DynamicDims
) -> StaticCandidate:
    graph, calibration = _calibrated(model, batches, scheme, dynamic_dims)
    candidate = StaticCandidate(name, graph, calibration, scheme)
    warn_of_ranges(name, graph, calibration, scheme)
    warn_of_random_forward(name, model, candidate.example)
    return candidate


def _quantize_dynamic(
    model: nn.Module, batches: Iterable[Any], scheme: Scheme, name: str, dynamic_dims: DynamicDims
) -> DynamicCandidate:
    example = private_call(*_first(iter(calls(batches))))
    module = detached_copy(model).cpu()
    swap.check_patterns(module, scheme)
    swap.run(detached_copy(module), example)
    warn_of_random_forward(name, module, example)
    return DynamicCandidate(name, module, example, scheme, uncalibrated(module), dynamic_dims)


_QUANTIZE: Mapping[str, Callable[[nn.Module, Iterable[Any], Scheme, str, DynamicDims], Candidate]] = {
    "static": _quantize_static,
    "dynamic": _quantize_dynamic,
}


def _calibrated(
    model: nn.Module, batches: Iterable[Any], scheme: Scheme, dynamic_dims: DynamicDims | None
) -> tuple[Graph, Calibration]:
    assert isinstance(scheme.observer, Observer)
    inputs = iter(calls(batches))
    first = _first(inputs)
    graph = prepare(model, *first, dynamic_dims)
    recording = Recording.start(duplicate(graph), scheme)
    for args, kwargs in itertools.chain([first], inputs):
        recording.observe(graph.signature.flatten(args, kwargs))
    return graph, recording.calibration(scheme.observer.name, split="batches")


def _first(inputs: Iterator[Call]) -> Call:
    first = next(inputs, None)
    if first is None:
        raise CalibrationError("batches: it is empty. Give at least one batch of forward inputs.")
    return first


def _scheme(given: Scheme | str) -> Scheme:
    return given if isinstance(given, Scheme) else Scheme(method=given)
