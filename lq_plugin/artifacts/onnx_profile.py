"""How long each node of an ONNX artifact takes, by onnxruntime's own profiler."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lq_plugin.artifacts import onnx
from lq_plugin.artifacts.layout import place
from lq_plugin.artifacts.profiled_calls import CALLS, typical
from lq_plugin.coverage import Duration
from lq_plugin.errors import require

_KERNEL = "_kernel_time"
_LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")  # the exporter names them after their operators, see onnx.py
# What onnxruntime adds to the name of a node that it replaces: "fused linear", "conv2d_nchwc", "conv2d_token_3".
_ADDED = re.compile(r"^fused |(/|_token_\d|_nchwc).*", re.IGNORECASE)


def profile(folder: Path, tensors: Sequence[Tensor], threads: int | None) -> list[Duration]:
    """Return how long each node takes, the median of all calls, in the order in which they run.

    A node that onnxruntime has fused may have the name of any of its parts: a convolution with its activation has that
    of the activation. So a name is followed through the exported file to the layer that its input comes from.
    """
    ort = require("onnxruntime", "onnx", "profile: an ONNX artifact")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_profiling = True
    if threads is not None:
        options.intra_op_num_threads = threads
    file = place(folder, onnx.FILE)
    with tempfile.TemporaryDirectory() as scratch:
        options.profile_file_prefix = str(Path(scratch) / "profile")
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        feed = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), tensors, strict=True)}
        for _ in range(CALLS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_bytes())
    layers = dict(_layers(file))
    return [Duration(_known(name, layers), typical(times)) for name, times in _times(events).items()]


def _times(events: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Microseconds of each node in each call, in the order in which the nodes run."""
    times: dict[str, list[float]] = {}
    for event in sorted(events, key=lambda event: float(event["ts"])):
        name = str(event["name"])
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            times.setdefault(name.removesuffix(_KERNEL), []).append(float(event["dur"]))
    return times


def _known(name: str, layers: dict[str, str]) -> frozenset[str]:
    layer = layers.get(_ADDED.sub("", name))
    return frozenset() if layer is None else frozenset({layer})


def _layers(file: Path) -> Iterator[tuple[str, str]]:
    """Yield names of nodes and of their results with the last layer before them, or the layer that they are."""
    ir = require("onnx_ir", "onnx", "profile: an ONNX artifact")
    graph = ir.load(file).graph
    before: dict[str, str] = {}
    position: dict[str, int] = {}
    for number, node in enumerate(graph):
        known = [before[value.name] for value in node.inputs if value is not None and value.name in before]
        layer = str(node.name) if node.op_type in _LAYERS else max(known, key=position.__getitem__, default=None)
        if layer is None:
            continue
        position.setdefault(layer, number)
        before.update({str(value.name): layer for value in node.outputs})
        yield str(node.name), layer
        yield from ((str(value.name), layer) for value in node.outputs)
