"""Which quantized values share a scale, and which are quantized where they are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from torch import fx

from lq_plugin.graph.nodes import is_float, operator_type
from lq_plugin.graph.operators import QUANTIZATION_AGNOSTIC, Operator, values_of
from lq_plugin.observers import Range
from lq_plugin.qparams import QuantSpec, activation_qparams
from lq_plugin.runtimes import Runtime

Inputs = Mapping[fx.Node, Sequence[fx.Node]]  # of each quantized operator, the values quantized on their way in
# How many times coarser than its own the step of a scale may be that a value shares: its readers lose at most a bit.
# A concatenation next to values 100 times as large, read by a convolution as well, lost 30 dB there.
COARSEST = 2


def chain(node: fx.Node, rules: Runtime) -> list[fx.Node]:
    """Return an operator and the activations that its kernel computes on its result."""
    found = [node]
    while len(found[-1].users) == 1:
        (user,) = found[-1].users
        if operator_type(user) not in rules.fuses or user.args[0] is not found[-1]:
            break
        found.append(user)
    return found


def quantized_outputs(chosen: Mapping[fx.Node, Operator], inputs: Inputs, rules: Runtime) -> set[fx.Node]:
    """Return the results of operators that are quantized for all of their users, because kernels want it.

    Args:
        chosen: what is quantized, and how.
        inputs: of what is quantized, the values quantized on their way in.
        rules: of the runtime.
    """
    return {
        result
        for node, operator in chosen.items()
        if operator.name in rules.quantized_outputs and not _all_quantize(result := chain(node, rules)[-1], inputs)
    }


def moved_values(chosen: Mapping[fx.Node, Operator], inputs: Inputs, rules: Runtime) -> set[fx.Node]:
    """Return the results of INT8 kernels that operators only move to quantized inputs, and to nothing else.

    Quantized by the kernel, before they are moved, they have the same integers, in a quarter of the memory: a kernel
    of convolutions in front of ``x[..., -1]`` wrote all steps as floats, to be reordered for one that was quantized.
    """
    if not rules.moves_integers:
        return set()
    # An LSTM's kernel gives floats.
    results = (chain(node, rules)[-1] for node, o in chosen.items() if o.activations and o.name != "lstm")
    return {result for result in results if _is_moved_to_quantizers(result, inputs)}


def _all_quantize(value: fx.Node, inputs: Inputs) -> bool:
    return bool(value.users) and all(value in inputs.get(user, ()) for user in value.users)


def _is_moved_to_quantizers(value: fx.Node, inputs: Inputs) -> bool:
    moving = [user for user in value.users if value not in inputs.get(user, ())]
    return bool(moving) and all(
        _only_moves(user) and (_all_quantize(user, inputs) or _is_moved_to_quantizers(user, inputs)) for user in moving
    )


def _only_moves(node: fx.Node) -> bool:
    return node.op == "call_function" and operator_type(node) in QUANTIZATION_AGNOSTIC


def scale_sources(
    values: Collection[fx.Node], chosen: Mapping[fx.Node, Operator], inputs: Inputs, rules: Runtime
) -> set[fx.Node]:
    """Return the values that :func:`shared_scales` chooses from, whose ranges it compares."""
    return {*map(origin, values), *_equalized(chosen, inputs, rules)}


def steps(sources: Collection[fx.Node], ranges: Mapping[str, Range], spec: QuantSpec) -> Callable[[fx.Node], float]:
    """Return a function that tells how far apart the levels of a value's own range are.

    Args:
        sources: what it is asked for. If the range of one of them is unknown, it says that all are alike.
        ranges: lowest and highest value, by the names of values.
        spec: which integers values become.
    """
    if any(value.name not in ranges for value in sources):
        return lambda _: 1.0
    return lambda value: activation_qparams(ranges[value.name], spec)[0]


def shared_scales(
    values: Collection[fx.Node],
    chosen: Mapping[fx.Node, Operator],
    inputs: Inputs,
    rules: Runtime,
    step: Callable[[fx.Node], float],
) -> dict[fx.Node, fx.Node]:
    """Return for each value the one whose range it has.

    That is what went into the operators that only pass it on. Where this goes on into an operator that wants equal
    scales, it has the range of that operator's result, which is the union of its inputs' ranges, unless that is too
    coarse for its other readers, see :data:`COARSEST`. Where it goes into several such operators, the last that is not
    too coarse decides; the others requantize it.

    Args:
        values: those that are quantized.
        chosen: what is quantized, and how, in the graph's order.
        inputs: of what is quantized, the values quantized on their way in.
        rules: of the runtime.
        step: what :func:`steps` returns for :func:`scale_sources`.
    """
    sources = dict[fx.Node, fx.Node]()
    equalized = _equalized(chosen, inputs, rules)
    finest = _finest_steps(equalized, step)
    for node, joined in reversed(equalized.items()):
        given = {sources.get(value) for value in joined}
        (common,) = given if len(given) == 1 else (None,)
        source = sources.setdefault(node, common or node)
        for value in joined:
            if step(source) <= COARSEST * finest[value]:
                sources.setdefault(value, source)
    return {value: sources.get(origin(value), origin(value)) for value in values}


def _equalized(chosen: Mapping[fx.Node, Operator], inputs: Inputs, rules: Runtime) -> dict[fx.Node, list[fx.Node]]:
    """Return the operators that want equal scales, and where their inputs come from, in the graph's order."""
    return {
        node: [origin(value) for value in inputs[node]]
        for node, operator in chosen.items()
        if operator.name in rules.equal_scales
    }


def _finest_steps(equalized: dict[fx.Node, list[fx.Node]], step: Callable[[fx.Node], float]) -> dict[fx.Node, float]:
    """Return the step of each value or, if it is finer, of one that it is joined into; of those that others read."""
    finest = dict[fx.Node, float]()
    for node, joined in reversed(equalized.items()):
        for value in (node, *joined):
            own = step(value) if _is_read(value, equalized) else math.inf
            finest[value] = min(own, finest.get(value, math.inf), finest.get(node, math.inf))
    return finest


def _is_read(value: fx.Node, equalized: Collection[fx.Node]) -> bool:
    """Whether anything but operators that want equal scales reads a value."""
    return any(_is_read(user, equalized) if _only_moves(user) else user not in equalized for user in value.users)


def joined_values(
    scales: Mapping[fx.Node, fx.Node], chosen: Mapping[fx.Node, Operator], rules: Runtime
) -> Iterator[fx.Node]:
    """Yield the values that are on their grid because everything that they are joined from is.

    OpenVINO (2026.4) would move a quantizer behind a concatenation before it. Next to an equal one that is there
    already, both become operators of their own, in place of a part of the convolution's kernel.
    """
    for node, operator in chosen.items():
        equal = operator.name in rules.equal_scales and node in scales
        if equal and all(scales[value] is scales[node] for value in values_of(node, operator)):
            yield node


def origin(value: fx.Node) -> fx.Node:
    """Return the value whose range a value has: what went into the operators that only pass it on."""
    while _only_moves(value):
        (passed, *_) = value.args
        if not isinstance(passed, fx.Node) or not (is_float(passed) or _only_moves(passed)):
            break
        value = passed
    return value
