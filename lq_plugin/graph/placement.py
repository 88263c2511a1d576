"""Where quantize/dequantize pairs go: which operators are quantized, at which inputs and outputs, for which runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from torch import fx

from lq_plugin import patterns
from lq_plugin.coverage import FloatOp, QuantizedOp
from lq_plugin.errors import UnsupportedError, unknown_name
from lq_plugin.graph import grids, int8_lstm
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.nodes import (
    INSERTED_BY,
    arguments,
    module_path,
    module_stack,
    operator_type,
    result_dtype,
)
from lq_plugin.graph.operators import (
    OPERATOR_NAMES,
    OPERATORS,
    RECURRENT,
    UNLISTED,
    Operator,
    operator_of,
    values_of,
)
from lq_plugin.graph.refusals import convolutional_values, dynamic_refusal, no_form, static_refusal
from lq_plugin.observers import Range
from lq_plugin.qparams import QuantSpec
from lq_plugin.runtimes import RUNTIMES, Runtime, activations
from lq_plugin.scheme import Scheme

Chosen = dict[fx.Node, Operator]  # what is quantized, and how
Refused = dict[fx.Node, str]  # what stays float, and why
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Placement:
    """Where quantize/dequantize pairs go in a folded graph, by the names of its nodes, and which integers they make.

    Args:
        weight_spec: which integers weights become.
        activation_spec: which integers activations become.
        inputs: for each quantized operator, the values quantized on their way in.
        weights: for each quantized operator with a weight, the weight's node and its channel axis.
        outputs: nodes whose result is quantized for all of its users.
        early: values that are quantized where they are made, because operators only move them to quantized inputs.
        joined: quantized values that need no pair, because all that they are joined from have one of the same scale.
        scales: for each quantized value, the value whose statistic it uses.
        sources: the values whose statistics are needed: those that ``scales`` chooses from, and those of ``hidden``.
        hidden: for each quantized LSTM, the names of its layers' hidden states.
        quantized: every quantized operator, by node.
        float_ops: what computes on floats and stays float.
    """

    weight_spec: QuantSpec
    activation_spec: QuantSpec
    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    weights: dict[str, tuple[str, int]] = field(default_factory=dict)
    outputs: frozenset[str] = frozenset()
    early: frozenset[str] = frozenset()
    joined: frozenset[str] = frozenset()
    scales: dict[str, str] = field(default_factory=dict)
    sources: frozenset[str] = frozenset()
    hidden: dict[str, tuple[str, ...]] = field(default_factory=dict)
    quantized: dict[str, QuantizedOp] = field(default_factory=dict)
    float_ops: tuple[FloatOp, ...] = ()


def place(
    graph: Graph,
    scheme: Scheme,
    runtime: str,
    keep_float: Mapping[str, str] = _NOTHING,
    ranges: Mapping[str, Range] = _NOTHING,
) -> Placement:
    """Decide where quantize/dequantize pairs go for one runtime, with scales that are fixed ahead of time.

    Args:
        graph: a folded graph.
        scheme: what is quantized; ``skip`` and ``only`` are its user's patterns.
        runtime: a key of ``RUNTIMES``.
        keep_float: why operators stay float besides, by their names (of the graph's nodes).
        ranges: lowest and highest value, by the names of values; where they are unknown, all are taken to be alike.

    Raises:
        ConfigError: a pattern of the scheme matches nothing.
        UnsupportedError: nothing in the graph can be quantized.
    """
    check_patterns(graph, scheme)
    nodes = graph.module.graph.nodes
    if unknown := sorted(keep_float.keys() - {node.name for node in nodes}):
        raise unknown_name("keep_float", unknown[0], [node.name for node in nodes])
    convolutional = convolutional_values(nodes)
    rules, spec = RUNTIMES[runtime], activations(scheme, runtime)

    def refusal(node: fx.Node, operator: Operator) -> str | None:
        return (
            patterns.exclusion(scheme, operator.name, module_stack(node))
            or keep_float.get(node.name)
            or static_refusal(node, operator, convolutional, rules)
        )

    chosen, refused = _choose(nodes, refusal)
    if not any(o.weight is not None or o.name in ("matmul", "bmm", "lstm") for o in chosen.values()):
        raise _nothing_to_quantize(
            refused, "convolutions, linear layers, matrix products, embeddings and, on OpenVINO, LSTMs"
        )
    inputs = {node: tuple(values_of(node, operator)) for node, operator in chosen.items()}
    outputs, early = grids.quantized_outputs(chosen, inputs, rules), grids.moved_values(chosen, inputs, rules)
    values = {value for given in inputs.values() for value in given} | outputs | early
    sources = grids.scale_sources(values, chosen, inputs, rules)
    scales = grids.shared_scales(values, chosen, inputs, rules, grids.steps(sources, ranges, spec))
    hidden = {node.name: int8_lstm.hidden_names(node) for node, operator in chosen.items() if operator.name == "lstm"}
    return Placement(
        scheme.weights,
        spec,
        inputs={node.name: tuple(value.name for value in given) for node, given in inputs.items()},
        weights=_weights(chosen),
        outputs=frozenset(node.name for node in outputs),
        early=frozenset(node.name for node in early),
        joined=frozenset(node.name for node in grids.joined_values(scales, chosen, rules)),
        scales={value.name: source.name for value, source in scales.items()},
        sources=frozenset(node.name for node in sources).union(*hidden.values()),
        hidden=hidden,
        quantized=_quantized(chosen),
        float_ops=_float_ops(chosen, refused, rules),
    )


def place_everywhere(
    graph: Graph,
    scheme: Scheme,
    keep_float: Callable[[str], Mapping[str, str]] = lambda _: _NOTHING,
    ranges: Mapping[str, Range] = _NOTHING,
) -> dict[str, Placement]:
    """Return a placement for each runtime that something can be quantized for, by name.

    This also checks a scheme against a graph.

    Args:
        graph: a folded graph.
        scheme: what is quantized.
        keep_float: returns what :func:`place` takes for a runtime.
        ranges: what :func:`place` takes.

    Raises:
        ConfigError: a pattern of the scheme matches nothing.
        UnsupportedError: nothing in the graph can be quantized for any runtime.
    """
    placements: dict[str, Placement] = {}
    for runtime in RUNTIMES:
        try:
            placements[runtime] = place(graph, scheme, runtime, keep_float(runtime), ranges)
        except UnsupportedError as error:
            refused = error
    if not placements:
        raise refused
    return placements


def united(placements: Sequence[Placement]) -> Placement:
    """Return one placement that quantizes what any of the given placements does; their integers are the same.

    Where they have different scales for a value, it has that of the last one. Each value has a pair of its own.
    """
    return replace(
        placements[0],
        inputs={op: values for each in placements for op, values in each.inputs.items()},
        weights={op: weight for each in placements for op, weight in each.weights.items()},
        outputs=frozenset[str]().union(*(each.outputs for each in placements)),
        early=frozenset[str]().union(*(each.early for each in placements)),
        joined=frozenset(),
        scales={value: source for each in placements for value, source in each.scales.items()},
        sources=frozenset[str]().union(*(each.sources for each in placements)),
        hidden={op: names for each in placements for op, names in each.hidden.items()},
        quantized={op: listed for each in placements for op, listed in each.quantized.items()},
        float_ops=tuple(op for op in placements[0].float_ops if all(op in each.float_ops for each in placements)),
    )


def place_dynamic(graph: Graph, scheme: Scheme, runtime: str) -> Placement:
    """Decide which weights become integers for a runtime that computes the scales of activations in every call.

    Args:
        graph: a folded graph.
        scheme: what is quantized, with patterns that are about modules alone; see eager/swap.py.
        runtime: a key of ``RUNTIMES``.

    Raises:
        UnsupportedError: nothing in the graph can be quantized, or what the runtime leaves float is not worth it.
    """
    rules = RUNTIMES[runtime]

    def refusal(node: fx.Node, operator: Operator) -> str | None:
        return patterns.exclusion(scheme, operator.name, module_stack(node)) or dynamic_refusal(node, operator, rules)

    chosen, refused = _choose(graph.module.graph.nodes, refusal)
    if not any(o.weight is not None or o.name in RECURRENT for o in chosen.values()):
        raise _nothing_to_quantize(refused, "linear layers and, where asked, embeddings")
    recurrent = [display_name(node) for node in refused if operator_type(node) in RECURRENT]
    if recurrent and not rules.dynamic_around_float_layers:
        raise UnsupportedError(
            f"target: {recurrent} would stay float, because recurrent layers have no dynamic INT8 form here for "
            f"{runtime}. A static one exists for LSTMs on openvino: choose the method 'static'."
        )
    return Placement(
        scheme.weights,
        activations(scheme, runtime),
        inputs={node.name: () for node in chosen},
        weights=_weights(chosen),
        quantized=_quantized(chosen),
        float_ops=_float_ops(chosen, refused, rules),
    )


def display_name(node: fx.Node) -> str:
    """Name of an operator for people: the module it was captured in and its own name in the graph."""
    path = module_path(node)
    return f"{path}.{node.name}" if path else node.name


def check_patterns(graph: Graph, scheme: Scheme) -> None:
    """Check that every pattern of the scheme matches something.

    Raises:
        ConfigError: a pattern that matches nothing, with the nearest names that would.
    """
    present = {OPERATORS[n.target].name for n in graph.module.graph.nodes if n.target in OPERATORS}
    patterns.check_modules(scheme, graph.modules)
    patterns.check_types(scheme, present, OPERATOR_NAMES)


def _choose(nodes: Iterable[fx.Node], refusal: Callable[[fx.Node, Operator], str | None]) -> tuple[Chosen, Refused]:
    """Decide for everything that computes on floats how it is quantized, or why it stays float."""
    chosen: Chosen = {}
    refused: Refused = {}
    for node in filter(_computes_on_floats, nodes):
        operator = operator_of(node)
        if INSERTED_BY in node.meta:
            refused[node] = f"inserted by {node.meta[INSERTED_BY]}"
        elif operator is not None:
            reason = refusal(node, operator)
            if reason is None:
                chosen[node] = operator
            else:
                refused[node] = reason
        elif operator_type(node) not in UNLISTED:
            refused[node] = no_form(node)
    return chosen, refused


def _weights(chosen: Chosen) -> dict[str, tuple[str, int]]:
    return {
        node.name: (arguments(node)[operator.weight].name, operator.channel_axis)
        for node, operator in chosen.items()
        if operator.weight is not None
    }


def _quantized(chosen: Chosen) -> dict[str, QuantizedOp]:
    return {node.name: QuantizedOp(display_name(node), operator.name) for node, operator in chosen.items()}


def _float_ops(chosen: Chosen, refused: Refused, rules: Runtime) -> tuple[FloatOp, ...]:
    """What stays float, except activations that an INT8 kernel computes on its result."""
    fused = {tail for node in chosen for tail in grids.chain(node, rules)[1:]}
    left = {node: reason for node, reason in refused.items() if node not in fused}
    return tuple(FloatOp(display_name(node), operator_type(node), reason) for node, reason in left.items())


def _computes_on_floats(node: fx.Node) -> bool:
    dtype = result_dtype(node) if node.op == "call_function" else None
    return dtype is not None and dtype.is_floating_point


def _nothing_to_quantize(refused: Refused, allowed: str) -> UnsupportedError:
    reasons = "; ".join(f"{display_name(node)}: {reason}" for node, reason in list(refused.items())[:5])
    return UnsupportedError(
        f"target: nothing in it can be quantized. Quantizable: {allowed}. It has: "
        f"{reasons or 'no operator on float tensors'}. Choose another target, or relax skip and only."
    )
