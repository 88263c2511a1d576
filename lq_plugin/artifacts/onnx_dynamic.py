"""Dynamic INT8 in ONNX: the float graph through onnxruntime's own dynamic quantizer, its GRUs through ``onnx_gru``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lq_plugin import cpu
from lq_plugin.artifacts import onnx, onnx_gru
from lq_plugin.artifacts.onnx_recurrent import PREFIX
from lq_plugin.coverage import Coverage, FloatOp, Measured
from lq_plugin.errors import UnsupportedError, require
from lq_plugin.graph.placement import Placement

if TYPE_CHECKING:
    import onnx_ir as ir

    from lq_plugin.candidate import DynamicCandidate

_QUANTIZED = ("MatMul", "Gemm", "LSTM")


def export(candidate: DynamicCandidate, folder: Path) -> Coverage:
    """Write ``model.onnx`` and check it.

    Raises:
        UnsupportedError: nothing in it can be quantized.
    """
    ir, library = (require(module, "onnx", "formats: 'onnx'") for module in ("onnx_ir", "onnx"))
    placement = candidate.placed("onnxruntime")
    model = onnx.exported(candidate.with_integer_tables("onnxruntime")).model
    origins = {str(node.name): origin for node in model.graph if (origin := _origin(node)) in placement.quantized}
    grus = [name for name in origins if model.graph.node(name).op_type == "GRU"]
    model, measured = _with_grus(model, grus, candidate)
    names = [name for name in origins if name not in grus]
    _quantize(model, names, candidate, folder / onnx.FILE)
    library.checker.check_model(str(folder / onnx.FILE), full_check=True)
    left = {node.name.removesuffix("_MatMul") for node in ir.load(folder / onnx.FILE).graph}
    slow = "".join(decision.reason for decision in measured.values())
    reasons = {origins[name]: slow or "onnxruntime's quantizer left it alone" for name in origins if name in left}
    return _coverage(placement, reasons, measured)


def _with_grus(
    model: ir.Model, names: list[str], candidate: DynamicCandidate
) -> tuple[ir.Model, Mapping[str, Measured]]:
    """Use integer GRUs where they are faster, and return the decisions; each is measured once."""
    if not names:
        return model, {}
    made = onnx_gru.with_integer_grus(model, names, candidate.scheme.weights)
    digest = _digest_of_measuring(made, candidate)
    if digest not in candidate.measured:
        candidate.measured[digest] = _measure(model, made, candidate)
    decision = candidate.measured[digest]
    return made if decision.int8 else model, {digest: decision}


def _digest_of_measuring(made: ir.Model, candidate: DynamicCandidate) -> str:
    """What the result depends on: the model, weights included, how it is called, the runtime and the CPU."""
    ir, ort = (require(module, "onnx", "formats: 'onnx'") for module in ("onnx_ir", "onnxruntime"))
    digest = hashlib.sha256(ir.to_proto(made).SerializeToString(deterministic=True))
    digest.update(f"{[tuple(t.shape) for t in candidate.graph.example]} {ort.__version__} {cpu.name()}".encode())
    return digest.hexdigest()


def _measure(model: ir.Model, made: ir.Model, candidate: DynamicCandidate) -> Measured:
    """Decide for the INT8 form where it is faster for one sample and for the example's batch; else say by how much."""
    inputs = [str(value.name) for value in model.graph.inputs]
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


def _quantize(model: ir.Model, names: list[str], candidate: DynamicCandidate, file: Path) -> None:
    ir, tool = (require(module, "onnx", "formats: 'onnx'") for module in ("onnx_ir", "onnxruntime.quantization"))
    proto = ir.to_proto(model)
    tool.quant_utils.add_pre_process_metadata(proto)  # the exporter has inferred all shapes; else the tool advises to
    tool.quantize_dynamic(
        proto,
        file,
        op_types_to_quantize=list(_QUANTIZED),
        nodes_to_quantize=[*names, *(f"{name}_MatMul" for name in names)],  # as the tool renames a Gemm
        per_channel=candidate.scheme.weight_granularity == "per_channel",
        reduce_range=candidate.scheme.reduce_range,
        weight_type=tool.QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )


def _origin(node: ir.Node) -> str | None:
    """Name of the operator in the float graph that a node of ONNX computes; ``None`` for a node without weights."""
    if node.op_type in ("LSTM", "GRU"):  # its weights are named after it, see onnx_recurrent.py
        weight = node.inputs[1]
        assert weight is not None
        return str(weight.name).removeprefix(PREFIX).rpartition(".")[0]
    return node.metadata_props["namespace"].partition(":")[0] if node.op_type in _QUANTIZED else None
