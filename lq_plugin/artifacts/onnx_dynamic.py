"""Dynamic INT8 in ONNX: products through onnxruntime's own dynamic quantizer, recurrent layers through modules of ours.

Weights become the integers that ``qparams`` says, as in every other format.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lq_plugin import cpu
from lq_plugin.artifacts import onnx, onnx_gru, onnx_lstm
from lq_plugin.artifacts.onnx_recurrent import PREFIX, with_onnx_layers
from lq_plugin.coverage import Coverage, FloatOp, Measured
from lq_plugin.errors import UnsupportedError, require
from lq_plugin.graph.placement import Placement
from lq_plugin.qparams import QuantSpec, weight_qparams

if TYPE_CHECKING:
    import onnx_ir as ir

    from lq_plugin.candidate import DynamicCandidate

_QUANTIZED = ("MatMul", "Gemm")
_LEFT_ALONE = "onnxruntime's quantizer left it alone"


def export(candidate: DynamicCandidate, folder: Path, threads: int | None = None) -> Coverage:
    """Write ``model.onnx`` and check it.

    Args:
        candidate: what to export.
        folder: where to.
        threads: number of threads with which INT8 and float GRUs are compared; onnxruntime chooses by default.

    Raises:
        UnsupportedError: nothing in it can be quantized.
    """
    ir, library = (require(module, "onnx", "formats: 'onnx'") for module in ("onnx_ir", "onnx"))
    placement = candidate.placed("onnxruntime")
    model = onnx.exported(candidate.with_integer_tables("onnxruntime")).model
    origins = {str(node.name): origin for node in model.graph if (origin := _origin(node)) in placement.quantized}
    grus, lstms = (
        [name for name in origins if model.graph.node(name).op_type == op_type] for op_type in ("GRU", "LSTM")
    )
    narrow = {origins[name]: reason for name in grus if (reason := _narrow(model.graph.node(name)))}
    model = onnx_lstm.with_integer_lstms(model, lstms, candidate.scheme.weights)
    model, measured = _with_grus(model, grus, candidate, threads)
    names = [name for name in origins if name not in {*grus, *lstms}]
    _quantize(model, names, candidate, folder / onnx.FILE)
    library.checker.check_model(str(folder / onnx.FILE), full_check=True)
    left = {node.name.removesuffix("_MatMul") for node in ir.load(folder / onnx.FILE).graph}
    slow = dict.fromkeys(grus, "".join(decision.reason for decision in measured.values()))
    reasons = {origins[name]: slow.get(name) or _LEFT_ALONE for name in origins if name in left}
    return _coverage(placement, reasons, narrow, measured)


def _with_grus(
    model: ir.Model, names: list[str], candidate: DynamicCandidate, threads: int | None
) -> tuple[ir.Model, Mapping[str, Measured]]:
    """Use integer GRUs where they are faster, and return the decisions; each is measured once."""
    if not names:
        return model, {}
    narrow = [name for name in names if onnx_gru.is_narrow(model.graph.node(name))]
    made = onnx_gru.with_integer_grus(_as_trained(model, narrow, candidate, (1,)), names, candidate.scheme.weights)
    digest = _digest_of_measuring(made, candidate, threads)
    if digest not in candidate.measured:
        candidate.measured[digest] = _measure(model, made, candidate, threads)
    decision = candidate.measured[digest]
    return made if decision.int8 else _as_trained(model, names, candidate, (1, 2)), {digest: decision}


def _as_trained(model: ir.Model, grus: list[str], candidate: DynamicCandidate, positions: tuple[int, ...]) -> ir.Model:
    """Return a copy in which products that stay float have their weights as trained: learnt ones are rounded."""
    if candidate.float_graph is None:
        return model
    ir = require("onnx_ir", "onnx", "formats: 'onnx'")
    made: Any = model.clone()
    trained = with_onnx_layers(candidate.float_graph).module
    for node in map(made.graph.node, grus):
        for weight in (node.inputs[position] for position in positions):
            weight.const_value = ir.tensor(trained.get_buffer(weight.name).numpy(), name=weight.name)
    return made  # type: ignore[no-any-return]


def _narrow(gru: ir.Node) -> str | None:
    """Why the input product of an INT8 ``GRU`` stays float; ``None`` if it does not."""
    if not onnx_gru.is_narrow(gru):
        return None
    inputs, hidden = onnx_gru.widths(gru)
    return f"its input is narrow ({inputs} wide, hidden size {hidden}): INT8 would save little time and cost accuracy"


def _digest_of_measuring(made: ir.Model, candidate: DynamicCandidate, threads: int | None) -> str:
    """A digest of what the measurement depends on: model and weights, inputs, runtime, threads and CPU."""
    ir, ort = (require(module, "onnx", "formats: 'onnx'") for module in ("onnx_ir", "onnxruntime"))
    digest = hashlib.sha256(ir.to_proto(made).SerializeToString(deterministic=True))
    called = [tuple(tensor.shape) for tensor in candidate.graph.example]
    digest.update(f"{called} {ort.__version__} {threads} {cpu.fingerprint()}".encode())
    return digest.hexdigest()


def _measure(model: ir.Model, made: ir.Model, candidate: DynamicCandidate, threads: int | None) -> Measured:
    """Decide for the INT8 form where it is faster for one sample and for the example's batch; else say by how much."""
    inputs = [str(value.name) for value in model.graph.inputs]
    ratios: dict[int, float] = {}
    for size in (1, max(candidate.graph.batch_size, 1)):
        feed = {name: tensor.numpy() for name, tensor in zip(inputs, candidate.graph.resized(size), strict=True)}
        ratios[size] = onnx_gru.speedup(model, made, feed, threads)
    if min(ratios.values()) >= onnx_gru.LEAST_SPEEDUP:
        return Measured(int8=True, reason="")
    measured = ", ".join(f"{ratio:.2f}× at batch {size}" for size, ratio in ratios.items())
    number = "onnxruntime's choice" if threads is None else threads
    return Measured(int8=False, reason=f"measured here, INT8 is no faster: {measured} (threads: {number})")


def _coverage(
    placement: Placement, reasons: Mapping[str, str], narrow: Mapping[str, str], measured: Mapping[str, Measured]
) -> Coverage:
    """What was quantized; ``reasons`` says why operators are float, ``narrow`` why they are float in part."""
    made = [op for name, op in placement.quantized.items() if name not in reasons]
    left = [FloatOp(op.name, op.op, reasons[name]) for name, op in placement.quantized.items() if name in reasons]
    if not made:
        raise UnsupportedError(f"target: nothing in it is quantized for onnxruntime: {[vars(op) for op in left]}.")
    parts = [
        FloatOp(op.name, f"input product of {op.op}", narrow[name])
        for name, op in placement.quantized.items()
        if name in narrow and name not in reasons
    ]
    return Coverage(made, (*left, *parts, *placement.float_ops), measured)


def _quantize(model: ir.Model, names: list[str], candidate: DynamicCandidate, file: Path) -> None:
    ir, tool = (require(module, "onnx", "formats: 'onnx'") for module in ("onnx_ir", "onnxruntime.quantization"))
    if not names:  # for which the tool would quantize every node that it can
        ir.save(model, file)
        return
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
        extra_options={
            "MatMulConstBOnly": True,
            "TensorQuantOverrides": _scales(model, names, candidate.scheme.weights),
        },
    )


def _scales(model: ir.Model, names: Sequence[str], spec: QuantSpec) -> dict[str, list[dict[str, Any]]]:
    """Scales of weights as the tool takes them. Left to itself, it spreads 7 bits over -64 to 64.

    A weight that is read along both of its dimensions is left to it, because it takes one axis for each.
    """
    found: dict[str, dict[int, list[dict[str, Any]]]] = defaultdict(dict)
    for node in map(model.graph.node, names):
        weight = node.inputs[1]
        if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
            continue
        axis = 0 if "transB" in node.attributes and node.attributes["transB"].as_int() else 1
        scale, _ = weight_qparams(torch.from_numpy(weight.const_value.numpy().copy()), spec, axis)
        along = {"axis": axis} if spec.per_channel else {}
        found[str(weight.name)][axis] = [
            {**along, "scale": each, "zero_point": 0} for each in scale.reshape(-1).numpy()
        ]
    return {name: next(iter(axes.values())) for name, axes in found.items() if len(axes) == 1}


def _origin(node: ir.Node) -> str | None:
    """Name of the operator in the float graph that a node of ONNX computes; ``None`` for a node without weights."""
    if node.op_type in ("LSTM", "GRU"):  # its weights are named after it, see onnx_recurrent.py
        weight = node.inputs[1]
        assert weight is not None
        return str(weight.name).removeprefix(PREFIX).rpartition(".")[0]
    return node.metadata_props["namespace"].partition(":")[0] if node.op_type in _QUANTIZED else None
