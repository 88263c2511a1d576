"""GRUs on integers in ONNX, which onnxruntime's quantizer leaves alone: a ``Scan`` over time around integer products.

The products of the inputs are computed for all steps at once, those of the hidden state step by step; each by
``com.microsoft.DynamicQuantizeMatMul``. A step costs more calls than one of the fused float ``GRU`` does, so it pays
for wide layers alone: whether it does is measured.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lq_plugin.errors import require

Array = NDArray[Any]
LEAST_SPEEDUP = 1.05  # below, the difference could be noise
_SECONDS, _LEAST_CALLS = 0.3, 5  # of measuring, for each of the two forms


def with_integer_grus(model: Any, names: Sequence[str], reduce_range: bool) -> Any:
    """Return a copy of a model with some of its ``GRU`` nodes computed on integers.

    Args:
        model: an ``onnx.ModelProto`` in which the weights of these nodes are initializers.
        names: of the nodes.
        reduce_range: weights use 7 bits.
    """
    library = require("onnx", "onnx", "formats: 'onnx'")
    made = library.ModelProto()
    made.CopyFrom(model)
    weights = {tensor.name: library.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    nodes: list[Any] = []
    for node in model.graph.node:
        if node.name in names:
            scans = _Scans(library, node, weights, reduce_range)
            nodes += scans.nodes
            made.graph.initializer.extend(scans.constants)
        else:
            nodes.append(node)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in made.graph.initializer if tensor.name in used]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    if all(opset.domain != "com.microsoft" for opset in made.opset_import):
        made.opset_import.append(library.helper.make_opsetid("com.microsoft", 1))
    return made


def speedup(float_model: Any, int8_model: Any, feed: Mapping[str, Array]) -> float:
    """Measure how much faster the second model is on onnxruntime, in turns with the first."""
    ort = require("onnxruntime", "onnx", "formats: 'onnx'")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the other one is measured meanwhile
    with tempfile.TemporaryDirectory() as scratch:
        sessions = []
        for number, model in enumerate((float_model, int8_model)):
            file = Path(scratch) / f"{number}.onnx"
            file.write_bytes(model.SerializeToString())
            sessions.append(ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]))
        times: list[list[float]] = [[], []]
        end = time.perf_counter() + 2 * _SECONDS
        while len(times[0]) < _LEAST_CALLS or time.perf_counter() < end:
            for session, seen in zip(sessions, times, strict=True):
                start = time.perf_counter()
                session.run(None, feed)
                seen.append(time.perf_counter() - start)
    return float(np.median(times[0][1:]) / np.median(times[1][1:]))


class _Scans:
    """The nodes that take the place of one ``GRU``: a scan for each direction, and what is around them."""

    def __init__(self, library: Any, node: Any, weights: Mapping[str, Array], reduce_range: bool) -> None:
        self.library, self.prefix, self.highest = library, node.name, 63 if reduce_range else 127
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        x, w, r, b, lengths, start = (*node.input, "", "", "")[:6]
        wide, narrow = weights[w], weights[r]
        directions, _, self.size = narrow.shape
        biases = weights[b] if b else np.zeros((directions, 6 * self.size), np.float32)
        mask = self._mask(x, lengths) if lengths else ""
        outputs, last = [], []
        for direction in range(directions):
            first = self._start(x, start, direction)
            given = self._product(x, wide[direction], biases[direction][: 3 * self.size], self.nodes, self.constants)
            body = self._body(narrow[direction], biases[direction][3 * self.size :], f"{self.prefix}_{direction}", mask)
            hidden, output = self._add(
                "Scan",
                [first, given, *([mask] if mask else [])],
                2,
                body=body,
                num_scan_inputs=2 if mask else 1,
                scan_input_directions=[direction] * (2 if mask else 1),
                scan_output_directions=[direction],
            )
            outputs.append(self._add("Unsqueeze", [output, self._constant([1])])[0])
            last.append(self._add("Unsqueeze", [hidden, self._constant([0])])[0])
        for parts, name, axis in ((outputs, node.output[0], 1), (last, (*node.output, "")[1], 0)):
            if name:
                self.nodes.append(library.helper.make_node("Concat", parts, [name], f"{name}_joined", axis=axis))

    def _body(self, narrow: Array, bias: Array, prefix: str, mask: str) -> Any:
        """One step: state and input in, state and output out."""
        helper, proto = self.library.helper, self.library.TensorProto
        nodes: list[Any] = []
        constants: list[Any] = []

        def add(op: str, inputs: Sequence[str], count: int = 1, **options: Any) -> list[str]:
            return self._add(op, inputs, count, nodes, **options)

        before, given, inside = f"{prefix}_h", f"{prefix}_x", f"{prefix}_inside"
        sizes = f"{prefix}_sizes"
        constants.append(self.library.numpy_helper.from_array(np.array([2 * self.size, self.size]), sizes))
        kept = self._product(before, narrow, bias, nodes, constants)
        given_gates, given_new = add("Split", [given, sizes], 2, axis=-1)
        kept_gates, kept_new = add("Split", [kept, sizes], 2, axis=-1)
        gates = add("Sigmoid", add("Add", [given_gates, kept_gates]))
        update, reset = add("Split", gates, 2, axis=-1, num_outputs=2)
        new = add("Tanh", add("Add", [given_new, *add("Mul", [reset, kept_new])]))
        state = add("Add", [*new, *add("Mul", [update, *add("Sub", [before, *new])])])
        output = state
        if mask:
            zero = f"{prefix}_zero"
            constants.append(self.library.numpy_helper.from_array(np.array(0, np.float32), zero))
            state = add("Where", [inside, *state, before])
            output = add("Where", [inside, *state, zero])
        output = add("Identity", output)
        inputs = [helper.make_tensor_value_info(name, proto.FLOAT, None) for name in (before, given)]
        if mask:
            inputs.append(helper.make_tensor_value_info(inside, proto.BOOL, None))
        outputs = [helper.make_tensor_value_info(name, proto.FLOAT, None) for name in (*state, *output)]
        return helper.make_graph(nodes, f"{prefix}_step", inputs, outputs, constants)

    def _product(self, x: str, weight: Array, bias: Array, nodes: list[Any], constants: list[Any]) -> str:
        """Multiply by a weight of shape ``(outputs, inputs)`` as integers, with a scale for each output."""
        scale = np.maximum(np.abs(weight).max(axis=1), np.finfo(np.float32).tiny) / self.highest
        integers = np.round(weight / scale[:, None]).astype(np.int8).T
        name = f"{x}_{len(nodes)}_weight"
        for part, array in (("", integers), ("_scale", scale.astype(np.float32)), ("_bias", bias)):
            constants.append(
                self.library.numpy_helper.from_array(np.ascontiguousarray(array), f"{self.prefix}_{name}{part}")
            )
        full = f"{self.prefix}_{name}"
        inputs = [x, full, f"{full}_scale", "", f"{full}_bias"]
        return self._add("DynamicQuantizeMatMul", inputs, 1, nodes, domain="com.microsoft")[0]

    def _start(self, x: str, start: str, direction: int) -> str:
        """The state before the first step: the given one, or zeros."""
        if start:
            return self._add("Gather", [start, self._constant(direction)], axis=0)[0]
        batch = self._add("Gather", [*self._add("Shape", [x]), self._constant([1])], axis=0)
        shape = self._add("Concat", [*batch, self._constant([self.size])], axis=0)
        return self._add("ConstantOfShape", shape)[0]

    def _mask(self, x: str, lengths: str) -> str:
        """Which steps lie inside each sequence, of shape ``(steps, batch, 1)``."""
        steps = self._add("Gather", [*self._add("Shape", [x]), self._constant(0)], axis=0)
        numbers = self._add("Range", [self._constant(0), *steps, self._constant(1)])
        column = self._add(
            "Unsqueeze", [*self._add("Cast", numbers, to=self.library.TensorProto.INT32), self._constant([1])]
        )
        return self._add("Unsqueeze", [*self._add("Less", [*column, lengths]), self._constant([2])])[0]

    def _constant(self, value: int | list[int]) -> str:
        name = f"{self.prefix}_constant_{len(self.constants)}"
        self.constants.append(self.library.numpy_helper.from_array(np.array(value, np.int64), name))
        return name

    def _add(
        self, op: str, inputs: Sequence[str], count: int = 1, nodes: list[Any] | None = None, **options: Any
    ) -> list[str]:
        nodes = self.nodes if nodes is None else nodes
        name = f"{self.prefix}_{'step' if nodes is not self.nodes else 'scan'}_{len(nodes)}_{op}_{inputs[0]}"
        outputs = [f"{name}_{number}" for number in range(count)]
        nodes.append(self.library.helper.make_node(op, list(inputs), outputs, name, **options))
        return outputs
