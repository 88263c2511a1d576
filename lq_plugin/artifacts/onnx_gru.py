"""INT8 GRUs in ONNX, which onnxruntime's quantizer leaves float: a ``Scan`` over time around integer products.

The products of the inputs are computed for all steps at once, those of the hidden state step by step; each by
``com.microsoft.DynamicQuantizeMatMul``. A step takes more calls than one of the fused float ``GRU``, so this pays off
only for wide layers: whether it does is measured. The product of a narrow input stays float.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lq_plugin.errors import require
from lq_plugin.qparams import QuantSpec, integers_of

if TYPE_CHECKING:
    import onnx_ir as ir

Array = NDArray[Any]
LEAST_SPEEDUP = 1.05  # below, the difference could be noise
_SECONDS, _LEAST_CALLS = 0.3, 5  # of measuring each of the two forms
# An input is narrow if the hidden size is at least this many times its width. With the input product in float the GRU
# is 16 dB more accurate, because one scale for the inputs of all steps is coarse. It is as fast or a little slower: by
# 0 to 1 % (hidden size 512), 5 to 10 % (1024), 6 to 27 % (512, 8 samples a call), where INT8 makes it 2 to 7 times as
# fast.
_NARROW = 4.0


def with_integer_grus(model: ir.Model, names: Sequence[str], weights: QuantSpec) -> ir.Model:
    """Return a copy of a model with some of its ``GRU`` nodes in INT8.

    Args:
        model: a model in which the weights of these nodes are initializers.
        names: names of the nodes.
        weights: which integers their weights become. Those of a narrow input stay float, see :func:`is_narrow`.
    """
    made = model.clone()
    for name in names:
        _replace(made.graph, made.graph.node(name), weights)
    made.opset_imports.setdefault("com.microsoft", 1)
    return made


def widths(gru: ir.Node) -> tuple[int, int]:
    """Return the input size and the hidden size of a ``GRU``."""
    w, r = (weight.const_value.numpy().shape for weight in gru.inputs[1:3])  # type: ignore[union-attr]
    return w[-1], r[-1]


def is_narrow(gru: ir.Node) -> bool:
    """Whether the input of a ``GRU`` is so narrow that its product stays float.

    Of several layers only the first can have a narrow input: the others read all hidden values of the layer before.
    """
    inputs, hidden = widths(gru)
    return inputs * _NARROW <= hidden


def speedup(float_model: ir.Model, int8_model: ir.Model, feed: Mapping[str, Array], threads: int | None) -> float:
    """Measure how much faster the second model is on onnxruntime, in turns with the first.

    Args:
        float_model: the first.
        int8_model: the second.
        feed: inputs by name.
        threads: size of onnxruntime's thread pool; ``None`` for its own choice.
    """
    ir, ort = (require(module, "onnx", "formats: 'onnx'") for module in ("onnx_ir", "onnxruntime"))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    # Threads spin between the products of a Scan, as they do after load: if they do not, INT8 seems 1.5 times as slow
    # as it is (hidden size 256, 2 threads). They stop when a call ends, because the other model is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with tempfile.TemporaryDirectory() as scratch:
        sessions = []
        for number, model in enumerate((float_model, int8_model)):
            file = Path(scratch) / f"{number}.onnx"
            ir.save(model, file)
            sessions.append(ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]))
        times: list[list[float]] = [[], []]
        end = time.perf_counter() + 2 * _SECONDS
        while len(times[0]) < _LEAST_CALLS or time.perf_counter() < end:
            for session, seen in zip(sessions, times, strict=True):
                start = time.perf_counter()
                session.run(None, feed)
                seen.append(time.perf_counter() - start)
    # With other processes on the CPU, medians decided wrongly in 3 of 24 trials, quartiles in none (hidden size 512).
    slow, fast = (np.quantile(seen[1:], 0.25) for seen in times)
    return float(slow / fast)


class _Tape:
    """New nodes and initializers of a graph, named after the ``GRU`` that they compute."""

    def __init__(self, gru: ir.Node, graph: str, spec: QuantSpec) -> None:
        self.ir = require("onnx_ir", "onnx", "formats: 'onnx'")
        self.gru, self.spec = gru.name, spec
        self.recorded: ir.tape.Tape = self.ir.tape.Tape()
        self._prefix = f"{gru.name}_{graph}"

    def op(
        self, op_type: str, *inputs: ir.Value | None, name: str = "", domain: str = "", **attributes: Any
    ) -> ir.Value:
        """Add a node with one output."""
        return self.ops(1, op_type, *inputs, name=name, domain=domain, **attributes)[0]

    def ops(
        self, outputs: int, op_type: str, *inputs: Any, name: str = "", domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """Add a node with several outputs."""
        name = name or f"{self._prefix}_{len(self.recorded.nodes)}_{op_type}_{inputs[0].name}"
        values = [self.ir.val(f"{name}_{number}") for number in range(outputs)]
        return self.recorded.op_multi_out(op_type, inputs, attributes, outputs=values, domain=domain, name=name)

    def constant(self, value: Array | np.float32 | int | list[int], name: str = "") -> ir.Value:
        """Add an initializer."""
        name = name or f"{self.gru}_constant_{len(self.recorded.initializers)}"
        return self.recorded.initializer(self.ir.tensor(np.array(value, order="C"), name=name))

    def product(self, x: ir.Value, weight: Array, bias: Array) -> ir.Value:
        """Multiply by a weight of shape ``(outputs, inputs)`` as integers, with a scale for each output."""
        integers, scale = integers_of(torch.from_numpy(weight.copy()), self.spec, 0)
        name = f"{self.gru}_{x.name}_{len(self.recorded.nodes)}_weight"
        arrays = {"": integers.numpy().T, "_scale": scale.expand(len(weight)).numpy(), "_bias": bias}
        weights, scales, biases = (self.constant(array, f"{name}{suffix}") for suffix, array in arrays.items())
        return self.op("DynamicQuantizeMatMul", x, weights, scales, None, biases, domain="com.microsoft")

    def float_product(self, x: ir.Value, weight: Array, bias: Array) -> ir.Value:
        """Multiply by a weight of shape ``(outputs, inputs)`` as it is."""
        return self.op("Add", self.op("MatMul", x, self.constant(weight.T)), self.constant(bias))


def _replace(graph: ir.Graph, gru: ir.Node, weights: QuantSpec) -> None:
    """Put a scan for each direction, and what is around them, in the place of one ``GRU``."""
    tape = _Tape(gru, "scan", weights)
    inputs: list[Any] = [*gru.inputs, None, None, None][:6]
    scans = zip(*_scans(tape, gru, inputs), strict=True)
    pairs = [
        (value, tape.op("Concat", *parts, name=f"{value.name}_joined", axis=axis))
        for value, parts, axis in zip(
            gru.outputs, scans, (1, 0), strict=False
        )  # none for a last state that is not read
        if value.name
    ]
    replaced, joined = zip(*pairs, strict=True)
    tape.ir.convenience.replace_nodes_and_values(graph, gru, [gru], tape.recorded.nodes, replaced, joined)
    for weight in inputs[1:4]:
        if weight is not None and not weight.uses():
            graph.initializers.pop(weight.name)
    for value in tape.recorded.initializers:
        graph.initializers.add(value)


def _scans(tape: _Tape, gru: ir.Node, inputs: list[Any]) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield the outputs of all steps and the last state of each direction."""
    x, wide, narrow, bias, lengths, start = inputs
    w, r = wide.const_value.numpy(), narrow.const_value.numpy()
    directions, _, size = r.shape
    b = np.zeros((directions, 6 * size), np.float32) if bias is None else bias.const_value.numpy()
    masks = [] if lengths is None else [_mask(tape, x, lengths)]
    product = tape.float_product if is_narrow(gru) else tape.product
    for direction in range(directions):
        first = _zeros(tape, x, size) if start is None else tape.op("Gather", start, tape.constant(direction), axis=0)
        scanned = [product(x, w[direction], b[direction, : 3 * size]), *masks]
        step = _Tape(gru, "step", tape.spec)
        body = _step(step, f"{gru.name}_{direction}", r[direction], b[direction, 3 * size :], bool(masks))
        directed: Any = {"scan_input_directions": [direction] * len(scanned), "scan_output_directions": [direction]}
        last, output = tape.ops(2, "Scan", first, *scanned, body=body, num_scan_inputs=len(scanned), **directed)
        yield tape.op("Unsqueeze", output, tape.constant([1])), tape.op("Unsqueeze", last, tape.constant([0]))


def _step(tape: _Tape, prefix: str, weight: Array, bias: Array, masked: bool) -> ir.Graph:
    """Return the graph of one step: state and input in, state and output out."""
    size, dtypes, val = weight.shape[1], tape.ir.DataType, tape.ir.val
    before, given = (val(f"{prefix}_{name}", dtypes.FLOAT) for name in ("h", "x"))
    inside = [val(f"{prefix}_inside", dtypes.BOOL)] if masked else []
    sizes = tape.constant([2 * size, size], f"{prefix}_sizes")
    kept = tape.product(before, weight, bias)
    given_gates, given_new = tape.ops(2, "Split", given, sizes, axis=-1)
    kept_gates, kept_new = tape.ops(2, "Split", kept, sizes, axis=-1)
    gates = tape.op("Sigmoid", tape.op("Add", given_gates, kept_gates))
    update, reset = tape.ops(2, "Split", gates, axis=-1, num_outputs=2)
    new = tape.op("Tanh", tape.op("Add", given_new, tape.op("Mul", reset, kept_new)))
    state = output = tape.op("Add", new, tape.op("Mul", update, tape.op("Sub", before, new)))
    if masked:
        zero = tape.constant(np.float32(0), f"{prefix}_zero")
        state = tape.op("Where", *inside, state, before)
        output = tape.op("Where", *inside, state, zero)
    results = [state, tape.op("Identity", output)]
    for value in results:
        value.dtype = dtypes.FLOAT
    constants, name = tape.recorded.initializers, f"{prefix}_step"
    step: ir.Graph = tape.ir.Graph(
        [before, given, *inside], results, nodes=tape.recorded.nodes, initializers=constants, name=name
    )
    return step


def _zeros(tape: _Tape, x: ir.Value, size: int) -> ir.Value:
    """Return the state before the first step where none is given."""
    batch = tape.op("Gather", tape.op("Shape", x), tape.constant([1]), axis=0)
    return tape.op("ConstantOfShape", tape.op("Concat", batch, tape.constant([size]), axis=0))


def _mask(tape: _Tape, x: ir.Value, lengths: ir.Value) -> ir.Value:
    """Return which steps lie inside each sequence, of shape ``(steps, batch, 1)``."""
    steps = tape.op("Gather", tape.op("Shape", x), tape.constant(0), axis=0)
    numbers = tape.op("Range", tape.constant(0), steps, tape.constant(1))
    column = tape.op("Unsqueeze", tape.op("Cast", numbers, to=tape.ir.DataType.INT32), tape.constant([1]))
    return tape.op("Unsqueeze", tape.op("Less", column, lengths), tape.constant([2]))
