"""Every model of the zoo: captured faithfully, quantized where it should be, and close to FP32 in every format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import openvino
import pytest
import torch
from openvino import Type
from torch import fx, nn
from torch.utils._pytree import tree_flatten
from zoo import ZOO, Specimen, forward, settled

import lq_plugin
from lq_plugin import Artifact, cpu
from lq_plugin.artifacts.pt2 import load_module
from lq_plugin.candidate import Candidate
from lq_plugin.evaluation.fidelity import SignalToQuantizationNoise
from lq_plugin.evaluation.kernels import counted
from lq_plugin.graph.folding import attribute
from lq_plugin.graph.nesting import retyped
from lq_plugin.graph.operators import CONVOLUTIONS, MATRIX_PRODUCTS, TRANSPOSED_CONVOLUTIONS
from lq_plugin.report.manifest import Entry
from lq_plugin.runtimes import RUNTIMES
from lq_plugin.scheme import Scheme

PLAIN = Scheme(algorithms=())

Shape = tuple[int, ...]
BATCH_SIZES = (16, 5, 1)
EXACT_DB = 100  # float32 with BatchNorm folded; quantized outputs are far below


@dataclass(frozen=True)
class Made:
    name: str
    specimen: Specimen
    model: nn.Module
    candidate: Candidate
    batches: list[Any]
    folder: Path


@pytest.fixture(scope="module", params=ZOO)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    specimen = ZOO[request.param]
    model = settled(specimen)
    generator = torch.Generator().manual_seed(1)
    candidate = lq_plugin.quantize(model, [specimen.batch(generator, 16) for _ in range(4)], PLAIN)
    batches = [specimen.batch(generator, size) for size in BATCH_SIZES]
    return Made(request.param, specimen, model, candidate, batches, tmp_path_factory.mktemp(request.param))


def sqnr(made: Made, module: nn.Module) -> float:
    """Pool all batches; the outputs' structures, shapes and dtypes must be the model's own."""
    metric = SignalToQuantizationNoise()
    for batch in made.batches:
        with torch.no_grad():
            wanted, given = forward(made.model, batch), forward(module, batch)
        given = retyped(given, wanted)  # artifacts do not store the classes of named tuples
        (leaves, spec), (given_leaves, given_spec) = tree_flatten(wanted), tree_flatten(given)
        assert given_spec == spec
        for left, right in zip(given_leaves, leaves, strict=True):
            if isinstance(right, torch.Tensor):
                assert (left.shape, left.dtype) == (right.shape, right.dtype)
            else:
                assert left == right
        metric.update(given, wanted)
    return float(metric.compute())


def check_quantized_values(made: Made, runtime: str, pairs: int) -> None:
    """One pair for each quantized value; exporters may unite those that are equal, such as a transposed value's."""
    placement = made.candidate.placed(runtime)
    nodes = made.candidate.converted(runtime).module.graph.nodes
    inserted = sum(node.target is torch.ops.quantized_decomposed.quantize_per_tensor.default for node in nodes)
    assert len(set(placement.scales.values())) <= pairs <= inserted


def _larger_than_one(shape: Shape) -> Shape:
    """Without dimensions of size 1: a ``.pt2`` has the weight of a ``Conv1d`` with one more."""
    return tuple(sorted(size for size in shape if size > 1))


def check_weights(made: Made, runtime: str, integers: Iterable[Shape], floats: Iterable[Shape]) -> None:
    """Every layer's weight is there once, as integers; of the float tensors none has the shape of such a weight."""
    placement = made.candidate.placed(runtime)
    module = made.candidate.graph.module
    nodes = {node.name: node for node in module.graph.nodes}
    layers = [weight for name, (weight, _) in placement.weights.items() if "embedding" not in name]
    distinct = {weight.numpy().tobytes(): weight for weight in (attribute(module, nodes[name]) for name in layers)}
    expected = Counter(tuple(sorted(weight.shape)) for weight in distinct.values())
    wanted, found = (Counter(map(_larger_than_one, shapes)) for shapes in (expected.elements(), integers))
    assert wanted <= found
    assert not expected.keys() & {tuple(sorted(shape)) for shape in floats}


def test_the_folded_graph_computes_what_the_model_computes(made: Made) -> None:
    signature = made.candidate.graph.signature

    class Folded(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return signature.unflatten(made.candidate.graph.module(*signature.flatten(args, kwargs)))

    assert sqnr(made, Folded()) > EXACT_DB


def check_kernels(made: Made, artifact: Artifact) -> None:
    """Every convolution and product that was placed in INT8 is computed on integers, where a kernel exists."""
    placed = Entry(artifact.candidate, artifact.method, artifact.runtime, artifact.format)
    placed = placed.exported(artifact, made.folder)
    entry = counted(placed, artifact.path)
    assert entry.kernels is not None
    without = TRANSPOSED_CONVOLUTIONS if artifact.format == "openvino" and not cpu.has_vnni() else ()
    assert entry.quantized_ops == tuple(op for op in placed.quantized_ops if op.op not in without)
    assert entry.kernels.fell_back == {}
    multiplying = sum(op.op in CONVOLUTIONS | MATRIX_PRODUCTS for op in entry.quantized_ops)
    assert sum(map(len, entry.kernels.int8.values())) == multiplying


def test_the_documentation_names_what_runs_in_float() -> None:
    text = (Path(__file__).parents[2] / "docs/kernels.md").read_text()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| " in line]
    table = [row for row in cells if row[1] in RUNTIMES]
    rows = {(operator, *row[1:3]) for row in table for operator in row[0].split(", ")}
    assert rows == {
        (operator, runtime, reason)
        for runtime, rules in RUNTIMES.items()
        for operator, reason in rules.stays_float.items()
    }


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_expected_operators_are_quantized_and_the_others_listed(made: Made, runtime: str) -> None:
    placement = made.candidate.placed(runtime)
    left = [op.op for op in placement.float_ops if op.reason not in RUNTIMES[runtime].stays_float.values()]
    without_kernel = Counter(op.op for op in placement.float_ops) - Counter(left)
    assert Counter(op.op for op in placement.quantized.values()) + without_kernel == made.specimen.quantized
    assert all(op.reason for op in placement.float_ops)
    assert not set(left) & {*CONVOLUTIONS, "linear", "embedding", "_native_batch_norm_legit_no_training"}


def test_onnx_holds_integers_computes_on_them_and_stays_close(made: Made) -> None:
    artifact = lq_plugin.export(made.candidate, made.folder, ["onnx"])["onnx"]
    graph = onnx.load(artifact.path / "model.onnx").graph
    operators = Counter(node.op_type for node in graph.node)
    check_quantized_values(made, "onnxruntime", operators["QuantizeLinear"])
    assert operators["DequantizeLinear"] >= operators["QuantizeLinear"]
    shapes = {
        kind: [tuple(tensor.dims) for tensor in graph.initializer if tensor.data_type == kind]
        for kind in (onnx.TensorProto.INT8, onnx.TensorProto.FLOAT)
    }
    check_weights(made, "onnxruntime", shapes[onnx.TensorProto.INT8], shapes[onnx.TensorProto.FLOAT])
    check_kernels(made, artifact)
    assert sqnr(made, lq_plugin.load(artifact.path)) > made.specimen.sqnr


def test_openvino_holds_integers_computes_on_them_and_stays_close(made: Made) -> None:
    artifact = lq_plugin.export(made.candidate, made.folder, ["openvino"])["openvino"]
    operators = openvino.Core().read_model(artifact.path / "model.xml").get_ordered_ops()
    kinds = Counter(op.get_type_name() for op in operators)
    check_quantized_values(made, "openvino", kinds["FakeQuantize"])
    constants = [(op.get_element_type(), tuple(op.shape)) for op in operators if op.get_type_name() == "Constant"]
    shapes = {kind: [shape for found, shape in constants if found == kind] for kind in (Type.i8, Type.f32)}
    check_weights(made, "openvino", shapes[Type.i8], shapes[Type.f32])
    check_kernels(made, artifact)
    assert sqnr(made, lq_plugin.load(artifact.path)) > made.specimen.sqnr


def test_pt2_holds_integers_and_stays_close(made: Made) -> None:
    artifact = lq_plugin.export(made.candidate, made.folder, ["pt2"])["pt2"]
    module = load_module(artifact.path)
    assert isinstance(module, fx.GraphModule)
    targets = Counter(str(node.target) for node in module.graph.nodes)
    check_quantized_values(made, "torch", targets["quantized_decomposed.quantize_per_tensor.default"])
    tensors = list(module.state_dict().values())
    shapes = {kind: [tuple(t.shape) for t in tensors if t.dtype == kind] for kind in (torch.int8, torch.float32)}
    check_weights(made, "torch", shapes[torch.int8], shapes[torch.float32])
    assert sqnr(made, lq_plugin.load(artifact.path)) > made.specimen.sqnr
