"""A model ready to be exported, with a scheme and its provenance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from torch import Tensor, fx, nn

from lq_plugin.coverage import Measured
from lq_plugin.eager import swap
from lq_plugin.errors import CalibrationError, CaptureError, unknown_name
from lq_plugin.graph.calibration import Calibration, Provenance
from lq_plugin.graph.capture import Call, private_call
from lq_plugin.graph.convert import convert, integer_lstm
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.int8_lstm import Int8Lstm
from lq_plugin.graph.nesting import tensors
from lq_plugin.graph.parts import parts_named
from lq_plugin.graph.placement import Placement, place, place_dynamic, place_everywhere, united
from lq_plugin.graph.prepare import prepare
from lq_plugin.learning import Learning
from lq_plugin.observers import Observer, Range, Statistic
from lq_plugin.qparams import rounded_activation, rounded_weight
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

    @property
    def learning(self) -> Learning | None:
        """What algorithms learnt from, and their results; ``None`` if none was requested."""

    @property
    def notes(self) -> Sequence[str]:
        """What the graph leaves out or fixes, as sentences for the user; none where it was not captured yet."""

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The runtimes whose INT8 can be computed by torch."""

    def on(self, runtime: str) -> Candidate:
        """Return the candidate that a runtime's artifact is made from: what algorithms learn may hold on one alone."""

    def apart(self) -> Mapping[str, Candidate]:
        """Return what algorithms learn for, by runtime: one candidate for runtimes that round the same values alike."""

    def in_torch(self, runtime: str) -> Callable[..., Sequence[Tensor]]:
        """Return what a runtime computes, as a function of the graph's inputs, run by torch."""

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
        calibration: statistics of the reference's values.
        scheme: what is quantized and how.
        reference: the float graph that everything is compared with and that the calibration describes; ``graph`` itself
            by default, or what it was before a rewrite.
        new_statistics: statistics of the values that a rewrite has added or changed, by the name of the value.
        weight_scales: learnt weight scales by operator name: one for each output channel, or
            a single number where the scheme says ``"per_tensor"``.
        learnt_ranges: learnt ranges, by the name of the value: lowest and highest value to represent. All other ranges
            come from the statistics.
        keep_float: names of operators that stay float, besides those that the scheme names.
        faster_in_float: the same by runtime, for operators of which this was measured. Algorithms have learnt before
            that, and do not run again: weights that were fitted to rounded inputs suit exact ones too. Measured on
            onnxruntime's placement (six models of the tests' zoo, four sets of operators each, sequential): -1.1 to +7
            dB against all in INT8, median 0; learning anew would give .1 dB more (CNNs at most 1.3, transformers 4).
        learning: what algorithms learnt from, and their results; ``None`` if none was requested.
        only: the runtimes that it is for; ``None`` for all that something can be quantized for.
        variants: what the other runtimes' artifacts are made from, by runtime.

    Raises:
        ConfigError: ``weight_scales`` or ``learnt_ranges`` names something that does not exist.
    """

    name: str
    graph: Graph
    calibration: Calibration
    scheme: Scheme
    reference: Graph = field(default=None, repr=False)  # type: ignore[assignment]  # filled in below
    new_statistics: Mapping[str, Statistic] = field(default_factory=dict, repr=False)
    weight_scales: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    learnt_ranges: Mapping[str, Range] = field(default_factory=dict, repr=False)
    keep_float: frozenset[str] = frozenset()
    faster_in_float: Mapping[str, frozenset[str]] = field(default_factory=dict)
    learning: Learning | None = field(default=None, repr=False)
    only: frozenset[str] | None = None
    variants: Mapping[str, StaticCandidate] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.reference is None:
            object.__setattr__(self, "reference", self.graph)
        names = [node.name for node in self.graph.module.graph.nodes]
        for option in ("weight_scales", "learnt_ranges"):
            if unknown := sorted(getattr(self, option).keys() - set(names)):
                raise unknown_name(option, unknown[0], names)

    @property
    def example(self) -> Call:
        """The captured call."""
        return self.graph.signature.call(self.graph.example)

    @property
    def provenance(self) -> Provenance:
        """The provenance of the calibration."""
        return self.calibration.provenance

    def on(self, runtime: str) -> StaticCandidate:
        """Return the candidate that a runtime's artifact is made from."""
        return self.variants.get(runtime) or (replace(self, variants={}) if self.variants else self)

    def apart(self) -> Mapping[str, StaticCandidate]:
        """Return what algorithms learn for, by runtime: one candidate for runtimes that round the same values alike.

        What was learnt for the union of all placements lost 2 dB on openvino to what was learnt for its own (a detector
        with PReLU, of which onnxruntime quantizes the inputs).
        """
        groups: dict[str, list[str]] = {}
        for name, placed in self._placements.items():
            read = {op: [(value, placed.scales[value]) for value in values] for op, values in placed.inputs.items()}
            made = {value: placed.scales[value] for value in placed.outputs}
            groups.setdefault(str((sorted(read.items()), sorted(made.items()))), []).append(name)
        own = [(group, replace(self, only=frozenset(group))) for group in groups.values()]
        return {name: each for group, each in own for name in group}

    def placed(self, runtime: str) -> Placement:
        """Return where quantize/dequantize pairs go for a runtime.

        Raises:
            UnsupportedError: nothing can be quantized for it.
        """
        if runtime in self.variants:
            return self.variants[runtime].placed(runtime)
        known = self._placements.get(runtime)
        return known or place(self.graph, self.scheme, runtime, self._float_on(runtime), self.ranges)  # which says why

    @cached_property
    def _placements(self) -> dict[str, Placement]:
        every = place_everywhere(self.graph, self.scheme, self._float_on, self.ranges)
        return {name: placed for name, placed in every.items() if self.only is None or name in self.only}

    def _float_on(self, runtime: str) -> dict[str, str]:
        """Why operators stay float on a runtime that could be INT8."""
        measured = dict.fromkeys(self.faster_in_float.get(runtime, ()), "faster in float on this machine (measured)")
        return {**measured, **dict.fromkeys(self.keep_float, "chosen to stay float")}

    def with_float(self, runtime: str, operators: Iterable[str]) -> StaticCandidate:
        """Return a candidate of which these operators are float on a runtime, where that was measured to be faster."""
        if runtime in self.variants:
            own = self.variants[runtime].with_float(runtime, operators)
            return replace(self, variants={**self.variants, runtime: own})
        return replace(self, faster_in_float={**self.faster_in_float, runtime: frozenset(operators)})

    @property
    def notes(self) -> Sequence[str]:
        """What the graph leaves out or fixes."""
        return self.reference.notes

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The runtimes for which anything can be quantized."""
        return (*self._placements, *self.variants)

    @cached_property
    def united(self) -> Placement:
        """What at least one of its own runtimes quantizes: algorithms run once for all of them."""
        return united(tuple(self._placements.values()))

    @property
    def statistics(self) -> Mapping[str, Statistic]:
        """Statistics by the name of the value."""
        return {**self.calibration.statistics, **self.new_statistics}

    @cached_property
    def ranges(self) -> Mapping[str, Range]:
        """Lowest and highest value to represent, by the name of the value."""
        assert isinstance(self.scheme.observer, Observer)
        every = replace(self.calibration, statistics=self.statistics)
        return {**every.ranges(self.scheme.observer), **self.learnt_ranges}

    def rounded_activation(self, name: str, values: Tensor) -> Tensor:
        """Return a value of the graph as quantized operators read it, quantized and dequantized.

        Args:
            name: of the value; one that :attr:`united` quantizes.
            values: its float32 elements.
        """
        return rounded_activation(values, self.ranges[self.united.scales[name]], self.united.activation_spec)

    def rounded_weight(self, operator: str, weight: Tensor) -> Tensor:
        """Return the weight of an operator that :attr:`united` quantizes, quantized and dequantized."""
        _, axis = self.united.weights[operator]
        return rounded_weight(weight, self.united.weight_spec, axis, self.weight_scales.get(operator))

    def integer_lstm(self, node: fx.Node) -> Int8Lstm:
        """Return what computes an LSTM that :attr:`united` quantizes, a node of the graph, on integers."""
        return integer_lstm(self.graph.module, node, self.united, self.ranges)

    @property
    def plain(self) -> StaticCandidate:
        """The candidate as it was before any algorithm."""
        only = None if self.only is None else self.only | self.variants.keys()
        return StaticCandidate(
            self.name, self.reference, self.calibration, self.scheme, keep_float=self.keep_float, only=only
        )

    def in_torch(self, runtime: str) -> Callable[..., Sequence[Tensor]]:
        """Return what a runtime computes: the converted graph."""
        return self.converted(runtime).module

    def converted(self, runtime: str) -> Graph:
        """Return the graph with explicit quantize/dequantize pairs where a runtime is fastest with them."""
        if runtime in self.variants:
            return self.variants[runtime].converted(runtime)
        if self.provenance.structure != self.reference.structure:
            raise CalibrationError(
                "calibration: it belongs to another graph, whose values happen to have the same names. "
                "Calibrate the model that is quantized."
            )
        placement = self.placed(runtime)
        missing = sorted(placement.sources - self.ranges.keys())
        if missing:
            raise CalibrationError(
                f"calibration: it has no statistics for {missing[:3]} of the graph. It was gathered with different "
                "skip and only patterns; calibrate again."
            )
        return convert(self.graph, placement, self.ranges, self.weight_scales)


@dataclass(frozen=True)
class DynamicCandidate:
    """A float module and a scheme. Nothing is calibrated, and a graph is captured only for a format that needs one.

    Args:
        name: names the candidate's folder and its rows in the manifest.
        module: the float module, a copy of its own, in eval mode on the CPU. Learnt weights lie on the grid that every
            format finds for them.
        example: arguments and keyword arguments of one real call, on the CPU.
        scheme: what is quantized and how.
        provenance: whose weights these are.
        dynamic_dims: dynamic dimensions of the graph besides the batch, by input name.
        varying: dimensions in which calls differed.
        measured: decisions made by measuring during export, by a digest of what was measured.
        float_graph: the float graph that everything is compared with, where weights of ``module`` were learnt; else it
            is the graph of ``module``.
        learning: what algorithms learnt from, and their results; ``None`` if none was requested.
        target: dotted path of the module in the user's model, for messages.
    """

    name: str
    module: nn.Module
    example: Call
    scheme: Scheme
    provenance: Provenance
    dynamic_dims: DynamicDims = field(default_factory=dict)
    varying: DynamicDims = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict, compare=False, repr=False)
    float_graph: Graph | None = field(default=None, repr=False)
    learning: Learning | None = field(default=None, repr=False)
    target: str | None = None
    _placements: dict[str, Placement] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def graph(self) -> Graph:
        """The module's folded float graph, captured at first use."""
        if isinstance(self._captured, CaptureError):
            raise self._captured.with_traceback(None)
        return self._captured

    @cached_property
    def _captured(self) -> Graph | CaptureError:
        """The graph, or why there is none: every format asks for it, and to look for its parts takes seconds."""
        try:
            with parts_named(self.module, *self.example, self.target):
                return prepare(self.module, *self.example, self.dynamic_dims, self.varying)
        except CaptureError as error:
            return error

    @property
    def reference(self) -> Graph:
        """The graph of the module as it was trained."""
        return self.float_graph or self.graph

    @cached_property
    def survey(self) -> swap.Survey:
        """Which of the module's layers become INT8 in torch."""
        return swap.survey(self.module, self.example, self.scheme)

    @property
    def unlearnable(self) -> str:
        """Why algorithms cannot learn anything for this candidate, which may be good without; empty if they can."""
        try:
            _ = self.graph, self.survey
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    @property
    def notes(self) -> Sequence[str]:
        """What the graph leaves out or fixes, where it was captured."""
        captured = self.float_graph or vars(self).get("_captured")
        return captured.notes if isinstance(captured, Graph) else ()

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The runtimes whose INT8 can be computed here: torch itself."""
        return ("torch",)

    def on(self, runtime: str) -> DynamicCandidate:
        """Return the candidate itself: its weights serve every runtime."""
        return self

    def apart(self) -> Mapping[str, DynamicCandidate]:
        """Return the candidate itself for each runtime."""
        return dict.fromkeys(self.runtimes, self)

    def in_torch(self, runtime: str) -> Callable[..., Sequence[Tensor]]:
        """Return what the module computes with INT8 layers of torch."""
        module, signature = swap.int8(self.module, self.survey.chosen, self.scheme.weights), self.graph.signature

        def run(*given: Tensor) -> Sequence[Tensor]:
            args, kwargs = private_call(*signature.call(given))
            return list(tensors(module(*args, **kwargs)))

        return run

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
