"""ONNX with explicit QuantizeLinear/DequantizeLinear pairs, run by onnxruntime."""

from __future__ import annotations

import importlib.metadata
import mmap
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lq_plugin.artifacts.layout import place
from lq_plugin.artifacts.onnx_attention import with_heads
from lq_plugin.artifacts.onnx_passes import PASSES
from lq_plugin.artifacts.onnx_recurrent import translations, with_onnx_layers
from lq_plugin.artifacts.pt2 import program_of
from lq_plugin.coverage import Kernel
from lq_plugin.errors import ArtifactError, require
from lq_plugin.graph.graph import Graph
from lq_plugin.graph.operators import CONVOLUTIONS, MATRIX_PRODUCTS, TRANSPOSED_CONVOLUTIONS
from lq_plugin.graph.signature import Signature
from lq_plugin.graph.structure import results_of
from lq_plugin.graph.torch_patches import onnx_functions_parsed_once, operators_found_once
from lq_plugin.noise import muted

if TYPE_CHECKING:
    import onnx_ir as ir

FILE = "model.onnx"
WEIGHTS = f"{FILE}.data"
CODE = """\
import onnxruntime

session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
outputs = session.run(None, {given.name: value for given, value in zip(session.get_inputs(), inputs, strict=True)})
"""
_RECURRENT = ("LSTM", "DynamicQuantizeLSTM", "GRU", "RNN", "Scan")
_ORIGIN = "origin"
_OUTPUT = "output"
_SUFFIX = re.compile(r"(/|_token_\d).*")  # what onnxruntime appends to the name of a node that it replaces
_SINGLE_FILE_LIMIT = 1_900_000_000  # bytes; a protobuf message ends at 2 GiB
# Types of onnxruntime's kernels and the operators that they compute. An attention is one kernel for several products,
# and an INT8 GRU consists of the products in and before a Scan, see onnx_gru.py.
_INT8_KERNELS = {
    **dict.fromkeys(("QLinearConv", "ConvInteger"), CONVOLUTIONS - TRANSPOSED_CONVOLUTIONS),
    **dict.fromkeys(("QLinearMatMul", "QGemm", "MatMulInteger"), MATRIX_PRODUCTS),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulIntegerToFloat"), MATRIX_PRODUCTS),
    "DynamicQuantizeLSTM": frozenset({"lstm"}),
    "QAttention": frozenset[str](),
}
_FLOAT_KERNELS = {
    **dict.fromkeys(("Conv", "FusedConv"), CONVOLUTIONS - TRANSPOSED_CONVOLUTIONS),
    "ConvTranspose": TRANSPOSED_CONVOLUTIONS,
    **dict.fromkeys(("MatMul", "FusedMatMul", "Gemm", "FusedGemm"), MATRIX_PRODUCTS),
    "LSTM": frozenset({"lstm"}),
    "GRU": frozenset({"gru"}),
    **dict.fromkeys(("RNN", "Attention", "MultiHeadAttention"), frozenset[str]()),
}


def export(graph: Graph, folder: Path, runtime: str = "onnxruntime") -> None:
    """Write ``model.onnx`` (with ``model.onnx.data`` for weights beyond 2 GB) and check it."""
    checker = require("onnx", "onnx", "formats: 'onnx'").checker
    program = exported(graph, runtime)
    weights = sum(tensor.nbytes for tensor in graph.module.state_dict().values())
    with muted():
        program.save(str(folder / FILE), external_data=weights > _SINGLE_FILE_LIMIT)
    checker.check_model(str(folder / FILE), full_check=True)


def annotate(folder: Path, properties: Mapping[str, str]) -> None:
    """Say in the model what made it and from what, as ``metadata_props``.

    Messages of protobuf are merged when their bytes follow one another, so weights are neither read nor moved.
    """
    onnx = require("onnx", "onnx", "formats: 'onnx'")
    message = onnx.ModelProto(producer_name="lq_plugin", producer_version=importlib.metadata.version("lq_plugin"))
    onnx.helper.set_model_props(message, dict(properties))
    with (folder / FILE).open("ab") as stream:
        stream.write(message.SerializeToString())


def exported(graph: Graph, runtime: str = "onnxruntime") -> torch.onnx.ONNXProgram:
    """Return a graph in ONNX, rewritten for the runtime that will execute it."""
    names = [name.replace(".", "_") for name, _ in graph.signature.tensors()]
    source = program_of(with_onnx_layers(with_heads(graph)))
    for node in source.graph.nodes:
        node.meta["custom"] = {_ORIGIN: node.name}  # the exporter renames nodes, and keeps this
    with muted(), onnx_functions_parsed_once(), operators_found_once():
        program = torch.onnx.export(
            source,
            dynamo=True,
            verbose=False,
            input_names=_unique(names),
            custom_translation_table=translations(),
        )
        assert program is not None
        _name_operators(program)
        for rewrite in PASSES[runtime]:
            rewrite(program.model)
        _name_outputs(program.model, graph.signature)
    return program


def _name_outputs(model: ir.Model, signature: Signature) -> None:
    """Name outputs as the target does, because libraries look for ``logits``: ``output``, if it is a tensor alone.

    No two values of a graph have one name, so a name that is taken gets a suffix. An output that is an input too, or
    another output, keeps its name.
    """
    outputs = list(model.graph.outputs)
    nodes = list(model.graph.all_nodes())
    taken = {str(value.name) for node in nodes for value in (*node.inputs, *node.outputs) if value is not None}
    taken |= {str(value.name) for value in (*model.graph.inputs, *model.graph.initializers.values())}
    for name, structure in results_of(signature.output, _OUTPUT):
        value = outputs[next(iter(structure.values()))]
        if value.producer() is None or outputs.count(value) > 1:
            continue
        wanted = re.sub(r"\W", "_", name.removeprefix(f"{_OUTPUT}."))
        wanted = f"{_OUTPUT}_{wanted}" if wanted[:1].isdigit() else wanted
        while wanted in taken - {value.name}:
            wanted += "_out"
        taken.add(wanted)
        value.name = wanted


def _name_operators(program: torch.onnx.ONNXProgram) -> None:
    """Name each convolution and product after its operator, unless several nodes compute it: runtimes keep names."""
    assert program.exported_program is not None
    origins = {node.name: node.meta.get("custom", {}).get(_ORIGIN) for node in program.exported_program.graph.nodes}
    found: dict[str, list[ir.Node]] = {}
    for node in program.model.graph:
        origin = origins.get(node.metadata_props.get("namespace", "").partition(":")[0])
        if origin is not None and node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
            found.setdefault(origin, []).append(node)
    for origin, nodes in found.items():
        if len(nodes) == 1:
            nodes[0].name = origin


def load(folder: Path, threads: int | None) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """Open the model in an onnxruntime session on the CPU.

    Raises:
        ArtifactError: its weights are in a file that export does not write.
    """
    session = _session(folder, threads)
    names, outputs = ([value.name for value in values] for values in (session.get_inputs(), session.get_outputs()))

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        if not all(map(torch.numel, tensors)) and _is_recurrent(folder):  # onnxruntime (1.32) would end the process
            raise ArtifactError("call: a tensor is empty, and onnxruntime computes no recurrent layer of nothing.")
        results = session.run(outputs, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})
        return [torch.from_numpy(result) for result in results]

    return run


def _is_recurrent(folder: Path) -> bool:
    library = require("onnx", "onnx", "load: an ONNX artifact")
    model = library.load(place(folder, FILE), load_external_data=False)
    return any(node.op_type in _RECURRENT for node in model.graph.node)


def kernels(folder: Path) -> list[Kernel]:
    """List the kernels of convolutions, products and recurrent layers, from the graph that onnxruntime optimized."""
    ir = require("onnx_ir", "onnx", "kernels: an ONNX artifact")
    with tempfile.TemporaryDirectory() as scratch:
        _session(folder, None, Path(scratch) / FILE)
        graph = ir.load(Path(scratch) / FILE).graph
    # A GRU counts as INT8 if its steps are, even if the product of its inputs is float.
    of_grus = {True: frozenset({"gru"}), False: frozenset[str]()}
    inside = set(_nodes_of_grus(graph))
    tables = ((_INT8_KERNELS, True), (_FLOAT_KERNELS, False))
    return [
        Kernel(
            str(node.name),
            node.op_type,
            of_grus[int8] if node in inside else table[node.op_type],
            int8,
            frozenset({_SUFFIX.sub("", str(node.name))}),
        )
        for node in graph.all_nodes()
        for table, int8 in tables
        if node.op_type in table
    ]


def _nodes_of_grus(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the nodes of INT8 GRUs: the steps of a ``Scan``, and the product that makes its input."""
    for scan in graph:
        if scan.op_type == "Scan":
            yield from scan.attributes["body"].as_graph()
            scanned = scan.inputs[1]  # after the state
            node = None if scanned is None else scanned.producer()
            while node is not None and node.op_type in ("Add", "Transpose"):  # the bias, or moved here by onnxruntime
                node = None if node.inputs[0] is None else node.inputs[0].producer()
            if node is not None:
                yield node


def _session(folder: Path, threads: int | None, optimized: Path | None = None) -> Any:
    """Open the model in onnxruntime, which also writes the graph that it made of it, if a file is given."""
    ort = require("onnxruntime", "onnx", "load: an ONNX artifact")
    file = place(folder, FILE)
    _check_weights(file)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # its exceptions say what it would print about an error
    if threads is not None:
        options.intra_op_num_threads = threads
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        # Apart, because a protobuf message ends at 2 GiB.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", WEIGHTS)
    # Its fallback only tries the same provider again after an error, and prints so.
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"], enable_fallback=False)


def _check_weights(file: Path) -> None:
    """Check that a model reads weights from no other file than the one that export writes beside it.

    onnxruntime itself refuses files outside the folder. A model is parsed only if it contains the word that every
    such reference contains.
    """
    if not _holds(file, b"location"):
        return
    library = require("onnx", "onnx", "load: an ONNX artifact")
    for name in _locations(library.load(file, load_external_data=False)):
        if name != WEIGHTS:
            raise ArtifactError(
                f"path: {str(file)!r} reads weights from {name!r}; ArtifactExport writes them only to {WEIGHTS!r}. "
                "Export again from a source that you trust."
            )


def _holds(file: Path, word: bytes) -> bool:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(word) >= 0


def _locations(message: Any) -> Iterator[str]:
    """Yield the files that the tensors in a message of protobuf refer to."""
    for field, value in message.ListFields():
        if field.name == "external_data":
            yield from (entry.value for entry in value if entry.key == "location")
        elif field.message_type is not None:
            for item in [value] if hasattr(value, "ListFields") else value:
                yield from _locations(item)


def _unique(names: list[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)]
