"""Dynamic INT8 in ONNX: the float graph through onnxruntime's own dynamic quantizer, and GRUs by ``onnx_gru``."""

from __future__ import annotations

import tempfile
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lq_plugin.artifacts import onnx
from lq_plugin.artifacts.onnx_recurrent import PREFIX
from lq_plugin.coverage import Coverage, FloatOp
from lq_plugin.errors import UnsupportedError, require
from lq_plugin.graph.placement import Placement

if TYPE_CHECKING:
    from lq_plugin.candidate import DynamicCandidate

_QUANTIZED = ("MatMul", "Gemm", "LSTM")


def export(candidate: DynamicCandidate, folder: Path) -> Coverage:
    """Write ``model.onnx``.

    Raises:
        UnsupportedError: nothing in it can be quantized.
    """
    library = require("onnx", "onnx", "formats: 'onnx'")
    placement = candidate.placed("onnxruntime")
    with tempfile.TemporaryDirectory() as scratch:
        onnx.export(candidate.with_integer_tables("onnxruntime"), Path(scratch))
        model = library.load(Path(scratch) / onnx.FILE)
    wanted = {node.name: origin for node in model.graph.node if (origin := _origin(node)) in placement.quantized}
    _quantize(model, list(wanted), candidate, folder / onnx.FILE)
    left = {node.name.removesuffix("_MatMul") for node in library.load(folder / onnx.FILE).graph.node}
    missed = {origin for name, origin in wanted.items() if name in left}
    return _coverage(placement, missed | {name for name, op in placement.quantized.items() if op.op == "gru"})


def _coverage(placement: Placement, missed: Set[str]) -> Coverage:
    """What was quantized in the end."""
    made = [op for name, op in placement.quantized.items() if name not in missed]
    reason = "onnxruntime's quantizer left it alone"
    left = [FloatOp(op.name, op.op, reason) for name, op in placement.quantized.items() if name in missed]
    if not made:
        raise UnsupportedError(f"target: nothing in it could be quantized for onnxruntime: {[vars(op) for op in left]}.")
    return Coverage(made, (*left, *placement.float_ops))


def _quantize(model: Any, names: list[str], candidate: DynamicCandidate, file: Path) -> None:
    tool = require("onnxruntime.quantization", "onnx", "formats: 'onnx'")
    tool.quant_utils.add_pre_process_metadata(model)  # the exporter has inferred all shapes; else the tool advises to
    tool.quantize_dynamic(
        model,
        file,
        op_types_to_quantize=list(_QUANTIZED),
        nodes_to_quantize=[*names, *(f"{name}_MatMul" for name in names)],  # as the tool renames a Gemm
        per_channel=candidate.scheme.weight_granularity == "per_channel",
        reduce_range=candidate.scheme.reduce_range,
        weight_type=tool.QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )


def _origin(node: Any) -> str | None:
    """Name of the operator in the float graph that a node of ONNX computes; ``None`` for a node without weights."""
    if node.op_type not in _QUANTIZED:
        return None
    if node.op_type == "LSTM":  # its weights are named after it, see onnx_recurrent.py
        return str(node.input[1].removeprefix(PREFIX).rpartition(".")[0])
    namespace = next(entry.value for entry in node.metadata_props if entry.key == "namespace")
    return str(namespace.partition(":")[0])
