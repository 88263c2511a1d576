"""OpenVINO's intermediate representation, read from the quantized graph's ONNX form."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lq_plugin.artifacts import onnx
from lq_plugin.artifacts.layout import place
from lq_plugin.artifacts.profiled_calls import CALLS, typical
from lq_plugin.coverage import Duration, Kernel
from lq_plugin.errors import require
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.int8_lstm import PREFIX
from lq_plugin.graph.nodes import arguments, attribute, operator_type
from lq_plugin.graph.operators import CONVOLUTIONS, MATRIX_PRODUCTS, RECURRENT, TRANSPOSED_CONVOLUTIONS
from lq_plugin.graph.recurrent import Options

if TYPE_CHECKING:
    import openvino

FILE = "model.xml"
FILES = (FILE, "model.bin")
CODE = """\
import openvino

settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
outputs = openvino.Core().compile_model(file, "CPU", settings)(inputs).to_tuple()
"""
# It computes them wrongly (2026.4), in float too, and says nothing.
REFUSES = dict.fromkeys(("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"), "openvino resizes without antialiasing")
_INT8 = ("i8", "u8")
_NUMBERED = re.compile(r"[A-Z]\w*_\d+")  # names that OpenVINO makes; those of operators are in lower case
_LSTM = re.compile(rf"{PREFIX}(\w+)\.r(\d+_\d)")  # the weights of a layer's direction; see graph/int8_lstm.py
# Types of its kernels and the operators that they compute. An attention is one kernel for several products.
_KERNELS = {
    "Convolution": CONVOLUTIONS - TRANSPOSED_CONVOLUTIONS,
    "Deconvolution": TRANSPOSED_CONVOLUTIONS,
    "FullyConnected": MATRIX_PRODUCTS,
    "MatMul": MATRIX_PRODUCTS,
    **dict.fromkeys(("RNNCell", "RNNSeq"), RECURRENT),
    **dict.fromkeys(("MHA", "ScaledDotProductAttention"), frozenset[str]()),
}


def export(graph: Graph, folder: Path) -> None:
    """Write ``model.xml`` and ``model.bin``."""
    ov = require("openvino", "openvino", "formats: 'openvino'")
    with tempfile.TemporaryDirectory() as scratch:
        onnx.export(graph, Path(scratch), "openvino")
        model = ov.convert_model(str(Path(scratch) / onnx.FILE))
        floats = _float_lstms(graph)
        # OpenVINO numbers what has no name through the whole process, so a second export would have other bytes.
        for number, node in enumerate(model.get_ordered_ops()):
            if _NUMBERED.fullmatch(node.get_friendly_name()):
                node.set_friendly_name(_name_of_lstm(node, floats) or f"{node.get_type_name()}_{number}")
        ov.save_model(model, str(folder / FILE), compress_to_fp16=False)


def _name_of_lstm(node: openvino.Node, floats: Mapping[str, Tensor]) -> str | None:
    """Name of a layer of an LSTM, which begins with that of the operator; it is found by its weights.

    Those of an INT8 LSTM, which are dequantized here, have kept their name. Those of a float one have not: OpenVINO has
    put the gates into its own order (f, i, g, o instead of i, f, g, o), so the second half is what it was.
    """
    if node.get_type_name() != "LSTMSequence":
        return None
    source = node.input_value(5).get_node()  # of the hidden state's weights
    while source.get_input_size():
        source = source.input_value(0).get_node()
    if found := _LSTM.search(source.get_friendly_name()):
        return f"{found[1]}/{found[2]}"
    weight = torch.tensor(source.data[0])
    return next((name for name, other in floats.items() if torch.equal(*map(_second_half, (weight, other)))), None)


def _second_half(weight: Tensor) -> Tensor:
    return weight[len(weight) // 2 :]


def _float_lstms(graph: Graph) -> dict[str, Tensor]:
    """Weights of the hidden state of each layer of each float LSTM, by the name of the layer.

    Not of those with two directions: OpenVINO splits them when it compiles them, and forgets their names.
    """
    found = {}
    for node in graph.module.graph.nodes:
        if operator_type(node) == "lstm":
            options = Options(*arguments(node)[4:])
            for layer in range(0 if options.bidirectional else options.layers):
                ((_, weight, *_),) = options.layer(arguments(node)[3], layer)
                found[f"{node.name}/{layer}"] = attribute(graph.module, weight).detach()
    return found


def load(folder: Path, threads: int | None) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """Compile the model for the CPU; see :func:`_compiled`."""
    compiled = _compiled(folder, threads)
    requests = threading.local()  # one for each thread: it holds the inputs and outputs of a call

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        if not hasattr(requests, "own"):
            requests.own = compiled.create_infer_request()
        results = requests.own.infer([tensor.numpy() for tensor in tensors], share_inputs=True)
        return [torch.from_numpy(result) for result in results.to_tuple()]  # copies, in the order of the outputs

    return run


def kernels(folder: Path) -> list[Kernel]:
    """List the kernels of convolutions, products and recurrent layers, from OpenVINO's runtime model.

    A kernel's precision there is that of what it multiplies: integers that are dequantized before make it float. Where
    weights alone are INT8 it is theirs; OpenVINO does not say whether it quantizes the activations in each call. A
    transposed convolution says INT8 on CPUs without VNNI too, and what computes it there is named ``brgconv_avx2_f32``.
    Products that it generates code for together with what surrounds them (``Subgraph``) are not told apart.
    """
    return [
        Kernel(name, kind, _KERNELS[kind], is_int8, frozenset(nodes))
        for name, kind, is_int8, nodes in _layers(_compiled(folder, None))
        if kind in _KERNELS
    ]


def profile(folder: Path, tensors: Sequence[Tensor], threads: int | None) -> list[Duration]:
    """Return how long each node takes, the median of all calls, in the order in which they run."""
    compiled = _compiled(folder, threads, PERF_COUNT="YES")
    request, times = compiled.create_infer_request(), dict[str, list[float]]()
    for _ in range(CALLS):
        request.infer([tensor.numpy() for tensor in tensors], share_inputs=True)
        for node in request.profiling_info:
            times.setdefault(node.node_name, []).append(node.real_time.total_seconds() * 1e6)
    layers = {name: nodes for name, kind, _, nodes in _layers(compiled) if kind in _KERNELS}
    return [Duration(_operators(layers.get(name, [])), typical(each)) for name, each in times.items()]


def _operators(nodes: Sequence[str]) -> frozenset[str]:
    """Names of the operators among exported nodes; the exporter's own names of nodes begin with ``node_``."""
    return frozenset(node for node in nodes if not node.startswith("node_")) | {
        node.removeprefix("node_") for node in nodes[:1]
    }


def _layers(compiled: openvino.CompiledModel) -> Iterator[tuple[str, str, bool, list[str]]]:
    """Yield name and type of each node of the runtime model, whether it is INT8, and names of the exported nodes."""
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        kind, precision, primitive, layers = (
            str(info[key].value) for key in ("layerType", "runtimePrecision", "primitiveType", "originalLayersNames")
        )
        takes_floats = kind == "Deconvolution" and primitive.endswith("_f32")
        is_int8 = precision.lower() in _INT8 and not takes_floats
        yield node.get_friendly_name(), kind, is_int8, [layer.partition("/")[0] for layer in layers.split(",")]


def _compiled(folder: Path, threads: int | None, **further: str) -> openvino.CompiledModel:
    """Compile the model for the CPU; what is not INT8 is computed in float32 on every CPU.

    The frontend is named, because OpenVINO would otherwise try every format that it knows on a foreign file.
    """
    ov = require("openvino", "openvino", "load: an OpenVINO artifact")
    reader = ov.frontend.FrontEndManager().load_by_framework("ir")
    model = reader.convert(reader.load(str(place(folder, FILE))))
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", **further}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    compiled: openvino.CompiledModel = ov.Core().compile_model(model, "CPU", settings)
    return compiled
