"""Dynamic INT8 in ONNX: the float graph through onnxruntime's own dynamic quantizer, and GRUs by ``onnx_gru``."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lq_plugin import cpu
from lq_plugin.artifacts import onnx, onnx_gru
from lq_plugin.artifacts.onnx_recurrent import PREFIX
from lq_plugin.coverage import Coverage, FloatOp, Measured
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
    origins = {node.name: origin for node in model.graph.node if (origin := _origin(node)) in placement.quantized}
    grus = [node.name for node in model.graph.node if node.op_type == "GRU" and node.name in origins]
    model, measured = _with_grus(model, grus, candidate)
    names = [name for name in origins if name not in grus]
    _quantize(model, names, candidate, folder / onnx.FILE)
    left = {node.name.removesuffix("_MatMul") for node in library.load(folder / onnx.FILE).graph.node}
    slow = "".join(decision.reason for decision in measured.values())
    reasons = {origins[name]: slow or "onnxruntime's quantizer left it alone" for name in origins if name in left}
    return _coverage(placement, reasons, measured)


def _with_grus(model: Any, names: list[str], candidate: DynamicCandidate) -> tuple[Any, Mapping[str, Measured]]:
    """Take GRUs on integers where they are faster, and return what was decided; it is measured once."""
    if not names:
        return model, {}
    made = onnx_gru.with_integer_grus(model, names, bool(candidate.scheme.reduce_range))
    digest = _digest_of_measuring(made, candidate)
    if digest not in candidate.measured:
        candidate.measured[digest] = _measure(model, made, candidate)
    decision = candidate.measured[digest]
    return made if decision.int8 else model, {digest: decision}


def _digest_of_measuring(made: Any, candidate: DynamicCandidate) -> str:
    """What the result depends on: the model, weights included, how it is called, the runtime and the CPU."""
    runtime = require("onnxruntime", "onnx", "formats: 'onnx'").__version__
    digest = hashlib.sha256(made.SerializeToString(deterministic=True))
    digest.update(f"{[tuple(t.shape) for t in candidate.graph.example]} {runtime} {cpu.name()}".encode())
    return digest.hexdigest()


def _measure(model: Any, made: Any, candidate: DynamicCandidate) -> Measured:
    """Decide for the INT8 form where it is faster for one sample and for the example's batch; else say by how much."""
    inputs = [value.name for value in model.graph.input]
    ratios: dict[int, float] = {}
    for size in (1, max(candidate.graph.batch_size, 1)):
        feed = {name: tensor.numpy() for name, tensor in zip(inputs, candidate.graph.resized(size), strict=True)}
        ratios[size] = onnx_gru.speedup(model, made, feed)
    if min(ratios.values()) >= onnx_gru.LEAST_SPEEDUP:
        return Measured(int8=True, reason="")
    measured = ", ".join(f"{ratio:.2f}× at batch {size}" for size, ratio in ratios.items())
    return Measured(int8=False, reason=f"measured here, INT8 is no faster: {measured}")


def _coverage(placement: Placement, reasons: Mapping[str, str], measured: Mapping[str, Measured]) -> Coverage:
    """What was quantized in the end; ``reasons`` are those of what was not."""
    made = [op for name, op in placement.quantized.items() if name not in reasons]
    left = [FloatOp(op.name, op.op, reasons[name]) for name, op in placement.quantized.items() if name in reasons]
    if not made:
        raise UnsupportedError(f"target: nothing in it is quantized for onnxruntime: {[vars(op) for op in left]}.")
    return Coverage(made, (*left, *placement.float_ops), measured)


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
    if node.op_type not in (*_QUANTIZED, "GRU"):
        return None
    if node.op_type in ("LSTM", "GRU"):  # its weights are named after it, see onnx_recurrent.py
        return str(node.input[1].removeprefix(PREFIX).rpartition(".")[0])
    namespace = next(entry.value for entry in node.metadata_props if entry.key == "namespace")
    return str(namespace.partition(":")[0])
